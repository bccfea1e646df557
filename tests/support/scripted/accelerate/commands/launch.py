"""`accelerate launch` in single-process mode: starts the script, forwards no signal, hides its exit code.

It parses options by hand and spawns the script with `os`: argparse and subprocess would double its start-up time.
"""

from __future__ import annotations

import os
import sys

OPTIONS = {"--config_file", "--num_cpu_threads_per_process", "--num_processes", "--mixed_precision"}


def main() -> None:
    given, words = {}, sys.argv[1:]
    while words and words[0].startswith("-"):
        name = words.pop(0)
        if name not in OPTIONS or not words:
            sys.exit(f"accelerate launch: error: unrecognized arguments: {name}")
        given[name] = words.pop(0)
    if not words:
        sys.exit("accelerate launch: error: the following arguments are required: script")
    for name in ("--num_cpu_threads_per_process", "--num_processes"):
        int(given.get(name, "1"))
    config = _read(given["--config_file"]) if "--config_file" in given else {}
    if config.get("distributed_type", "NO") != "NO":
        raise NotImplementedError("the stand-in has a single-process mode only")
    sys.stderr.write(
        "The following values were not passed to `accelerate launch` and had defaults used instead:\n"
        "\t`--dynamo_backend` was set to a value of `'no'`\n"
    )
    sys.stderr.flush()
    command = [sys.executable, "-S", *words]
    environment = {**os.environ, "ACCELERATE_MIXED_PRECISION": given.get("--mixed_precision", "no")}
    code = os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(sys.executable, command, environment), 0)[1])
    if code != 0:
        import subprocess  # noqa: PLC0415  see above

        raise subprocess.CalledProcessError(returncode=code, cmd=command)


def _read(path: str) -> dict[str, str]:
    with open(path, encoding="utf-8") as file:  # noqa: PTH123  see above
        lines = [line.rstrip("\n").partition(":") for line in file if not line.startswith("#")]
    return {name.strip(): value.strip().strip("'") for name, _, value in lines}


if __name__ == "__main__":
    main()
