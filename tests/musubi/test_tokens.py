"""Our count of a caption's tokens against the trainer's own tokenizing."""

from __future__ import annotations

import json
import re
from pathlib import Path

from musubi.trainer import Trainer
from support.tokenizers_like_t5 import write
from wan_train.dataset.captions import MOST_TOKENS, TokenCounter

AROUND = range(MOST_TOKENS - 6, MOST_TOKENS + 7)
TEXTS = (
    *("cat " * count for count in AROUND),
    *("cat" * count for count in (127, 128, 170, 171)),
    *("猫 " * count for count in AROUND),
    *("ein Kätzchen\n\n auf  der\tMauer, " * count for count in (10, 20, 30)),
    *("cat &amp;amp; wall &lt;br&gt; " * count for count in (30, 60, 90)),
    *("<extra_id_7> </s> cat " * count for count in (100, 169, 170, 171)),
    *("ﷺ" * count for count in (5, 27, 28, 29, 60)),
    *("㍿ ﬁne " * count for count in (30, 60, 90)),
    *("🐈 cat " * count for count in (160, 170, 171, 260)),
    "x" * 3000,
    "",
)


def test_captions_are_counted_as_the_trainer_does(trainer: Trainer, tmp_path: Path) -> None:
    counter = TokenCounter(file=write(tmp_path / "tokenizer"))

    answers = trainer.ask("count_tokens.py", str(tmp_path / "tokenizer"), stdin=json.dumps(TEXTS))

    different = []
    for text, (whole, read) in zip(TEXTS, answers, strict=True):
        assert read == min(whole, MOST_TOKENS)
        said = counter.too_long(text.strip())
        found = re.match(r"has (\d+) tokens;", said) if said is not None else None
        if (int(found[1]) if found else None) != (whole if whole > MOST_TOKENS else None):
            different.append((text[:40], len(text), whole, said))
    assert different == []
    lengths = {whole for whole, _ in answers}
    assert {MOST_TOKENS, MOST_TOKENS + 1} <= lengths
