"""Model files by name and by path."""

from __future__ import annotations

from pathlib import Path

import pytest

from wan_train.base.errors import BadInputError
from wan_train.recipe.model_files import known_models, locate

ROOT = Path("/workspace/musubi-tuner")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("umt5-xxl", "models/text_encoders/models_t5_umt5-xxl-enc-bf16.pth"),
        ("wan21-vae", "models/vae/split_files/vae/wan_2.1_vae.safetensors"),
        (
            "wan22-t2v-high",
            "models/diffusion_models/split_files/diffusion_models/wan2.2_t2v_high_noise_14B_fp16.safetensors",
        ),
        (
            "wan22-t2v-low",
            "models/diffusion_models/split_files/diffusion_models/wan2.2_t2v_low_noise_14B_fp16.safetensors",
        ),
    ],
)
def test_where_the_guide_puts_them(name: str, path: str) -> None:
    assert locate(name, ROOT) == ROOT / path
    assert (
        str(ROOT / path)
        in (Path(__file__).parents[2] / "golden" / "seed_high.txt").read_text()
        + (Path(__file__).parents[2] / "golden" / "seed_low.txt").read_text()
    )


def test_every_known_model_has_a_place_of_its_own() -> None:
    models = known_models()
    assert len({model.path(ROOT) for model in models.values()}) == len(models) == 10


def test_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert locate("/data/my.safetensors", ROOT) == Path("/data/my.safetensors")
    assert locate("my.safetensors", ROOT) == ROOT / "my.safetensors"
    assert locate("models/my.pth", ROOT) == ROOT / "models" / "my.pth"
    assert locate("~/my.pth", ROOT) == Path("/home/somebody/my.pth")


@pytest.mark.parametrize("reference", ["wan22-t2v-hihg", "wan22-t2v-high-lightning", "", "~nobody-of-that-name/x.pth"])
def test_what_is_neither(reference: str) -> None:
    with pytest.raises(BadInputError):
        locate(reference, ROOT)
