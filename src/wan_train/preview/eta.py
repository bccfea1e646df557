"""The ETA of a drawing, from what this attempt took so far: a pure sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wan_train.preview.job import DrawingEvent
from wan_train.preview.model import Preview
from wan_train.recipe.terms import Expert
from wan_train.run.speeds import item_cost


@dataclass(slots=True, kw_only=True)
class Eta:
    """The work of one attempt: of every cell that it draws, by key, the number of its prompt."""

    preview: Preview
    cells: Mapping[str, int]
    _steps: dict[tuple[int, str], int] = field(default_factory=dict)
    """Of a prompt with an expert; cells with the same LoRA share them and say 0."""
    _stages: set[tuple[str, str]] = field(default_factory=set)
    _drawn: set[str] = field(default_factory=set)
    _units: float = 0.0
    _seconds: float = 0.0
    _load_seconds: float = 0.0
    _loads: int = 0

    def take(self, event: DrawingEvent) -> None:
        prompt = self.cells.get(event.key or "")
        match event.event:
            case "loaded":
                self._loads += 1
                self._load_seconds = event.seconds or 0.0
            case "stage" if prompt is not None and event.key is not None and event.expert is not None:
                self._stages.add((event.key, event.expert))
                if event.steps:
                    self._steps[prompt, event.expert] = event.steps
                    self._units += event.steps * self._cost(prompt)
                    self._seconds += event.seconds or 0.0
            case "cell" if prompt is not None and event.key is not None:
                self._drawn.add(event.key)
                if not self._stages:  # the trainer's own command, which says no more
                    self._units += self._whole(prompt) * self._cost(prompt)
                    self._seconds += event.seconds or 0.0
            case _:
                pass

    def left(self) -> float | None:
        """Seconds to the end; None before anything was timed."""
        if not self._units:
            return None
        rest = sum(self._rest(key, prompt) * self._cost(prompt) for key, prompt in self.cells.items())
        loads = self._load_seconds if self._loads == 1 and not self._has_begun(Expert.LOW) else 0.0
        return rest / self._units * self._seconds + loads

    def _rest(self, key: str, prompt: int) -> int:
        if key in self._drawn:
            return 0
        done = sum(self._steps.get((prompt, expert), 0) for expert in Expert if (key, expert.value) in self._stages)
        return max(0, self._whole(prompt) - done)

    def _has_begun(self, expert: Expert) -> bool:
        return any(own == expert.value for _, own in self._stages)

    def _whole(self, prompt: int) -> int:
        return self.preview.prompts[prompt].steps

    def _cost(self, prompt: int) -> float:
        wanted = self.preview.prompts[prompt]
        return item_cost(wanted.width, wanted.height, wanted.frames)
