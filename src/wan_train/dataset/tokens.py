"""How many tokens a caption has for the text encoder, which reads 512 and drops the rest without a word.

Source: T5EncoderModel and HuggingfaceTokenizer in musubi-tuner's wan/modules/t5.py and tokenizers.py at both versions:
text_len 512 with the end mark, truncation, HTML's `&amp;` and the like resolved twice, white space folded. It also has
ftfy repair damaged letters before, which is left out here and can change a count by a token or two.
"""

from __future__ import annotations

import html
import importlib
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

MOST_TOKENS = 512
_ASCII_PER_TOKEN = 4.0
_OTHERS_PER_TOKEN = 1.5


@dataclass(kw_only=True)
class TokenCounter:
    """Counts with the tokenizer in `file` when the `tokenizers` package is installed, else estimates.

    The file is 16 MB and is read only for a caption that may be too long.
    """

    file: Path | None = None

    def too_long(self, text: str) -> str | None:
        """What is wrong with the length of a caption, or None."""
        words = " ".join(html.unescape(html.unescape(text)).split())
        # A token holds at least one byte; each word may bring one for the space before it, and an end mark follows.
        # The tokenizer takes some characters apart first, as this normal form does.
        plain = words if words.isascii() else unicodedata.normalize("NFKC", words)
        if len(plain.encode("utf-8", "replace")) + plain.count(" ") + 2 <= MOST_TOKENS:
            return None
        if self._tokenizer is not None:
            count, how = len(self._tokenizer.encode(words).ids), "{0} tokens"
        else:
            count, how = estimated(words), "about {0} tokens (an estimate)"
        if count <= MOST_TOKENS:
            return None
        return f"has {how.format(count)}; the text encoder reads {MOST_TOKENS}, the rest is not learned"

    @cached_property
    def _tokenizer(self) -> Any | None:  # noqa: ANN401 - the package is optional and brings no types when absent
        if self.file is None:
            return None
        try:
            tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(str(self.file))
        except ImportError:
            return None
        except Exception:  # noqa: BLE001 - the package raises bare Exception for a file that it cannot read
            return None
        # A file may say that it cuts off or fills up by itself.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


def estimated(words: str) -> int:
    """Tokens of a text: English has about four characters in one, Chinese or Japanese one and a half."""
    ascii_characters = sum(character.isascii() for character in words)
    others = len(words) - ascii_characters
    return round(ascii_characters / _ASCII_PER_TOKEN + others / _OTHERS_PER_TOKEN) + 1
