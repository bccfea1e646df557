"""The field's terms as enums: tasks, experts, attention implementations, dtypes."""

from __future__ import annotations

from enum import StrEnum


class Task(StrEnum):
    """What the finished LoRA is for; the value is musubi-tuner's `--task`."""

    T2V = "t2v-A14B"
    I2V = "i2v-A14B"

    @property
    def word(self) -> str:
        """The short form in options, model names and file names: `t2v` or `i2v`."""
        return self.value.removesuffix("-A14B")

    @property
    def words(self) -> str:
        """The task as shown to the user."""
        match self:
            case Task.T2V:
                return "text to video"
            case Task.I2V:
                return "image to video"


class Expert(StrEnum):
    """One of the two diffusion transformers of Wan 2.2 A14B."""

    HIGH = "high"
    LOW = "low"

    @property
    def label(self) -> str:
        """The expert's name inside file names: `HighNoise` or `LowNoise`."""
        match self:
            case Expert.HIGH:
                return "HighNoise"
            case Expert.LOW:
                return "LowNoise"


BLOCKS = 40
"""Transformer blocks of one Wan 2.2 A14B expert. The trainer can swap all but one of them to RAM."""


class Attention(StrEnum):
    """Attention implementation; the value is the one on wan-train's command line. AUTO leaves it to the machine."""

    AUTO = "auto"
    SDPA = "sdpa"
    XFORMERS = "xformers"
    FLASH = "flash"
    FLASH3 = "flash3"
    SAGE = "sage"


class EngineKind(StrEnum):
    """Which trainer runs: the real one or the embedded tiny one."""

    MUSUBI = "musubi"
    REHEARSAL = "rehearsal"


class Preset(StrEnum):
    """Settings for one kind of subject; configs/presets has a file for each, with its sources."""

    GUIDE = "guide"
    CHARACTER = "character"
    STYLE = "style"
    MOTION = "motion"
