"""`accelerate launch` in its single-process mode: starts the script, forwards no signal, hides its exit code."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="accelerate launch", allow_abbrev=False)
    parser.add_argument("--config_file")
    parser.add_argument("--num_cpu_threads_per_process", type=int)
    parser.add_argument("--num_processes", type=int)
    parser.add_argument("--mixed_precision")
    parser.add_argument("script")
    parser.add_argument("words", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    config = _read(Path(options.config_file)) if options.config_file else {}
    if config.get("distributed_type", "NO") != "NO":
        raise NotImplementedError("the stand-in has a single-process mode only")
    sys.stderr.write(
        "The following values were not passed to `accelerate launch` and had defaults used instead:\n"
        "\t`--dynamo_backend` was set to a value of `'no'`\n"
    )
    command = [sys.executable, "-S", options.script, *options.words]
    environment = {**os.environ, "ACCELERATE_MIXED_PRECISION": options.mixed_precision or "no"}
    process = subprocess.Popen(command, env=environment)
    process.wait()
    if process.returncode != 0:
        raise subprocess.CalledProcessError(returncode=process.returncode, cmd=command)


def _read(path: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in path.read_text().splitlines() if not line.startswith("#"))
    return {name.strip(): value.strip().strip("'") for name, _, value in lines}


if __name__ == "__main__":
    main()
