"""Words for the training script: read as argparse would, typed, or refused in words."""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.engine.capabilities import Option, Script, stored
from wan_train.engine.extra_arguments import OWN_OPTIONS, TrainerOptions, from_text, parse
from wan_train.recipe.effective import Layer
from wan_train.recipe.model import Origin, Source
from wan_train.recipe.terms import Attention, Expert

VERSIONS = ("d0a1930", "v0.3.4")


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ((), {}),
        (("--guidance_scale", "1.5"), {"guidance_scale": 1.5}),
        (("--guidance_scale=1.5",), {"guidance_scale": 1.5}),
        (("--guidance_scale", "-1"), {"guidance_scale": -1.0}),
        (("--guidance_scale", "-.5"), {"guidance_scale": -0.5}),
        (("--guidance_scale=-1e-5",), {"guidance_scale": -1e-5}),
        (("--learning_rate", "1e-4", "--network_dim=4"), {"learning_rate": 1e-4, "network_dim": 4}),
        (("--network_dim", "4", "--network_dim", "8"), {"network_dim": 8}),
        (("--network_args", "conv_dim=4", "conv_alpha=1"), {"network_args": ("conv_dim=4", "conv_alpha=1")}),
        (
            ("--network_args", "a=1", "--persistent_data_loader_workers"),
            {"network_args": ("a=1",), "persistent_data_loader_workers": True},
        ),
        (("--network_args",), {"network_args": ()}),
        (("--base_weights_multiplier", "0.5", "-1"), {"base_weights_multiplier": (0.5, -1.0)}),
        (("--weighting_scheme=mode",), {"weighting_scheme": "mode"}),
        (
            ("--network_weights", "/models/with space.safetensors"),
            {"network_weights": "/models/with space.safetensors"},
        ),
        (("--lr_warmup_steps", "100"), {"lr_warmup_steps": 100}),
        (("--lr_warmup_steps", "0.1"), {"lr_warmup_steps": 0.1}),
        (("--lr_warmup_steps=10%",), {"lr_warmup_steps": 0.1}),
        (("--learning", "1e-4"), {"learning_rate": 1e-4}),
        (("--learning=1e-4",), {"learning_rate": 1e-4}),
        (("--sage",), {"sage_attn": True}),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_good_words(words: tuple[str, ...], values: dict[str, object], version: str) -> None:
    found, problems = parse(words, stored(version))
    assert (found, problems) == (values, [])
    assert [type(value) for value in found.values()] == [type(value) for value in values.values()]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--guidence_scale", "1"), "did you mean --guidance_scale?"),
        (("--guidance_scale",), "--guidance_scale needs a value"),
        (("--guidance_scale", "--sdpa"), "--guidance_scale needs a value"),
        (("--guidance_scale", "1", "2"), "'2' is a value without an option"),
        (("--guidance_scale", "inf"), "--guidance_scale must be a number"),
        (("--network_dim", "abc"), "--network_dim must be a whole number, not 'abc'"),
        (("--network_dim=4.5",), "--network_dim must be a whole number, not '4.5'"),
        (("--lr_warmup_steps", "some"), "--lr_warmup_steps must be a number of steps or a fraction"),
        (("--network", "4"), "--network is ambiguous: it matches --network_alpha"),
        (("word",), "'word' is a value without an option"),
        (("-x",), "'-x' is a value without an option"),
        (("--persistent_data_loader_workers", "yes"), "'yes' is a value without an option"),
        (("--persistent_data_loader_workers=yes",), "takes no value"),
        (("--weighting_scheme=none_such",), "--weighting_scheme must be one of"),
        (("--timestep_sampling", "nonsense"), "--timestep_sampling must be one of"),
        (("--",), "unknown option --"),
        (("--\x1b[31m",), "\\x1b"),
    ],
)
def test_bad_words(words: tuple[str, ...], said: str) -> None:
    _, problems = parse(words, stored("d0a1930"))
    assert any(said in problem for problem in problems), problems
    assert "\x1b" not in str(problems)


def test_every_problem_is_told_at_once() -> None:
    _, problems = parse(("--nonsense", "a", "--guidance_scale", "--more_nonsense=3"), stored("d0a1930"))
    assert len(problems) == 3


def test_an_option_of_the_newer_version_only() -> None:
    assert parse(("--save_precision", "bf16"), stored("v0.3.4")) == ({"save_precision": "bf16"}, [])
    assert parse(("--save_precision", "bf16"), stored("d0a1930"))[1]


def argparser(version: str) -> argparse.ArgumentParser:
    kinds = {"int": int, "float": float}
    parser = argparse.ArgumentParser(add_help=False)
    for option in stored(version).options[Script.TRAIN].values():
        more: dict[str, Any] = {"action": "store_true"}
        if option.takes_value:
            more = {"nargs": "*"} if option.many else {}
            more |= {"choices": option.choices} if option.choices else {}
            more |= {"type": kinds[option.kind]} if option.kind in kinds else {}
        parser.add_argument(option.name, default=argparse.SUPPRESS, **more)
    return parser


PARSERS = {version: argparser(version) for version in VERSIONS}
# What people write: options whole, shortened or joined to a value, and values; int_or_float is the trainer's own type.
OPTIONS = [o for o in stored("d0a1930").options[Script.TRAIN].values() if "int_or_float" not in o.kind]
NAMES = st.sampled_from(OPTIONS).flatmap(
    lambda option: st.integers(4, len(option.name)).map(lambda length: option.name[:length]) | st.just(option.name)
)
VALUES = st.sampled_from(["1", "-1", "0.5", "-2.5", "1e-4", "a=1", "word", "fp16", "bf16", "mode", "shift"])
WORD = NAMES | VALUES | st.builds(lambda name, value: f"{name}={value}", NAMES, VALUES)


@given(words=st.lists(WORD, max_size=6))
@pytest.mark.parametrize("version", VERSIONS)
def test_the_words_mean_what_argparse_makes_of_them(version: str, words: list[str]) -> None:
    values, problems = parse(words, stored(version))
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            theirs = vars(PARSERS[version].parse_args(words))
    except SystemExit:
        assert problems
        return
    assert problems == []
    assert values == {name: tuple(value) if isinstance(value, list) else value for name, value in theirs.items()}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("network_dim", "8", 8),
        ("learning_rate", "1e-4", 1e-4),
        ("fp8_base", "false", False),
        ("fp8_scaled", "TRUE", True),
        ("optimizer_args", "weight_decay=0.1 'betas=(0.9, 0.99)'", ("weight_decay=0.1", "betas=(0.9, 0.99)")),
        ("num_cpu_threads_per_process", "2", 2),
        ("no_such", "x", "x"),
    ],
)
def test_values_of_one_expert(name: str, text: str, value: object) -> None:
    assert from_text(name, text, stored("v0.3.4")) == (value, None)


@pytest.mark.parametrize(
    ("name", "text"), [("network_dim", "x"), ("fp8_base", "1"), ("optimizer_args", "'"), ("seed", "")]
)
def test_bad_values_of_one_expert(name: str, text: str) -> None:
    value, problem = from_text(name, text, stored("v0.3.4"))
    assert value is None
    assert problem is not None


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("network_args", ["a=1"], True),
        ("network_args", "a=1", False),
        ("network_args", ["-x"], False),
        ("base_weights_multiplier", [1, 0.5], True),
        ("base_weights_multiplier", ["1"], False),
        ("fp8_scaled", True, True),
        ("fp8_scaled", "yes", False),
        ("guidance_scale", 1, True),
        ("guidance_scale", True, False),
        ("guidance_scale", float("nan"), False),
        ("ddp_timeout", 1.5, False),
        ("weighting_scheme", "mode", True),
        ("weighting_scheme", "other", False),
        ("vae_dtype", 16, False),
    ],
)
def test_values_of_a_file(name: str, value: object, good: bool) -> None:
    read, problem = TrainerOptions(capabilities=stored("v0.3.4")).read(name, value)
    assert (problem is None) is good
    if good:
        assert read == (tuple(value) if isinstance(value, list) else value)


SOURCE = Source(origin=Origin.WORDS, text="the words")


def layers(words: list[str], folder: Path) -> tuple[list[Layer], list[str]]:
    return TrainerOptions(capabilities=stored("v0.3.4")).layers(words, folder=folder, source=SOURCE)


def test_a_config_file_is_read_as_the_trainer_reads_it(tmp_path: Path) -> None:
    """`.toml` is appended, tables are opened and a later key counts more; the words count more than the file."""
    (tmp_path / "mine.toml").write_text(
        'seed = 1\n[a]\nseed = 2\nlr_scheduler = "constant"\nxformers = false\n[b]\nseed = 3\nsdpa = true\n'
    )
    (config, words), problems = layers(["--config_file", "mine", "--seed", "4"], tmp_path)
    assert problems == []
    assert config.values == {"seed": 3, "lr_scheduler": "constant", "attention": Attention.SDPA}
    assert config.source == Source(origin=Origin.CONFIG_FILE, text=f"config file {tmp_path / 'mine.toml'}")
    assert (words.values, words.source) == ({"seed": 4}, SOURCE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learnig_rate = 1e-4", "unknown key mine.toml: learnig_rate (did you mean mine.toml: learning_rate?)"),
        ('learning_rate = "1e-4"', "mine.toml: learning_rate must be a number"),
        ("max_train_epochs = 5", "mine.toml: max_train_epochs cannot be given to the trainer"),
        ("[a]\n[a.b]\nseed = 1", "unknown key mine.toml: b"),
        ("seed = ", "mine.toml cannot be read"),
        (None, "mine.toml cannot be read: No such file"),
    ],
)
def test_what_is_wrong_in_a_config_file(text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "mine.toml").write_text(text)
    _, problems = layers(["--config_file", "mine.toml"], tmp_path)
    assert [problem for problem in problems if said in problem], problems


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dit", "/x"], "--dit cannot be given to the trainer"),
        (["--max_train_epochs=5"], "use --epochs"),
        (["--network_weights=/x", "--dim_from_weights"], "--dim_from_weights fails in every trainer version"),
        (["--wandb_api_key", "x"], "set the environment variable WANDB_API_KEY instead"),
        (["--huggingface_token=x"], "set the environment variable HF_TOKEN instead"),
        (["--sdpa", "--xformers"], "only one of sdpa, xformers"),
        (["--network_dim", "0"], "--network_dim must be from 1 to 1024"),
    ],
)
def test_words_that_are_refused(words: list[str], said: str, tmp_path: Path) -> None:
    _, problems = layers(words, tmp_path)
    assert [problem for problem in problems if said in problem], problems


def test_files_count_from_where_they_were_named(tmp_path: Path) -> None:
    (found,), _ = layers(["--base_weights", "a.safetensors", "/b.safetensors", "--network_weights=c"], tmp_path)
    assert found.values == {
        "base_weights": (f"{tmp_path}/a.safetensors", "/b.safetensors"),
        "network_weights": f"{tmp_path}/c",
    }


def test_a_setting_of_one_expert(tmp_path: Path) -> None:
    options = TrainerOptions(capabilities=stored("v0.3.4"))
    pairs = ["network_dim=8", "--learning_rate = 1e-5", "network_args=a=1 b=2", "attention=sdpa", "fp8_scaled=true"]
    (layer,), problems = options.of_expert(pairs, Expert.HIGH, folder=tmp_path)
    assert problems == []
    assert (layer.expert, str(layer.source)) == (Expert.HIGH, "--high")
    assert layer.values == {
        "network_dim": 8,
        "learning_rate": 1e-5,
        "network_args": ("a=1", "b=2"),
        "attention": Attention.SDPA,
        "fp8_scaled": True,
    }


@pytest.mark.parametrize("pair", ["network_dim", "netwrok_dim=8", "network_dim=x", "output_dir=/x", "sample_prompts=x"])
def test_a_wrong_setting_of_one_expert(pair: str, tmp_path: Path) -> None:
    found, problems = TrainerOptions(capabilities=stored("v0.3.4")).of_expert([pair], Expert.LOW, folder=tmp_path)
    assert found == []
    assert len(problems) == 1
    assert "--low" in problems[0]


def test_what_cannot_be_passed_on() -> None:
    names = TrainerOptions(capabilities=stored("v0.3.4")).names
    assert not OWN_OPTIONS & set(names)
    assert not {"dim_from_weights", "config_file", "network_dim", "sdpa"} & set(names)
    assert "network_args" in names


def test_of_an_unknown_version_only_the_form_is_known() -> None:
    option = Option(name="--x", takes_value=True, many=False, kind="any")
    capabilities = stored("d0a1930")
    other = type(capabilities)(
        version="x",
        options={Script.TRAIN: {"--x": option}},
        drops_uncaptioned=False,
        saves_float32=False,
        trains_schedule_free=True,
        warms_up_from_floor=False,
    )
    assert parse(["--x", "1"], other) == ({"x": "1"}, [])
    assert TrainerOptions(capabilities=other).read("x", 5) == (5, None)
