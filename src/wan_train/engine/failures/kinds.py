"""One kind of failure: the pattern of its exception, its meaning and the advice."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wan_train.base.text import one_line
from wan_train.engine.failures import Cause, Diagnosis
from wan_train.engine.failures.log_end import Raised

NEW_RUN = "Start a new run with the right value; `wan-train resume` keeps the wrong one."
"""Advice for settings that the user chose: they are in the plan, and every attempt uses them."""

_LONGEST_WORD = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """`pattern` is searched in an exception's `type: text`. `meaning` and `advice` may use its named groups.

    `at`: a pattern that a frame of the traceback (`file function source`) must match too. `wrapper`: a symptom that
    counts only if nothing else in the traceback is known. `reasons`: searched in all lines if this kind fits, because
    the reason was printed, not raised. `facts`: makes more fields from the match.
    """

    pattern: re.Pattern[str]
    cause: Cause
    meaning: str
    advice: str
    at: re.Pattern[str] | None = None
    wrapper: bool = False
    reasons: tuple[Kind, ...] = ()
    facts: Callable[[re.Match[str]], Mapping[str, str]] | None = None
    seconds: Callable[[re.Match[str]], float | None] | None = None

    def fits(self, raised: Raised) -> re.Match[str] | None:
        found = self.pattern.search(raised.whole)
        if found is None or self.at is None:
            return found
        places = (f"{frame.file} {frame.function} {frame.source}" for frame in raised.frames)
        return found if any(self.at.search(place) for place in places) else None

    def says(self, found: re.Match[str], evidence: str) -> Diagnosis:
        words = {name: value or "" for name, value in found.groupdict().items()}
        words |= self.facts(found) if self.facts is not None else {}
        safe = {name: one_line(value, _LONGEST_WORD) for name, value in words.items()}
        return Diagnosis(
            cause=self.cause,
            meaning=self.meaning.format(**safe) if safe else self.meaning,
            advice=self.advice.format(**safe) if safe else self.advice,
            evidence=evidence,
            retry_after=self.seconds(found) if self.seconds is not None else None,
        )


def kind(
    pattern: str,
    cause: Cause,
    meaning: str,
    advice: str,
    *,
    at: str | None = None,
    wrapper: bool = False,
    reasons: tuple[Kind, ...] = (),
    facts: Callable[[re.Match[str]], Mapping[str, str]] | None = None,
    seconds: Callable[[re.Match[str]], float | None] | None = None,
) -> Kind:
    return Kind(
        pattern=re.compile(pattern),
        cause=cause,
        meaning=meaning,
        advice=advice,
        at=re.compile(at) if at is not None else None,
        wrapper=wrapper,
        reasons=reasons,
        facts=facts,
        seconds=seconds,
    )
