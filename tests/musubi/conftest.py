from __future__ import annotations

import os
from pathlib import Path

import pytest

from musubi.trainer import VARIABLE, VERSIONS, Dataset, Trainer, draw_dataset, text_of
from support.nvml import nvml_library, nvml_stub

__all__ = ["nvml_library", "nvml_stub"]  # fixtures, for the tests of this folder

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            # A guard against a hanging trainer: the first test of a version also makes models and caches.
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(scope="session", params=VERSIONS)
def trainer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """The real musubi-tuner of one version, with shrunken models made for it."""
    if not os.environ.get(VARIABLE):
        pytest.skip(f"set {VARIABLE}=DIR to test with the real musubi-tuner (tests/musubi/README.md makes DIR)")
    material = tmp_path_factory.mktemp(f"musubi-{request.param}")
    trainer = Trainer(
        version=request.param,
        home=Path(os.environ[VARIABLE]).absolute() / request.param,
        models=material / "models",
        hf_home=material / "huggingface",
    )
    for needed in (trainer.repo / "src" / "musubi_tuner", trainer.python):
        # Whoever sets the variable wants the proof: a broken DIR must not pass as skipped.
        assert needed.exists(), f"{needed} is missing: {VARIABLE} must name a folder made by setup.sh"
    trainer.harness("make_models.py", str(trainer.models), str(trainer.hf_home))
    return trainer


@pytest.fixture(scope="session")
def cached(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Pictures whose latents and captions the real scripts have cached. Read only: every test shares them."""
    dataset = draw_dataset(tmp_path_factory.mktemp("cached"))
    for done in (trainer.cache_latents(dataset), trainer.cache_text(dataset)):
        assert done.returncode == 0, text_of(done)
    return dataset
