"""The distance of two LoRAs, against the full matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from wan_train.engine.lora_distance import LoraFile, distance
from wan_train.engine.tensors import BrokenFileError


def _lora(path: Path, factors: dict[str, tuple[np.ndarray, np.ndarray]], alpha: float | None = None) -> Path:
    tensors = {}
    for module, (up, down) in factors.items():
        tensors[f"{module}.lora_up.weight"] = up
        tensors[f"{module}.lora_down.weight"] = down
        if alpha is not None:
            tensors[f"{module}.alpha"] = np.array(alpha, np.float32)
    save_file(tensors, path)
    return path


def _distance(*paths: Path) -> float:
    with LoraFile(paths[0]) as earlier, LoraFile(paths[1]) as later:
        return distance(earlier, later)


def _random(rng: np.random.Generator, modules: int, rank: int, dtype: type = np.float32) -> dict[str, tuple]:
    return {
        f"lora_unet_blocks_{n}_q": (
            rng.standard_normal((7 + n, rank)).astype(dtype),
            rng.standard_normal((rank, 5 + n)).astype(dtype),
        )
        for n in range(modules)
    }


@given(
    seed=st.integers(0, 10_000),
    ranks=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    alpha=st.sampled_from([None, 1.0, 16.0]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_it_is_the_distance_of_the_full_matrices(
    seed: int, ranks: tuple[int, int], alpha: float | None, dtype: type, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, rng = tmp_path_factory.mktemp("loras"), np.random.default_rng(seed)
    factors = [_random(rng, 3, rank, dtype) for rank in ranks]
    files = [_lora(folder / f"{n}.safetensors", each, alpha) for n, each in enumerate(factors)]

    assert _distance(*files) == pytest.approx(_exact(*factors, alpha), rel=1e-5)


def _exact(before: dict[str, tuple], after: dict[str, tuple], alpha: float | None = None) -> float:
    """The same from the full matrices, in float64."""
    moved = total = 0.0
    for module, (up, down) in after.items():
        then = _whole(before[module], alpha)
        now = _whole((up, down), alpha)
        moved += ((now - then) ** 2).sum()
        total += (now**2).sum()
    return float(np.sqrt(moved / total))


def _whole(factors: tuple[np.ndarray, np.ndarray], alpha: float | None) -> np.ndarray:
    up, down = (each.astype(np.float64) for each in factors)
    rank = len(down)
    return up @ down * ((alpha or rank) / rank)


@pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-6])
def test_a_tiny_movement_keeps_its_digits(step: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    before = _random(rng, 2, 4)
    after = {module: (up * np.float32(1 + step), down) for module, (up, down) in before.items()}
    files = [_lora(tmp_path / f"{n}.safetensors", each) for n, each in enumerate((before, after))]
    assert _distance(*files) == pytest.approx(_exact(before, after), rel=1e-4)


def test_bfloat16_is_read_as_what_it_means(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    up, down = (rng.standard_normal(shape, np.float32) for shape in ((6, 2), (2, 5)))
    halves = {f"a.lora_{name}.weight": each.view(np.uint32) >> 16 for name, each in (("up", up), ("down", down))}
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    save_file({name: (each << 16).view(np.float32) for name, each in halves.items()}, full)
    save_file({name: each.astype(np.uint16) for name, each in halves.items()}, half)
    raw = half.read_bytes()
    begins = 8 + int.from_bytes(raw[:8], "little")
    header = raw[8:begins].replace(b'"U16"', b'"BF16"')
    half.write_bytes(len(header).to_bytes(8, "little") + header + raw[begins:])
    assert _distance(half, full) == 0


def test_an_open_file_survives_its_removal(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    files = [_lora(tmp_path / f"{n}.safetensors", _random(rng, 1, 2)) for n in range(2)]
    expected = _distance(*files)
    with LoraFile(files[0]) as earlier, LoraFile(files[1]) as later:
        for path in files:
            path.unlink()
        assert distance(earlier, later) == expected > 0


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    good = _lora(tmp_path / "good.safetensors", _random(rng, 1, 2))
    with pytest.raises(BrokenFileError, match="different modules"):
        _distance(good, _lora(tmp_path / "more.safetensors", _random(rng, 2, 2)))
    wider = {"lora_unet_blocks_0_q": (np.ones((9, 2), np.float32), np.ones((2, 5), np.float32))}
    with pytest.raises(BrokenFileError, match="different shapes"):
        _distance(good, _lora(tmp_path / "wider.safetensors", wider))
    bad = {"lora_unet_blocks_0_q": (np.full((7, 2), np.nan, np.float32), np.ones((2, 5), np.float32))}
    with pytest.raises(BrokenFileError, match="not finite"):
        _distance(good, _lora(tmp_path / "nan.safetensors", bad))
    save_file({"a.hada_w1_a": np.ones((2, 2), np.float32)}, tmp_path / "loha.safetensors")
    with pytest.raises(BrokenFileError, match="no LoRA modules"):
        LoraFile(tmp_path / "loha.safetensors")
    for shape in ((4,), (0, 5)):
        save_file(
            {"a.lora_up.weight": np.ones((7, 2)), "a.lora_down.weight": np.ones(shape)}, tmp_path / "flat.safetensors"
        )
        with pytest.raises(BrokenFileError, match="holds no matrix"):
            LoraFile(tmp_path / "flat.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:-3])
    with pytest.raises(BrokenFileError, match="incomplete"):
        LoraFile(tmp_path / "cut.safetensors")
