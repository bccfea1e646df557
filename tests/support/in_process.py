"""The program called in this process: a call that only reads, refuses or installs needs no process of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from support.json_output import json_lines
from support.trainers import ScriptedBox
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


class InProcessBox(ScriptedBox):
    """As ScriptedBox, except that `run_cli` starts no process."""

    def run_cli(self, *words: str, timeout: float = 40.0, **env: str) -> subprocess.CompletedProcess[str]:
        if self.through:
            return super().run_cli(*words, timeout=timeout, **env)
        with _surroundings(self.env(**env), self.root), Path(os.devnull).open() as nothing:
            out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape") for _ in range(2))
            stdin, sys.stdin = sys.stdin, nothing
            try:
                with redirect_stdout(out), redirect_stderr(err):
                    code = run(list(words))
            except SystemExit as ended:  # completion of words
                code = int(ended.code or 0)
            finally:
                sys.stdin = stdin
        done = subprocess.CompletedProcess(list(words), code, _text(out), _text(err))
        if "--json" in words and "--version" not in words:
            json_lines(done.stdout)
        return done


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode(errors="replace")


@contextmanager
def _surroundings(environ: dict[str, str], folder: Path) -> Iterator[None]:
    before, here = dict(os.environ), Path.cwd()
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)
