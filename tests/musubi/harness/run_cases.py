"""Runs one of the trainer's scripts once for each list of arguments on stdin, and answers how each run ended.

`run_cases.py MODULE`, for example `musubi_tuner.wan_cache_latents`. The module is imported once, which takes seconds;
each run is its `main()` in a forked child, up to the child's own end with Python's own exit status. JSON on the last
line: [{"code": exit status, "said": what it wrote}].
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile

module = importlib.import_module(sys.argv[1])
cases: list[list[str]] = json.load(sys.stdin)
ends = []
for case in cases:
    with tempfile.TemporaryFile() as log:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            sys.argv = [sys.argv[1], *case]
            module.main()
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        log.seek(0)
        said = log.read().decode("utf-8", "replace")
    ends.append({"code": os.waitstatus_to_exitcode(status), "said": said[-4000:]})
sys.stdout.write(f"\n{json.dumps(ends)}\n")
