"""The house rules that a machine can check: imports, names of modules, shipped recipes. `make lint` has the layers."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from wan_train.base.settings import shipped_configs

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "wan_train"
FILES = sorted(SOURCE.rglob("*.py"))
HEAVY = {
    "torch",
    "accelerate",
    "pynvml",
    "huggingface_hub",
    "av",
    "questionary",
    "PIL",
    "rich.live",
    "tomlkit",
    "numpy",
    "matplotlib",
    "jinja2",
}


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"], ["runs", "--help"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys\n"
        "from wan_train.cli.main import main\n"
        "sys.argv = ['wan-train', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as done:\n    code = done.code or 0\n"
        "print('\\nLOADED', *sys.modules, file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TERM": "dumb"},
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.rpartition("LOADED ")[2].split())
    assert "wan_train.cli.main" in loaded
    assert loaded & HEAVY == set()


@functools.cache
def imported(path: Path) -> set[str]:
    """What a module imports when it is loaded; imports inside functions are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


ALIKE = {
    "__init__": "every package has one",
    "model": "the types of a package",
    "locks": "locks of files, and of caches",
    "page": "an HTML page",
    "clean": "a command and its work",
    "doctor": "a command, its work and its view",
    "provision": "a command, its work and its view",
    "tune": "a command and its view",
    "preview": "a command and its view",
    "launch": "a command and its view",
    "environment": "the trainer's environment: how it is made, how it fails",
    "hub": "the Hugging Face hub: how it is asked, how it fails",
    "request": "what was asked for: of a training, of a preview",
    "settings": "settings, and failures of settings",
}
"""Names of modules that stand in several packages, because they are the same kind of thing."""


def test_a_module_name_stands_for_one_thing() -> None:
    names = Counter(path.stem for path in FILES)
    assert {name for name, count in names.items() if count > 1} <= ALIKE.keys()


def test_pynvml_is_known_to_one_module() -> None:
    users = {
        path.name
        for path in FILES
        if "pynvml" in path.read_text(encoding="utf-8") and "import pynvml" in path.read_text(encoding="utf-8")
    }
    assert users == {"nvml.py"}


def test_torch_is_loaded_by_the_rehearsal_only() -> None:
    # These are text for the trainer's own Python, which wan-train itself never imports.
    children = [SOURCE / "provision/gpu_check_child.py", SOURCE / "preview/drawing/musubi.py"]
    outside = [path for path in FILES if path.parent.name != "rehearsal" and path not in children]
    modules = [".".join(child.relative_to(SOURCE).with_suffix("").parts) for child in children]
    assert not [path for path in FILES if any(module in word for word in imported(path) for module in modules)]
    users = [path for path in outside if imported(path) & {"torch", "accelerate", "safetensors", "numpy"}]
    assert users == []


def test_no_list_of_tests_costs_the_start_of_torch() -> None:
    """Each process that runs tests imports all of their files."""
    tests = Path(__file__).parents[1]
    files = [path for path in tests.rglob("*.py") if path.parent.name != "harness"]
    lines = {(path.name, line) for path in files for line in path.read_text(encoding="utf-8").splitlines()}
    heavy = ("import torch", "from torch", "import accelerate", "from accelerate", "from safetensors.torch")
    assert {found for found in lines if found[1].startswith(heavy)} == set()


SEED = {
    "xformers": True,
    "mixed_precision": "fp16",
    "fp8_base": True,
    "optimizer_type": "adamw",
    "optimizer_args": ["weight_decay=0.1"],
    "learning_rate": 3e-4,
    "gradient_checkpointing": True,
    "gradient_accumulation_steps": 1,
    "max_data_loader_n_workers": 2,
    "num_cpu_threads_per_process": 1,
    "network_module": "networks.lora_wan",
    "network_dim": 16,
    "network_alpha": 16,
    "timestep_sampling": "shift",
    "discrete_flow_shift": 1.0,
    "preserve_distribution_shape": True,
    "max_train_epochs": 100,
    "save_every_n_epochs": 100,
    "seed": 5,
    "max_grad_norm": 0,
    "lr_scheduler": "polynomial",
    "lr_scheduler_power": 8,
    "lr_scheduler_min_lr_ratio": 5e-5,
}


@pytest.mark.parametrize("name", ["t2v-a14b", "i2v-a14b"])
def test_shipped_recipes_have_the_guides_values(name: str) -> None:
    data = tomllib.loads((shipped_configs() / "recipes" / f"{name}.toml").read_text(encoding="utf-8"))
    # The guide's xformers, where it works.
    assert data["training"].pop("attention") == "auto"
    assert data["training"] == {name: value for name, value in SEED.items() if name != "xformers"}


def test_the_shipped_dataset_has_the_guides_values() -> None:
    data = tomllib.loads((shipped_configs() / "dataset.toml").read_text(encoding="utf-8"))
    assert data["general"] == {
        "resolution": [960, 960],
        "caption_extension": ".txt",
        "batch_size": 1,
        "enable_bucket": True,
        "bucket_no_upscale": False,
    }
    assert data["datasets"][0]["num_repeats"] == 1


@pytest.mark.parametrize("path", sorted(shipped_configs().rglob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_file_is_toml_with_a_word_of_explanation(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert tomllib.loads(text)
    assert text.startswith("#")
