"""Recipes from files: every wrong key by its path, ranges of overrides, and back to a file."""

from __future__ import annotations

import tempfile
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wan_train.base.errors import BadInputError
from wan_train.cli.options import flag_of
from wan_train.engine.capabilities import stored
from wan_train.engine.extra_arguments import TrainerOptions
from wan_train.recipe import load as recipes
from wan_train.recipe.effective import select
from wan_train.recipe.load import load_preset, override, preset_path, preset_summary, shipped_path, to_toml
from wan_train.recipe.model import Origin, Recipe, Source, format_number
from wan_train.recipe.terms import Attention, Expert, Preset, Task

OPTIONS = TrainerOptions(capabilities=stored("v0.3.4"))


def load(path: Path) -> Recipe:
    return recipes.load(path, OPTIONS)


def shipped(task: Task = Task.T2V) -> dict[str, Any]:
    name = "t2v-a14b" if task is Task.T2V else "i2v-a14b"
    return tomllib.loads(shipped_path(name).read_text(encoding="utf-8"))


def written(path: Path, data: dict[str, Any]) -> Path:
    path.write_text(tomlkit.dumps(data), encoding="utf-8")
    return path


def problems_of(path: Path) -> str:
    with pytest.raises(BadInputError) as caught:
        load(path)
    assert str(path) in caught.value.message
    return caught.value.message


def changed(data: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    *tables, last = key.split(".")
    table = data
    for name in tables:
        table = table[name]
    if value is ...:
        del table[last]
    else:
        table[last] = value
    return data


class TestShipped:
    @pytest.mark.parametrize("task", list(Task))
    def test_it_loads_and_hands_over_at_the_tasks_boundary(self, task: Task) -> None:
        recipe = recipes.shipped(task)
        assert recipe.task is task
        assert (
            recipe.spec(Expert.HIGH).min_timestep
            == recipe.spec(Expert.LOW).max_timestep
            == {Task.T2V: 875, Task.I2V: 900}[task]
        )
        assert [spec.sources for spec in recipe.experts] == [{}, {}]

    def test_a_recipe_of_ones_own_is_a_choice(self, tmp_path: Path) -> None:
        recipe = load(written(tmp_path / "mine.toml", shipped()))
        for spec in recipe.experts:
            assert spec.sources["learning_rate"] == Source(origin=Origin.RECIPE, text="recipe mine.toml")
            assert "attention" not in spec.sources, "auto is nobody's choice"

    def test_a_byte_order_mark_is_no_problem(self, tmp_path: Path) -> None:
        path = tmp_path / "windows.toml"
        path.write_bytes(b"\xef\xbb\xbf" + tomlkit.dumps(shipped()).replace("\n", "\r\n").encode())
        assert load(path).task is Task.T2V


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("training.learning_rate", "3e-4", "training.learning_rate must be a number"),
        ("training.learning_rate", 0, "training.learning_rate must be from"),
        ("training.learning_rate", float("nan"), "training.learning_rate must be a number"),
        ("training.learning_rate", 10**400, "training.learning_rate must be"),
        ("training.learning_rate", True, "training.learning_rate must be a number"),
        ("training.network_dim", 16.5, "training.network_dim must be a whole number"),
        ("training.network_dim", True, "training.network_dim must be a whole number"),
        ("training.network_dim", 0, "training.network_dim must be from 1"),
        ("training.blocks_to_swap", 40, "training.blocks_to_swap must be from 0 to 39"),
        ("training.max_train_epochs", -1, "training.max_train_epochs must be from 1"),
        ("training.seed", 2**32, "training.seed must be from 0"),
        ("training.fp8_base", 1, "training.fp8_base must be true or false"),
        ("training.optimizer_args", "weight_decay=0.1", "training.optimizer_args must be a list of strings"),
        ("training.optimizer_args", [1], "training.optimizer_args must be a list of strings"),
        ("training.optimizer_type", "", "training.optimizer_type must be a text"),
        ("training.mixed_precision", "fp17", "training.mixed_precision must be one of no, fp16, bf16"),
        ("training.network_dim", ..., "training.network_dim is missing"),
        ("training.netwrok_dim", 16, "unknown key training.netwrok_dim (did you mean training.network_dim?)"),
        ("training.attention", ..., "training: one of attention, sdpa"),
        ("training.attention", "fast", "training.attention must be one of auto, sdpa"),
        ("training.sdpa", True, "training.attention: only one of"),
        ("training.sdpa", 1, "training.sdpa must be true or false"),
        ("training.network_args", "a=1", "training.network_args must be a list"),
        ("training.output_dir", "/x", "training.output_dir cannot be given to the trainer"),
        ("training.dim_from_weights", True, "training.dim_from_weights fails"),
        ("high.training", {"network_dim": "x"}, "high.training.network_dim must be a whole number"),
        ("high.training", {"save_every_n_epochs": 5}, "high.training.save_every_n_epochs applies to both experts"),
        ("high.training", 5, "high.training must be a table"),
        ("base", "no_such", "base must be one of i2v-a14b, t2v-a14b, not 'no_such'"),
        ("passthrough", ["--network_dim", "abc"], "passthrough: --network_dim must be a whole number"),
        ("training", 5, "training must be a table"),
        ("training", ..., "training.network_dim is missing"),
        ("task", "t2v", "task must be one of"),
        ("task", ..., "task must be one of"),
        ("taks", "x", "unknown key taks (did you mean task?)"),
        ("models.t5", 5, "models.t5 must be"),
        ("models.vae", ..., "models.vae must be"),
        ("models.clip", "x", "unknown key models.clip"),
        ("models", [], "models must be a table"),
        ("high.dit", "", "high.dit must be"),
        ("high.min_timestep", 1001, "high.min_timestep must be a whole number from 0 to 1000"),
        ("high.min_timestep", 875.0, "high.min_timestep must be a whole number"),
        ("high.min_timestep", 1000, "high.min_timestep must be below high.max_timestep"),
        ("high.min_timestep", 900, "low.max_timestep (875) must equal high.min_timestep (900)"),
        ("low", 7, "low must be a table"),
        ("low.max_timestep", ..., "low.max_timestep must be a whole number"),
        ("passthrough", "--x", "passthrough must be a list of strings"),
        ("passthrough", [1], "passthrough must be a list of strings"),
        ("\x1b[31m", 1, "\\x1b"),
    ],
)
def test_what_is_wrong_is_told_by_its_key(key: str, value: object, said: str, tmp_path: Path) -> None:
    message = problems_of(written(tmp_path / "mine.toml", changed(shipped(), key, value)))
    assert said in message
    assert "\x1b" not in message


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    data = changed(changed(changed(shipped(), "training.seed", "x"), "high.dit", 5), "training.unknown", 1)
    message = problems_of(written(tmp_path / "mine.toml", data))
    assert len(message.splitlines()) == 4
    assert all(key in message for key in ("training.seed", "high.dit", "training.unknown"))


def test_neither_expert(tmp_path: Path) -> None:
    data = changed(changed(shipped(), "high", ...), "low", ...)
    assert "neither [high] nor [low]" in problems_of(written(tmp_path / "mine.toml", data))


@pytest.mark.parametrize("expert", list(Expert))
def test_one_expert_alone(expert: Expert, tmp_path: Path) -> None:
    other = Expert.LOW if expert is Expert.HIGH else Expert.HIGH
    recipe = load(written(tmp_path / "mine.toml", changed(shipped(), other.value, ...)))
    assert [spec.expert for spec in recipe.experts] == [expert]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[",
        b"\xff\xfe",
        b"a = " + b"[" * 5000,
        b"training.seed = " + b"9" * 5000,
        b"\0",
        b"[training]\n[training]",
    ],
)
def test_what_is_no_recipe(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    problems_of(path)


def test_missing_files_and_directories(tmp_path: Path) -> None:
    assert "there is no recipe file" in problems_of(tmp_path / "nothing.toml")
    assert "cannot be read" in problems_of(tmp_path)


JSON_LIKE = st.recursive(
    st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8) | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=4,
)
KEYS = [
    *shipped(),
    *(f"{table}.{key}" for table in ("models", "high", "low", "training") for key in shipped()[table]),
    "training.blocks_to_swap",
    "training.lr_warmup_steps",
    "passthrough",
    "new",
]


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.lists(st.tuples(st.sampled_from(KEYS), st.just(...) | JSON_LIKE), min_size=1, max_size=3))
def test_any_recipe_loads_or_is_refused_in_words(changes: list[tuple[str, object]]) -> None:
    data = shipped()
    for key, value in changes:
        try:
            data = changed(data, key, value)
        except (KeyError, TypeError):
            continue
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "mine.toml"
        try:
            path.write_text(tomlkit.dumps(data), encoding="utf-8")
        except (ValueError, UnicodeEncodeError):
            return
        try:
            recipe = load(path)
        except BadInputError:
            return
        assert recipe.experts


class TestOverride:
    RECIPE = recipes.shipped(Task.T2V)

    def test_given_values_and_their_source(self) -> None:
        recipe = override(self.RECIPE, {"network_dim": 32, "seed": None}, flag_of=flag_of)
        for spec in recipe.experts:
            assert (spec.training.network_dim, spec.training.seed) == (32, 5)
            assert spec.sources == {"network_dim": Source(origin=Origin.FLAG, text="--rank")}

    @pytest.mark.parametrize(
        ("name", "good", "bad"),
        [
            ("learning_rate", (1e-9, 1.0), (0, -1e-4, 1.5, float("nan"), float("inf"))),
            ("network_dim", (1, 1024), (0, 1025)),
            ("network_alpha", (0.001, 4096), (0, 5000)),
            ("max_train_epochs", (1, 100_000), (0, 100_001)),
            ("save_every_n_epochs", (1, 100_000), (0,)),
            ("blocks_to_swap", (0, 39), (-1, 40)),
            ("seed", (0, 2**32 - 1), (-1, 2**32)),
        ],
    )
    def test_ranges(self, name: str, good: tuple[float, ...], bad: tuple[float, ...]) -> None:
        for value in good:
            assert getattr(override(self.RECIPE, {name: value}).experts[0].training, name) == value
        for value in bad:
            with pytest.raises(BadInputError, match=r"must be (from|a number)"):
                override(self.RECIPE, {name: value})

    def test_experts_are_chosen(self) -> None:
        assert [spec.expert for spec in select(self.RECIPE, (Expert.LOW,)).experts] == [Expert.LOW]


def same(first: Recipe, second: Recipe) -> bool:
    unsourced = [
        replace(recipe, experts=tuple(replace(spec, sources={}) for spec in recipe.experts))
        for recipe in (first, second)
    ]
    return unsourced[0] == unsourced[1]


class TestBackToAFile:
    @pytest.mark.parametrize("task", list(Task))
    @pytest.mark.parametrize("attention", list(Attention))
    @pytest.mark.parametrize("experts", [(Expert.HIGH, Expert.LOW), (Expert.LOW,)])
    def test_there_and_back(
        self, task: Task, attention: Attention, experts: tuple[Expert, ...], tmp_path: Path
    ) -> None:
        recipe = select(recipes.shipped(task), experts)
        changes = {"attention": attention, "blocks_to_swap": 10, "lr_warmup_steps": 5, "learning_rate": 1.25e-5}
        recipe = override(recipe, changes)
        path = tmp_path / "recipe.toml"
        path.write_text(to_toml(recipe), encoding="utf-8")
        assert same(load(path), recipe)

    def test_words_of_any_kind(self, tmp_path: Path) -> None:
        data = changed(shipped(), "passthrough", ["--network_args", 'a="b\\c"', "夜\n\t"])
        recipe = load(written(tmp_path / "a.toml", data))
        (tmp_path / "b.toml").write_text(to_toml(recipe), encoding="utf-8")
        for made in (recipe, load(tmp_path / "b.toml")):
            assert made.experts[0].training.options == {"network_args": ('a="b\\c"', "夜\n\t")}


class TestNumbers:
    @given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53))
    def test_a_number_reads_back_as_itself(self, number: float) -> None:
        text = format_number(number)
        assert float(text) == number
        assert type(number)(float(text)) == number
        assert " " not in text

    @pytest.mark.parametrize(
        ("number", "text"),
        [
            (3e-4, "3e-4"),
            (1.0, "1.0"),
            (8, "8"),
            (5e-5, "5e-5"),
            (0, "0"),
            (0.1, "0.1"),
            (1e-7, "1e-7"),
            (16, "16"),
            (1.5e-5, "1.5e-5"),
        ],
    )
    def test_numbers_as_people_write_them(self, number: float, text: str) -> None:
        assert format_number(number) == text


@pytest.mark.parametrize("version", ["d0a1930", "v0.3.4"])
@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("preset", list(Preset))
def test_every_preset_is_a_whole_recipe_whose_choices_name_it(preset: Preset, task: Task, version: str) -> None:
    found = load_preset(preset, task, TrainerOptions(capabilities=stored(version)))
    base = recipes.shipped(task)
    assert (found.task, found.t5, found.vae) == (task, base.t5, base.vae)
    assert {spec.expert: spec.dit for spec in found.experts} == {spec.expert: spec.dit for spec in base.experts}
    assert len(preset_summary(preset)) <= 72
    if preset is Preset.GUIDE:
        assert found == base
        return
    written_keys = tomllib.loads(preset_path(preset).read_text(encoding="utf-8"))
    for spec in found.experts:
        assert spec.sources
        assert {source.text for source in spec.sources.values()} == {f"preset {preset}"}
        for key, value in written_keys[spec.expert.value]["training"].items():
            assert getattr(spec.training, key) == value
    shift = written_keys.get(task.value[:3], {}).get("training", {}).get("discrete_flow_shift", 1.0)
    assert {spec.training.discrete_flow_shift for spec in found.experts} == {shift}


def test_the_presets_are_the_files() -> None:
    assert sorted(path.stem for path in preset_path(Preset.GUIDE).parent.glob("*.toml")) == sorted(Preset)
