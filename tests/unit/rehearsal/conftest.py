"""Datasets and trainings that several tests look at."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from rehearsal_programs import Tiny, Trained, run_program, train, write_dataset


@pytest.fixture(scope="session")
def torch() -> Any:
    """Loaded by the test process that needs it, not by each that lists the tests."""
    return importlib.import_module("torch")


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return write_dataset(tmp_path)


@pytest.fixture(scope="session")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny dataset with both caches; tests leave it as it is."""
    dataset = write_dataset(tmp_path_factory.mktemp("cached"))
    latents = run_program("wan_cache_latents", "--dataset_config", dataset.config, "--vae", "vae.safetensors")
    text = run_program("wan_cache_text_encoder_outputs", "--dataset_config", dataset.config, "--t5", "t5.pth")
    assert (latents.returncode, text.returncode) == (0, 0), latents.stderr + text.stderr
    return dataset


@pytest.fixture(scope="session")
def trained(cached: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    output = tmp_path_factory.mktemp("trained")
    result = train(cached, output, "--max_train_epochs", 3, "--save_every_n_epochs", 1, "--save_state")
    assert result.returncode == 0, result.stderr
    return Trained(dataset=cached, output=output, result=result)
