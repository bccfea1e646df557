"""The program called in this process: a call that only reads, refuses or installs needs no process of its own."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout

import pytest

from wan_train.cli.main import run


def run_here(words: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """`wan-train WORDS` with exactly these variables and without a terminal."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in os.environ.keys() - environment.keys():
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        code = run(words)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
