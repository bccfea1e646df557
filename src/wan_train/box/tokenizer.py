"""The T5 tokenizer in the Hugging Face cache, put there and proved by the trainer's own Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wan_train.box.steps import Finding, State, Step
from wan_train.box.work import Work
from wan_train.engine.tokenizer import OFFLINE_ENV, REPO, SUBFOLDER, is_cached

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
        online = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "60"}
        work.run(
            words, what="fetching the T5 tokenizer", env=online, hint="Look at the network, HF_TOKEN and HF_ENDPOINT."
        )
        work.run(words, what="loading the T5 tokenizer without network", env=OFFLINE_ENV)

    return Step(id="tokenizer", title="T5 tokenizer", check=check, apply=apply, needs=("environment",))
