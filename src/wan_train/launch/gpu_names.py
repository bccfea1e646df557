"""Names of GPUs, as users type them and as providers write them: `RTX5090`, `H100`, `RTX 5090`, `H100 SXM`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from wan_train.launch.model import GpuWant

KNOWN = (
    "RTX 3090",
    "RTX 3090 Ti",
    "RTX 4090",
    "RTX 5090",
    "RTX A5000",
    "RTX A6000",
    "RTX 5000Ada",
    "RTX 6000Ada",
    "RTX PRO 6000 S",
    "RTX PRO 6000 WS",
    "A10",
    "A40",
    "L4",
    "L40",
    "L40S",
    "A100 PCIE",
    "A100 SXM4",
    "H100 NVL",
    "H100 PCIE",
    "H100 SXM",
    "H200",
    "H200 NVL",
    "B200",
)
"""Cards with 24 GB or more as Vast.ai writes them. Other names are searched as typed."""

_FORMS = frozenset({"NVL", "PCIE", "S", "SXM", "SXM2", "SXM3", "SXM4", "SXM5", "WS"})
"""Trailing words that name a card's form factor, not another card: `H100` matches any H100."""
_MOST_GPUS = 16


def parse_gpus(text: str) -> tuple[GpuWant, ...]:
    """Parse `RTX5090:2,H100:1`; the number defaults to 1. Raises ValueError with a message for the user."""
    wants = []
    for word in text.split(","):
        name, colon, number = word.strip().partition(":")
        name = " ".join(name.replace("_", " ").split())
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 .-]*", name):
            raise ValueError("must be kinds of GPUs such as RTX5090 or RTX5090:2,H100:1")
        if colon and not (number.isascii() and number.isdecimal() and 1 <= int(number) <= _MOST_GPUS):
            raise ValueError(f"the number of GPUs after the colon must be from 1 to {_MOST_GPUS}")
        wants.append(GpuWant(name=name, count=int(number) if colon else 1))
    return tuple(dict.fromkeys(wants))


def is_card(want: str, name: str) -> bool:
    """Whether a card of this name matches `want`: `H100 SXM` matches `H100`, but a 4090D does not match a 4090."""
    words = name.upper().replace("_", " ").split()
    while words:
        if _plain(want) == _plain(" ".join(words)):
            return True
        if words[-1] not in _FORMS:
            return False
        words.pop()
    return False


def names_for(want: str) -> tuple[str, ...]:
    """Provider names that match `want`, or `want` itself if none is known."""
    return tuple(name for name in KNOWN if is_card(want, name)) or (want,)


def same_card(rented: str, driver_name: str) -> bool:
    """Whether a driver's name (`NVIDIA GeForce RTX 5090`, `NVIDIA H100 80GB HBM3`) can be that of a rented card.

    The number and its letters decide: `RTX 5090 Laptop GPU` and `RTX 5090 D` are different cards from `RTX 5090`.
    """
    theirs = _driver_words(driver_name)
    ours = _driver_words(rented)
    if not ours or not theirs:
        return False
    # The provider's `6000Ada` is the driver's `6000 Ada Generation`. Drivers often omit the form factor.
    return "".join(_without_form(ours)) == "".join(_without_form(theirs))


def _driver_words(name: str) -> list[str]:
    text = re.sub(r"(?<=\d)(?=ADA\b)", " ", name.upper().replace("_", " ").replace("-", " "))
    dropped = {
        "NVIDIA",
        "GEFORCE",
        "TESLA",
        "GENERATION",
        "WORKSTATION",
        "SERVER",
        "EDITION",
        "BLACKWELL",
        "HBM3",
        "HBM3E",
    }
    words = [word for word in text.split() if word not in dropped and not re.fullmatch(r"\d+GB", word)]
    # "NVIDIA A40" and "RTX A6000" are both written with and without RTX.
    return [word for word in words if word != "RTX"]


def _without_form(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(word for word in words if word not in _FORMS and word not in {"MAX", "Q"})


def _plain(text: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", text.upper())
