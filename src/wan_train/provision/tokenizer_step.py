"""The T5 tokenizer in the Hugging Face cache, put there and proved by the trainer's own Python."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from pathlib import Path

from wan_train.base.errors import NotReadyError
from wan_train.engine.failures import Cause
from wan_train.engine.failures.diagnosing import diagnose
from wan_train.engine.tokenizer import HUB_ENV, OFFLINE_ENV, REPO, SUBFOLDER, is_cached
from wan_train.provision.hub import variable_problem
from wan_train.provision.steps import Finding, State, Step
from wan_train.provision.work import Work

# The call of the trainer itself (wan/modules/t5.py), so that exactly what it needs is fetched.
_LOAD = """
import sys
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1], subfolder=sys.argv[2])
"""


def tokenizer_step(python: Callable[[], Path]) -> Step:
    def check() -> Finding:
        if is_cached():
            return Finding(state=State.READY, detail="the T5 tokenizer is in the Hugging Face cache")
        return Finding(state=State.MISSING, detail="the T5 tokenizer is not in the Hugging Face cache")

    def apply(work: Work) -> None:
        words = [str(python()), "-c", _LOAD, REPO, SUBFOLDER]
        what = "fetching the T5 tokenizer"
        unusable = variable_problem(os.environ)
        if unusable is not None:
            raise NotReadyError(f"{what} failed: {unusable.reason}", hint=unusable.hint)
        # The numbers replace those of the environment, which are judged when the library is imported.
        online = {**HUB_ENV, "HF_HUB_DOWNLOAD_TIMEOUT": "60", "HF_HUB_ETAG_TIMEOUT": "30"}
        code, tail = work.run(words, what=what, env=online, check=False)
        if code != 0:
            found = diagnose(textwrap.dedent(tail))
            known = found.cause is not Cause.UNKNOWN
            reason = f" {found.meaning}:" if known else ""
            hint = found.advice if known else "Look at the network, HF_TOKEN and HF_ENDPOINT."
            raise NotReadyError(f"{what} failed:{reason}{tail}", hint=hint)
        work.run(words, what="loading the T5 tokenizer without network", env=OFFLINE_ENV)

    return Step(id="tokenizer", title="T5 tokenizer", check=check, apply=apply, needs=("environment",))
