"""Explain what the trainer's own functions raised for a setting, with the valid values."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wan_train.base.text import one_line
from wan_train.engine.failures.environment import pip_name
from wan_train.engine.trainer import Trainer
from wan_train.recipe.model import Training, settings_of

# What the trainer or a library raises for invalid user values. Other errors may be due to a missing GPU.
_REFUSALS = frozenset({
    "AssertionError", "AttributeError", "IndexError", "KeyError", "SyntaxError", "TypeError", "ValueError",
})  # fmt: skip
_OF_A_GPU = ("cuda", "gpu", "nvidia", "triton")
_FINDS_NOTHING = "no lora modules found"
_SAYS_ENOUGH = frozenset({"ValueError", "RuntimeError", "ImportError", "ModuleNotFoundError", "AssertionError"})

_NO_PACKAGES = frozenset({"networks", "torch", "musubi_tuner"})


@dataclass(slots=True, kw_only=True)
class Findings:
    """Problems as (setting, text), hints, and notes."""

    problems: list[tuple[str, str]] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def explain(
    failure: Mapping[str, Any], training: Training, trainer: Trainer, offered: Mapping[str, Any], found: Findings
) -> None:
    """Add a failure to `found`: a problem, or a note if this check may have caused it, not the user.

    `failure` and `offered` are from `settings_check_child.py`.
    """
    _Explanation(failure, training, trainer, offered, found).add()


def quoted(value: object) -> str:
    """A value between quotation marks, safe to print."""
    return one_line(f"'{value}'")


def _close(name: str, optimizers: Sequence[str]) -> list[str]:
    """Up to three names that differ only in case or a letter."""
    lower = {each.lower(): each for each in optimizers}
    return [one_line(lower[each]) for each in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.75)]


class _Explanation:
    def __init__(
        self,
        failure: Mapping[str, Any],
        training: Training,
        trainer: Trainer,
        offered: Mapping[str, Any],
        found: Findings,
    ) -> None:
        self._training = training
        self._version = f"musubi-tuner {trainer.version}"
        self._offered = offered
        self._found = found
        self._stage, self._kind = str(failure["stage"]), str(failure["kind"])
        self._missing: str | None = failure["missing"]
        self._text = one_line(str(failure["text"]), limit=400)
        self._said = self._text if self._text and self._kind in _SAYS_ENOUGH else f"{self._kind}: {self._text}"
        if "unexpected keyword argument" in self._text and failure["takes"]:
            self._said = f"{self._text}. It takes {one_line(', '.join(map(str, failure['takes'])), limit=400)}"

    def add(self) -> None:
        package = self._package()
        if package is None and not self._is_of_the_user():
            what, why = self._stage, self._said
            if self._stage == "trainer":
                what, why = "optimizer, network and schedule", f"{self._version} is built in another way"
            self._found.notes.append(f"{what} could not be checked before the start: {why}")
            return
        setting = self._setting()
        called = f"{setting} {quoted(self._named())}"
        if package is not None:
            self._problem(setting, f"{called}: {package} is not installed in the trainer's environment")
            self._found.hints.append(f"Install it there: wan-train provision --with {package}")
            return
        match setting:
            case "optimizer_type":
                self._optimizer(called)
            case "network_module":
                self._network(called)
            case _:
                self._scheduler(setting, called)

    def _optimizer(self, called: str) -> None:
        offered, setting = self._offered, "optimizer_type"
        if self._missing is not None or (self._kind == "AttributeError" and "has no attribute" in self._text):
            close = ", ".join(_close(self._named(), offered["optimizers"]))
            where = "its package has no such class" if "." in self._named() else "torch.optim has no such class"
            self._problem(
                setting,
                f"{called}: {where}{f' (close: {close})' if close else ''}. Valid: adamw, adamw8bit, adafactor, a "
                "class of torch.optim by its exact name, or package.Class such as prodigyopt.Prodigy",
            )
            if "." not in self._named():
                self._found.hints.append(f"Classes of torch.optim: {', '.join(map(one_line, offered['optimizers']))}")
        elif "closure" in self._text:
            self._problem(setting, f"{called} needs a closure, which the trainer does not give")
        else:
            self._problem(setting, f"{called}{self._with('optimizer_args')}: {self._said}")

    def _network(self, called: str) -> None:
        if self._missing is not None or (self._kind == "AttributeError" and "create_network" in self._text):
            modules = ", ".join(map(one_line, self._offered["modules"]))
            self._problem("network_module", f"{called} does not exist in {self._version}. It has {modules}")
        elif _FINDS_NOTHING in self._text.lower():
            self._problem("network_module", f"{called} finds nothing to train in Wan 2.2")
        else:
            self._problem("network_module", f"{called}{self._with('network_args', 'network_dropout')}: {self._said}")

    def _scheduler(self, setting: str, called: str) -> None:
        schedulers = ", ".join(map(one_line, self._offered["schedulers"]))
        if "get_dummy_scheduler" in self._text:
            optimizer = quoted(self._training.optimizer_type)
            self._problem(
                "optimizer_type",
                f"optimizer_type {optimizer}: {self._version} cannot train with this schedule-free class",
            )
            self._found.hints.append("A version that can: wan-train provision --engine v0.3.4")
        elif "is not a valid SchedulerType" in self._text or "reduce_lr_on_plateau" in called:
            self._problem(setting, f"{called} is not one of {schedulers}")
        elif "does not require `num_warmup_steps`" in self._text:
            instead = "; constant_with_warmup takes one" if self._named() == "constant" else ""
            self._problem(setting, f"{called} takes no warm-up{self._with('lr_warmup_steps')}{instead}")
        else:
            given = self._with("lr_scheduler_args", "lr_warmup_steps", "lr_decay_steps")
            self._problem(setting, f"{called}{given}: {self._said}")

    def _problem(self, setting: str, text: str) -> None:
        self._found.problems.append((setting, text))

    def _setting(self) -> str:
        is_own = self._stage == "lr_scheduler" and "lr_scheduler_type" in self._training.options
        return "lr_scheduler_type" if is_own else self._stage

    def _named(self) -> str:
        return str(settings_of(self._training).get(self._setting(), ""))

    def _package(self) -> str | None:
        """The missing package that a setting names; None if the failure has another reason."""
        if self._stage == "optimizer_type" and self._kind == "ImportError" and "bitsandbytes" in self._text:
            return "bitsandbytes"
        top = self._named().partition(".")[0] if self._missing is not None else ""
        is_missing = bool(top) and top == self._missing and top.isidentifier() and top not in _NO_PACKAGES
        return pip_name(top) if is_missing else None

    def _is_of_the_user(self) -> bool:
        if self._stage == "trainer":
            return False
        if self._missing is not None:
            return f"{self._named()}.".startswith(f"{self._missing}.")
        if self._stage == "network_module" and _FINDS_NOTHING in self._text.lower():
            return True
        return self._kind in _REFUSALS and not any(word in self._text.lower() for word in _OF_A_GPU)

    def _with(self, *names: str) -> str:
        """The settings of these names that have a value, as text for a message."""
        said = []
        for name in names:
            value = settings_of(self._training).get(name)
            if value:
                said.append(f"{name} {' '.join(map(str, value)) if isinstance(value, tuple) else value}")
        return f" with {one_line(', '.join(said))}" if said else ""
