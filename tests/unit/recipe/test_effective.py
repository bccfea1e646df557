"""Layers over a recipe: who wins, who is named, and recipes side by side."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from support.runs import make_recipe, with_settings
from wan_train.engine.capabilities import stored
from wan_train.engine.extra_arguments import TrainerOptions
from wan_train.recipe.adaptation import Card, Machine, adapt
from wan_train.recipe.effective import Layer, effective, resolve, select
from wan_train.recipe.load import load, shipped, to_toml
from wan_train.recipe.model import Origin, Recipe, Source
from wan_train.recipe.terms import Attention, Expert, Task

OPTIONS = TrainerOptions(capabilities=stored("v0.3.4"))
FLAG = Source(origin=Origin.FLAG, text="--flag")
WORDS = Source(origin=Origin.WORDS, text="after `--`")


def written(folder: Path, text: str) -> Recipe:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return load(path, OPTIONS)


def values(recipe: Recipe, name: str) -> list[object]:
    return [getattr(spec.training, name) for spec in recipe.experts]


def sources(recipe: Recipe, name: str) -> list[str | None]:
    return [str(spec.sources[name]) if name in spec.sources else None for spec in recipe.experts]


def test_a_later_layer_wins_and_is_named() -> None:
    recipe = resolve(
        shipped(Task.T2V),
        [
            Layer(source=FLAG, values={"network_dim": 32, "network_args": ("a=1",)}),
            Layer(source=FLAG, values={"network_dim": 8}, expert=Expert.HIGH),
            Layer(source=WORDS, values={"network_args": ("b=2",), "seed": 7}),
        ],
    )
    assert values(recipe, "network_dim") == [8, 32]
    assert values(recipe, "seed") == [7, 7]
    assert values(recipe, "options") == [{"network_args": ("b=2",)}] * 2
    assert sources(recipe, "network_args") == ["after `--`"] * 2
    assert sources(recipe, "learning_rate") == [None, None]


def test_an_option_is_switched_off_again() -> None:
    on = resolve(shipped(Task.T2V), [Layer(source=FLAG, values={"fp8_scaled": True})])
    off = resolve(on, [Layer(source=WORDS, values={"fp8_scaled": False}, expert=Expert.LOW)])
    assert values(off, "options") == [{"fp8_scaled": True}, {}]


def test_attention_auto_is_nobodys_choice() -> None:
    chosen = resolve(shipped(Task.T2V), [Layer(source=FLAG, values={"attention": Attention.SDPA})])
    left = resolve(chosen, [Layer(source=WORDS, values={"attention": Attention.AUTO})])
    assert (sources(chosen, "attention"), sources(left, "attention")) == (["--flag"] * 2, [None] * 2)
    h100 = Card(name="H100", total_bytes=80 * 1024**3, compute_capability=(9, 0))
    for has_xformers, attention in ((True, Attention.XFORMERS), (False, Attention.SDPA)):
        machine = Machine(cards=(h100,), cpus=8, has_xformers=has_xformers, has_flash=False, dit_dtype="F16")
        assert values(adapt(left, machine)[0], "attention") == [attention] * 2


class TestRecipeFile:
    def test_with_a_base_only_what_differs_is_said_and_chosen(self, tmp_path: Path) -> None:
        recipe = written(tmp_path, 'base = "t2v-a14b"\nname = "mine"\n[training]\nlearning_rate = 1e-4\n')
        base = shipped(Task.T2V)
        assert recipe.name == "mine"
        assert [replace(spec, sources={}) for spec in recipe.experts] == [
            replace(spec, sources={}) for spec in with_settings(base, learning_rate=1e-4).experts
        ]
        assert [set(spec.sources) for spec in recipe.experts] == [{"learning_rate"}] * 2

    def test_an_attention_replaces_that_of_the_base(self, tmp_path: Path) -> None:
        recipe = written(tmp_path, 'base = "t2v-a14b"\n[training]\nsdpa = true\n')
        assert values(recipe, "attention") == [Attention.SDPA] * 2
        assert sources(recipe, "attention") == ["recipe mine.toml"] * 2

    def test_the_order_within_a_file(self, tmp_path: Path) -> None:
        """[training], then a config file, then the other words of passthrough, then the table of the expert."""
        (tmp_path / "c.toml").write_text("seed = 2\nnetwork_dim = 2\nnetwork_alpha = 2\nlr_warmup_steps = 2\n")
        recipe = written(
            tmp_path,
            'base = "t2v-a14b"\npassthrough = ["--config_file", "c", "--network_dim", "3", "--network_alpha", "3"]\n'
            "[training]\nseed = 1\nnetwork_dim = 1\nnetwork_alpha = 1\nlr_warmup_steps = 1\nmax_train_epochs = 1\n"
            "[low.training]\nnetwork_alpha = 4\n",
        )
        assert values(recipe, "max_train_epochs") == [1, 1]
        assert values(recipe, "lr_warmup_steps") == values(recipe, "seed") == [2, 2]
        assert values(recipe, "network_dim") == [3, 3]
        assert values(recipe, "network_alpha") == [3, 4]
        assert sources(recipe, "seed") == [f"config file {tmp_path / 'c.toml'}"] * 2
        assert sources(recipe, "network_dim") == ["recipe mine.toml"] * 2

    def test_required_keys_may_stand_with_each_expert(self, tmp_path: Path) -> None:
        recipe = with_settings(make_recipe()[0], Expert.HIGH, network_dim=4)
        text = to_toml(recipe)
        assert "network_dim" not in tomllib.loads(text)["training"]
        assert values(written(tmp_path, text), "network_dim") == [4, 16]

    @pytest.mark.parametrize("experts", [(Expert.HIGH, Expert.LOW), (Expert.LOW,)])
    def test_what_was_trained_reads_back(self, experts: tuple[Expert, ...], tmp_path: Path) -> None:
        recipe = select(make_recipe()[0], experts)
        recipe = with_settings(recipe, network_args=("a=1", "b=é"), fp8_scaled=True, lr_decay_steps=0.25)
        recipe = with_settings(
            recipe, Expert.LOW, lr_warmup_steps=0.1, network_weights="/w", learning_rate=1e-5, vae_cache_cpu=True
        )
        again = written(tmp_path, to_toml(recipe))
        assert [replace(spec, sources={}) for spec in again.experts] == [
            replace(spec, sources={}) for spec in recipe.experts
        ]


def test_recipes_side_by_side() -> None:
    first = shipped(Task.T2V)
    second = with_settings(with_settings(first, network_args=("a=1",)), Expert.LOW, network_dim=32)
    rows = {row.label: row.values for row in effective([first, second]) if row.differs}
    assert rows == {"network_args": (None, "a=1"), "network_dim (low)": ("16", "32")}
    assert not [row for row in effective([first, first]) if row.differs]
    assert len({row.label for row in effective([first, second])}) == len(list(effective([first, second])))
