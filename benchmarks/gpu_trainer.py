"""Times and weighs the real trainer (musubi-tuner) at the full size of a Wan 2.2 A14B expert, on a GPU box.

No model download: speed and memory do not depend on what the weights are, so the DiT, the latents and the
text embeddings are random numbers of the right shapes. Every variant is one real `wan_train_network.py`,
started by `accelerate launch`. Needs about 31 GB of disk, and a musubi-tuner checkout with its Python:

    python benchmarks/gpu_trainer.py --musubi-dir musubi-tuner \
        --python musubi-tuner/venv/bin/python --work-dir bench

Results grow in --out (results.json, results.md, one log per variant) after every variant, so a run cut short
keeps what it has. `--list` names the variants; `--rehearse` runs the same code with a tiny DiT on the CPU, to
check the plumbing only. Needs just the standard library and nvidia-ml-py: torch lives in the trainer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_trainer_inputs import MIB, TINY, Shape, prepare
from gpu_trainer_report import figures, save_test_data, table
from gpu_trainer_watch import WARMUP_STEPS, Gpu, Run, Sampler, available_memory

# The guide's high-noise command without its paths and without the attention flag, in the guide's order.
SEED_FLAGS = (
    *("--mixed_precision=fp16", "--fp8_base", "--optimizer_type=adamw", "--learning_rate=3e-4"),
    *("--gradient_checkpointing", "--gradient_accumulation_steps=1", "--max_data_loader_n_workers=2"),
    *("--network_module=networks.lora_wan", "--network_dim=16", "--network_alpha=16"),
    *("--timestep_sampling=shift", "--discrete_flow_shift=1.0", "--seed=5"),
    *("--optimizer_args", "weight_decay=0.1", "--max_grad_norm=0"),
    *("--lr_scheduler=polynomial", "--lr_scheduler_power=8", "--lr_scheduler_min_lr_ratio=5e-5"),
    "--preserve_distribution_shape",
)
HIGH, LOW = ("--min_timestep=875", "--max_timestep=1000"), ("--min_timestep=0", "--max_timestep=875")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One measured run: what differs from the seed's flags, and why it is worth the time."""

    name: str
    question: str
    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    attention: str = "--xformers"
    threads: int = 1
    together: int = 1  # trainers started at the same moment on the one GPU
    cold: bool = False  # drop the DiT from the page cache first
    steps: int | None = None
    leave_free_gib: float | None = None  # another process holds the rest of the GPU's memory


SWAP = "--blocks_to_swap=10"
VARIANTS = (  # most telling first: a run cut short keeps these
    Variant(name="seed", question="the guide's flags, DiT not in the page cache", cold=True),
    Variant(name="no-fp8", question="is fp8 worth it where fp16 fits", drop=("--fp8_base",)),
    Variant(name="two-experts", question="both experts at once on one GPU", together=2),
    Variant(name="swap10", question="the guide's advice for 32 GB cards", add=(SWAP,)),
    Variant(name="swap10-threads8", question="CPU threads while loading", add=(SWAP,), threads=8, steps=5),
    Variant(name="no-checkpointing", question="does it fit without", drop=("--gradient_checkpointing",), steps=6),
    Variant(name="sdpa", question="sdpa instead of xformers", attention="--sdpa"),
    Variant(name="flash", question="flash-attn instead of xformers", attention="--flash_attn"),
    Variant(name="compile", question="torch.compile", add=("--compile",)),
    Variant(
        name="cpu-offload",
        question="checkpoints in host memory",
        add=("--gradient_checkpointing_cpu_offload",),
    ),
    Variant(name="swap10-h2d", question="one-way block swap", add=(SWAP, "--block_swap_h2d_only"), threads=8),
    Variant(name="fp8-scaled", question="scaled fp8", add=("--fp8_scaled",)),
    Variant(name="oom", question="the text of an out-of-memory error", leave_free_gib=20.0, steps=2),
)


# Runs inside the trainer, found on PYTHONPATH: torch's own peaks at exit, and in a rehearsal a smaller model.
SITECUSTOMIZE = """
import atexit, json, os, sys
def _report():
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        print("BENCH-TORCH " + json.dumps(peak), flush=True)
argv = getattr(sys, "orig_argv", [])
if "-m" not in argv[:3] and any(a.endswith("wan_train_network.py") for a in argv[:4]):
    if os.environ.get("BENCH_TINY"):
        import torch
        torch.cuda.current_device = lambda: "cpu"
        from musubi_tuner.wan.configs import t2v_A14B
        t2v_A14B.update(json.loads(os.environ["BENCH_TINY"]))
    atexit.register(_report)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all variants of one call share."""

    musubi: Path
    python: Path
    work: Path
    out: Path
    shape: Shape
    dit: Path
    dataset: Path
    steps: int
    limit: float
    rehearse: bool
    gpu: Gpu
    options: frozenset[str]  # what this version of the trainer accepts
    importable: dict[str, str]  # package -> "" or why not

    def attention(self, wanted: str) -> tuple[str, str]:
        """The attention flag to use and a note when it is not the wanted one."""
        package = {"--xformers": "xformers", "--flash_attn": "flash_attn"}.get(wanted)
        problem = self.importable.get(package, "") if package else ""
        return ("--sdpa", f"sdpa, since {package} is not importable: {problem}") if problem else (wanted, "")

    def command(self, variant: Variant, number: int, output: Path) -> list[str]:
        attention, _ = self.attention(variant.attention)
        flags = [f for f in SEED_FLAGS if f not in variant.drop]
        if self.rehearse:  # the CPU has neither fp16 autocast nor fp8 matrix products
            flags = [f for f in flags if f not in ("--fp8_base", "--mixed_precision=fp16")] + ["--mixed_precision=no"]
        script = self.musubi / "src" / "musubi_tuner" / "wan_train_network.py"
        launch = (
            f"--config_file={self.work / 'accelerate.yaml'}",
            f"--num_cpu_threads_per_process={variant.threads}",
        )
        return [
            *(str(self.python), "-m", "accelerate.commands.launch", *launch, str(script)),
            *("--task=t2v-A14B", f"--dit={self.dit}", f"--dataset_config={self.dataset}"),
            *(attention, *flags, *variant.add, *(HIGH if number == 0 else LOW)),
            *(f"--max_train_steps={variant.steps or self.steps}", "--save_state_on_train_end"),
            *(f"--output_dir={output}", f"--output_name=bench{number}"),
        ]

    def environment(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        paths = [str(self.work / "site"), str(self.musubi / "src"), *filter(None, [env.get("PYTHONPATH")])]
        env |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        uuid = self.gpu.ask("nvmlDeviceGetUUID")
        if isinstance(uuid, str) and uuid.startswith("GPU-"):
            env["CUDA_VISIBLE_DEVICES"] = uuid
        if self.rehearse:
            s = self.shape
            tiny = {"dim": s.dim, "ffn_dim": s.ffn, "num_heads": s.heads, "num_layers": s.layers}
            env |= {"BENCH_TINY": json.dumps(tiny), "ACCELERATE_USE_CPU": "true"}
        return env

    def measure(self, variant: Variant) -> dict[str, Any]:
        """Run one variant to its end and say what was seen; a failed run is a result too."""
        if self.rehearse and SWAP in variant.add:
            return {"skipped": "block swap needs CUDA"}
        missing = [f for f in variant.add if f.partition("=")[0] not in self.options]
        if missing:
            return {"skipped": f"this trainer version has no {' '.join(missing)}"}
        attention, note = self.attention(variant.attention)
        if variant.name in ("flash", "sdpa") and (note or self.attention("--xformers")[0] == attention):
            return {"skipped": note or "the seed variant already ran with sdpa"}
        if variant.cold:
            with self.dit.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        runs = []
        for number in range(variant.together):
            output = self.work / "output" / f"{variant.name}-{number}"
            shutil.rmtree(output, ignore_errors=True)
            log = self.out / f"{variant.name}-{number}.log"
            runs.append(Run(self.command(variant, number, output), self.environment(), self.work, log))
        with self.held(variant.leave_free_gib):
            before = self.gpu.used()
            sampler, timed_out = self.watch(runs)
            after = self.settled(before)
        return {
            "question": variant.question,
            "flags": " ".join(runs[0].argv[runs[0].argv.index("--task=t2v-A14B") :]),
            "threads": variant.threads,
            "attention": note or attention.removeprefix("--"),
            "timed_out": timed_out,
            "runs": [figures(run) for run in runs],
            "gpu_used_before": before,
            "gpu_peak_used": sampler.peak_used or None,
            "gpu_used_after": after,
            "gpu_busy_median_percent": statistics.median(sampler.busy) if sampler.busy else None,
            "gpu_reading_under_load": sampler.mid_reading,
            "host_peak_rss": sorted(sampler.peak_rss.values(), reverse=True)[: variant.together],
            "host_peak_anonymous": sorted(sampler.peak_anonymous.values(), reverse=True)[: variant.together],
            "host_least_available": sampler.least_available,
        }

    def watch(self, runs: list[Run]) -> tuple[Sampler, bool]:
        """Start the trainers together, watch them to their end; True if they had to be ended at the limit."""
        sampler = Sampler(self.gpu)
        for run in runs:
            sampler.roots.append(run.start())
        observer = threading.Thread(target=sampler.loop)
        readers = [threading.Thread(target=run.follow) for run in runs]
        for thread in (observer, *readers):
            thread.start()
        deadline = time.monotonic() + self.limit
        for reader in readers:
            reader.join(max(0.1, deadline - time.monotonic()))
        timed_out = any(reader.is_alive() for reader in readers)
        if timed_out:
            for pid in sampler.roots:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        for reader in readers:
            reader.join()
        sampler.stop()
        observer.join()
        return sampler, timed_out

    @contextlib.contextmanager
    def held(self, leave_free_gib: float | None) -> Iterator[None]:
        """Another process holds all GPU memory but `leave_free_gib`, as a neighbour would."""
        if leave_free_gib is None or self.rehearse:
            yield
            return
        code = (
            "import sys, torch\nfree, _ = torch.cuda.mem_get_info()\n"
            "size = max(1, free - int(float(sys.argv[1]) * 2**30))\n"
            "x = torch.empty(size, dtype=torch.uint8, device='cuda')\n"
            "print('held', flush=True)\nsys.stdin.read()\n"
        )
        with subprocess.Popen(
            [str(self.python), "-c", code, str(leave_free_gib)],
            env=self.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdin is not None
            holder.stdout.readline()
            try:
                yield
            finally:
                holder.stdin.close()

    def settled(self, before: int | None) -> dict[str, Any]:
        """How soon the GPU's memory is back to what it was once the trainers are gone (waits 5 s at most)."""
        started = time.monotonic()
        used = self.gpu.used()
        while used is not None and before is not None and used > before + MIB and time.monotonic() - started < 5:
            time.sleep(0.05)
            used = self.gpu.used()
        return {"used": used, "seconds": round(time.monotonic() - started, 2)}


def trainer_options(musubi: Path) -> frozenset[str]:
    """Every long option of the training script; the other scripts have options of their own."""
    room = musubi / "src" / "musubi_tuner"
    sources = [room / "wan_train_network.py", room / "hv_train_network.py", *(room / "training").glob("*.py")]
    return frozenset(m for p in sources for m in re.findall(r'"(--[a-z0-9_]+)"', p.read_text("utf-8")))


def software(python: Path, musubi: Path, env: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Versions in the trainer's Python; for each attention package "" or why it cannot be imported."""
    code = (
        "import importlib, json, sys, torch\nfrom importlib import metadata as m\n"
        "names = 'torch', 'accelerate', 'transformers', 'safetensors', 'diffusers'\n"
        "v = {n: m.version(n) for n in names} | {'python': sys.version.split()[0]}\nw = {}\n"
        "for n in ('xformers.ops', 'flash_attn'):\n"
        "    try: importlib.import_module(n); w[n.split('.')[0]] = ''\n"
        "    except Exception as e: w[n.split('.')[0]] = repr(e)\n"
        "v |= {'cuda': torch.version.cuda, 'cudnn': torch.backends.cudnn.version()}\n"
        "print(json.dumps([v, w]))"
    )
    done = subprocess.run([str(python), "-c", code], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the trainer's Python cannot be used: {python}\n{done.stderr}")
    versions, importable = json.loads(done.stdout.splitlines()[-1])
    git = subprocess.run(["git", "-C", str(musubi), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    versions["musubi"] = git.stdout.strip() or musubi.name
    return versions, importable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--musubi-dir", type=Path, help="musubi-tuner checkout (its src/ is enough)")
    parser.add_argument("--python", type=Path, help="the Python musubi-tuner is installed in")
    parser.add_argument("--work-dir", type=Path, help="where inputs and outputs go; about 31 GB")
    parser.add_argument("--out", type=Path, help="where results go (default: WORK_DIR/results)")
    parser.add_argument("--variants", default="all", help="comma-separated names, run in this order (default: all)")
    parser.add_argument(
        "--steps", type=int, default=15, help=f"steps per variant, the first {WARMUP_STEPS} are not timed"
    )
    parser.add_argument("--limit", type=float, default=300.0, help="seconds after which a variant is ended")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds after which no further variant is begun")
    parser.add_argument("--side", type=int, default=960, help="picture side in pixels")
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=100, help="length of a caption in tokens")
    parser.add_argument("--gpu", type=int, default=0, help="NVML index of the GPU")
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny DiT on the CPU: checks the plumbing, measures nothing"
    )
    parser.add_argument("--test-data", type=Path, help="also write NVML readings and the OOM text here, for tests")
    parser.add_argument("--list", action="store_true", help="name the variants and stop")
    args = parser.parse_args()
    if args.list:
        for variant in VARIANTS:
            print(f"{variant.name:18} {variant.question}")
        return
    if not (args.musubi_dir and args.python and args.work_dir):
        parser.error("--musubi-dir, --python and --work-dir are needed")
    by_name = {v.name: v for v in VARIANTS}
    names = list(by_name) if args.variants == "all" else args.variants.split(",")
    if unknown := [n for n in names if n not in by_name]:
        parser.error(f"no such variant: {', '.join(unknown)} (see --list)")
    started = time.monotonic()
    # Not resolve(): a virtual environment's python is a link, and following it would leave the environment.
    work, python, musubi = (p.expanduser().absolute() for p in (args.work_dir, args.python, args.musubi_dir))
    out = (args.out or work / "results").absolute()
    shape = TINY if args.rehearse else Shape()
    for folder in (out, work / "site"):
        folder.mkdir(parents=True, exist_ok=True)
    (work / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    (work / "accelerate.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\n"
        "machine_rank: 0\nnum_machines: 1\nnum_processes: 1\ngpu_ids: all\nmixed_precision: 'no'\n"
        f"use_cpu: {str(args.rehearse).lower()}\ndebug: false\n",
        encoding="utf-8",
    )
    gpu = Gpu(args.gpu)
    dit, dataset = prepare(work, shape, side=args.side, items=args.items, tokens=args.tokens)
    bench = Bench(
        musubi=musubi,
        python=python,
        work=work,
        out=out,
        shape=shape,
        dit=dit,
        dataset=dataset,
        steps=args.steps,
        limit=args.limit,
        rehearse=args.rehearse,
        gpu=gpu,
        options=trainer_options(musubi),
        importable={},
    )
    versions, importable = software(python, musubi, bench.environment())
    bench.importable.update(importable)
    results: dict[str, Any] = {}
    record = {
        "rehearsal": args.rehearse,
        "versions": versions,
        "host": {"cpus": os.cpu_count(), "kernel": platform.release(), "available_bytes": available_memory()},
        "gpu_idle": gpu.reading(),
        "side": args.side,
        "tokens": args.tokens,
        "variants": results,
    }
    for name in names:
        if time.monotonic() - started > args.budget:
            results[name] = {"skipped": "the time budget was spent"}
        else:
            results[name] = bench.measure(by_name[name])
        (out / "results.json").write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")
        (out / "results.md").write_text(table(results), encoding="utf-8")
        print(table({name: results[name]}).splitlines()[-1], flush=True)
    if args.test_data and not args.rehearse:
        save_test_data(args.test_data, record)
    print("\n" + table(results))


if __name__ == "__main__":
    sys.exit(main())
