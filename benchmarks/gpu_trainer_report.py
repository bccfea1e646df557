"""Figures of gpu_trainer.py: what a run says, the markdown table, and readings kept as test data."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from gpu_trainer_watch import Run

LAUNCHER_TRACEBACK = re.compile(r'Traceback \(most recent call last\):\n  File "[^"]*(?:runpy|bin/accelerate)')


def figures(run: Run) -> dict[str, Any]:
    """The figures of one trainer process; seconds and bytes."""
    seconds = run.seconds_per_step()
    output = Path(next(a.partition("=")[2] for a in run.argv if a.startswith("--output_dir=")))
    files = {str(p.relative_to(output)): p.stat().st_size for p in output.rglob("*") if p.is_file()}
    torch = re.findall(r"BENCH-TORCH (\{.*?\})", run.text)
    oom = re.search(r"^.*(?:OutOfMemoryError|CUDA error: out of memory|CUDA out of memory).*$", run.text, re.MULTILINE)
    return {
        "exit_code": run.code,
        "wall_s": round(run.wall, 2),
        "steps_timed": len(seconds),
        "s_per_step": [round(s, 4) for s in seconds],
        "s_per_step_median": round(statistics.median(seconds), 4) if seconds else None,
        "s_per_step_min_max": [round(min(seconds), 4), round(max(seconds), 4)] if seconds else None,
        "to_training_s": run.marks.get("training begins"),
        "to_first_step_s": run.steps.get(1),
        "load_s": run.between("load begins", "load ends"),
        "load_to_training_s": run.between("load begins", "training begins"),
        "cast_to_training_s": run.between("cast begins", "training begins"),
        "save_state_s": run.between("state begins", "lora begins"),
        "save_lora_s": run.between("lora begins", "lora ends"),
        "marks": {k: round(v, 2) for k, v in run.marks.items()},
        "files": files,
        "state_bytes": sum(n for f, n in files.items() if "-state/" in f),
        "lora_bytes": sum(n for f, n in files.items() if "/" not in f and f.endswith(".safetensors")),
        "torch_peak": json.loads(torch[-1]) if torch else None,
        "oom": oom[0] if oom else None,
        "tail": LAUNCHER_TRACEBACK.split(run.text)[0][-3000:] if run.code else "",
    }


def gib(value: object) -> str:
    return f"{value / 2**30:.1f}" if isinstance(value, int | float) else "-"


def table(results: dict[str, Any]) -> str:
    """The results as markdown, one row per trainer process."""
    columns = (
        "variant", "attention", "exit", "steps", "s/step (median)", "min to max", "GPU peak (GiB)",
        "torch peak (GiB)", "load to training (s)", "host peak (GiB)", "state save (s)",
    )  # fmt: skip
    rows = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]

    def show(value: object) -> str:
        return f"{value:.2f}" if isinstance(value, float) else "-" if value is None else str(value)

    for name, result in results.items():
        if "skipped" in result:
            rows.append(f"| {name} | skipped: {result['skipped']} |" + " |" * (len(columns) - 2))
            continue
        for number, run in enumerate(result["runs"]):
            spread = " to ".join(f"{s:.2f}" for s in run["s_per_step_min_max"] or ()) or None
            reserved = (run["torch_peak"] or {}).get("reserved")
            ended = "OOM" if run["oom"] else "timeout" if result["timed_out"] else run["exit_code"]
            host = result["host_peak_rss"][number : number + 1] or [None]
            cells = [
                name if len(result["runs"]) == 1 else f"{name} {number + 1}",
                *(result["attention"].partition(",")[0], ended, run["steps_timed"], run["s_per_step_median"]),
                *(spread, gib(result["gpu_peak_used"]), gib(reserved), run["load_to_training_s"]),
                *(gib(host[0]), run["save_state_s"]),
            ]
            rows.append("| " + " | ".join(show(c) for c in cells) + " |")
    return "\n".join(rows) + "\n"


def save_test_data(folder: Path, record: dict[str, Any]) -> None:
    """Keep what only a real GPU can say: readings idle and under load, an out-of-memory error's words."""
    folder.mkdir(parents=True, exist_ok=True)
    readings = {"idle": record["gpu_idle"]}
    for name, result in record["variants"].items():
        if result.get("gpu_reading_under_load"):
            readings[name] = result["gpu_reading_under_load"]
        for run in result.get("runs", ()):
            if run["oom"]:
                (folder / f"oom-{name}.txt").write_text(run["tail"], encoding="utf-8")
    (folder / "nvml.json").write_text(json.dumps(readings, indent=1, default=str), encoding="utf-8")
