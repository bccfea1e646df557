"""Answers with [tokens of a text, those that the text encoder reads] for each text on stdin, by the trainer's class.

`count_tokens.py FOLDER`, a folder with a tokenizer. JSON on the last line. Runs in the trainer's environment.
"""

from __future__ import annotations

import json
import sys

from musubi_tuner.wan.modules.tokenizers import HuggingfaceTokenizer

# As T5EncoderModel makes it (wan/modules/t5.py), and once without its limit.
read = HuggingfaceTokenizer(name=sys.argv[1], seq_len=512, clean="whitespace")
whole = HuggingfaceTokenizer(name=sys.argv[1], seq_len=None, clean="whitespace")
answers = []
for text in json.load(sys.stdin):
    ids = whole([text], add_special_tokens=True)
    _, mask = read([text], return_mask=True, add_special_tokens=True)
    answers.append([ids.shape[1], int(mask.sum())])
sys.stdout.write(f"\n{json.dumps(answers)}\n")
