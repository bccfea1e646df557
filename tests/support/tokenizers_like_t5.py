"""A small tokenizer like umT5's: pieces with scores, spaces as a mark before words, an end mark."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

_SPECIAL = ("<pad>", "</s>", "<s>", "<unk>")
_WORDS = ("cat", "wall", "on", "a", "the", "red", "sitting", "猫", "kätzchen")
_LETTERS = "abcdefghijklmnopqrstuvwxyzäöüABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:&<>'\"-_/猫犬株式会社صلىاللهعيوم"


def write(folder: Path, *, cuts: bool = False) -> Path:
    """Write `tokenizer.json` and what transformers needs beside it. `cuts` adds truncation and padding."""
    marked = {f"▁{word}": -3.0 for word in _WORDS}
    pieces = {**marked, "▁": -4.0, "s": -5.0, "ing": -4.5, **dict.fromkeys(_LETTERS, -8.0)}
    vocabulary = [*((name, 0.0) for name in _SPECIAL), *pieces.items()]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=_SPECIAL.index("<unk>"), byte_fallback=False))
    # The real tokenizer has a character table here, which is NFKC with few exceptions.
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    extra = [f"<extra_id_{number}>" for number in range(300)]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in (*_SPECIAL, *extra)])
    if cuts:
        tokenizer.enable_truncation(512)
        tokenizer.enable_padding(length=512)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 300, "additional_special_tokens": extra, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    return folder / "tokenizer.json"
