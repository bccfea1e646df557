"""All benchmarks, as one table: `python benchmarks/run.py [NAME ...]`.

Every figure stands beside something measured on the same machine in the same minute; absolute seconds of two
machines cannot be compared.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import bench_caches
import bench_dataset
import bench_help
import bench_parsing
import bench_preview
import bench_provision
import bench_runner
import bench_schedule
import bench_until
import bench_view
from figures import Figure, machine, table

BENCHMARKS: dict[str, Callable[[], Iterator[Figure]]] = {
    "help": bench_help.measure,
    "dataset": bench_dataset.measure,
    "parsing": bench_parsing.measure,
    "caches": bench_caches.measure,
    "schedule": bench_schedule.measure,
    "runner": bench_runner.measure,
    "view": bench_view.measure,
    "until": bench_until.measure,
    "preview": bench_preview.measure,
    "provision": bench_provision.measure,
}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"no benchmark is called {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    figures = []
    for name in names or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr)
        figures += list(BENCHMARKS[name]())
    print(f"{machine()}\n\n{table(figures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
