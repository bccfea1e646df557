"""`wan-train doctor` as a user runs it, on GPUs of the NVML stub."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from support.nvml import GIB, NvmlStub, StubGpu, uuid_of
from support.trainers import ScriptedBox
from wan_train.base import codec
from wan_train.engine.tokenizer import REPO, SUBFOLDER
from wan_train.gpu.leases import LeaseHolder, LeaseRoom
from wan_train.provision import doctor
from wan_train.provision.engine_file import load
from wan_train.provision.models import wanted
from wan_train.recipe.terms import Task
from wan_train.views.doctor import doctor_lines
from wan_train.views.lines import plain

H100 = StubGpu(name="NVIDIA H100 80GB HBM3", total=80 * GIB, compute_capability=(9, 0))
NOBODY = "http://127.0.0.1:1"
"""A hub that nobody answers for."""


APT_CACHE = """#!/bin/sh
[ "$2" != apt ] || echo 'apt | 2.4.13 | http://archive.ubuntu.com/ubuntu jammy-updates/main amd64 Packages'
"""
"""Lists that offer no cuDNN. The real program reads all lists of a machine for each question, for half a second."""


@pytest.fixture
def box(scripted_box: ScriptedBox, nvml_stub: NvmlStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedBox:
    """A box on which everything is there and was compared, as a provision leaves it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/apt-cache").write_text(APT_CACHE)
    (tmp_path / "bin/apt-cache").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    nvml_stub.write([H100, H100])
    for model in wanted((Task.T2V,)):
        path = model.path(scripted_box.checkout)
        found = path.stat()
        marked = {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": None}
        path.with_name(f"{path.name}.verified").write_text(json.dumps(marked))
    (scripted_box.checkout / "venv/wan-train.json").write_text(codec.to_json(load("guide").record()))
    cache = scripted_box.home / f".cache/huggingface/hub/models--{REPO.replace('/', '--')}/snapshots/1/{SUBFOLDER}"
    cache.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (cache / name).touch()
    return scripted_box


def examine(box: ScriptedBox, *words: str, code: int, **env: str) -> dict[str, dict[str, Any]]:
    """The checks by id."""
    done = box.run_cli("doctor", "--json", *words, HF_ENDPOINT=NOBODY, **env)
    assert done.returncode == code, done.stdout + done.stderr
    (line,) = done.stdout.splitlines()
    report = json.loads(line)
    assert set(report) == {"event", "schema", "version", "ready", "errors", "warnings", "checks"}
    assert (report["event"], report["schema"]) == ("doctor", 1)
    for check in report["checks"]:
        assert set(check) == {"group", "id", "title", "level", "detail", "next", "bytes"}
        assert check["level"] in {"ok", "not tested", "warning", "error"}
        assert check["next"] or check["level"] in {"ok", "not tested"}, check
    assert len({check["id"] for check in report["checks"]}) == len(report["checks"])
    assert report["ready"] == (code == 0)
    levels = [check["level"] for check in report["checks"]]
    assert (report["errors"], report["warnings"]) == (levels.count("error"), levels.count("warning"))
    return {check["id"]: check for check in report["checks"]}


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "nvml-state")
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found}


def test_a_ready_box_needs_no_network_and_is_not_changed(box: ScriptedBox) -> None:
    before = tree(box.root)
    found = examine(box, code=0)
    assert {name for name, check in found.items() if check["level"] == "error"} == set()
    assert found["wan21-vae"]["level"] == "ok"
    assert found["gpu-0"]["detail"] == "H100 80GB HBM3 (80 GB), free"
    assert found["kernel"]["level"] == "warning"  # nobody tried it yet, and a doctor does not
    assert tree(box.root) == before
    assert not box.leases.exists()


def test_what_is_missing_is_an_error_with_the_command_that_fetches_it(box: ScriptedBox) -> None:
    (box.checkout / "venv/wan-train.json").unlink()
    (box.checkout / "venv/bin/python").unlink()
    found = examine(box, "--workspace", str(box.root), code=3)
    assert found["environment"]["level"] == "error"
    assert found["environment"]["next"] == f"`wan-train provision --workspace {box.root}`"


def test_without_network_what_is_missing_says_so_and_what_is_there_is_only_a_warning(box: ScriptedBox) -> None:
    vae, t5 = (model.path(box.checkout) for model in wanted((Task.T2V,))[:2])
    vae.with_name(f"{vae.name}.verified").unlink()
    t5.unlink()
    found = examine(box, code=3)
    assert found["wan21-vae"]["level"] == "warning"
    assert found["umt5-xxl"]["level"] == "error"
    assert "missing; the hub cannot be reached (127.0.0.1" in found["umt5-xxl"]["detail"]
    assert "network" in found["umt5-xxl"]["next"]
    assert found["disk"]["detail"].startswith("11.4 GB needed")
    assert "model sizes from configs/models.toml" in found["disk"]["detail"]


def test_a_model_that_cannot_be_read_is_not_called_missing(box: ScriptedBox) -> None:
    folder = wanted((Task.T2V,))[0].path(box.checkout).parent
    folder.rename(folder.with_name("kept"))
    folder.symlink_to("x" * 300)  # a name that is too long for any file: an error for root too
    found = examine(box, code=3)["wan21-vae"]
    assert found["level"] == "error"
    assert "file name too long" in found["detail"]
    assert "missing" not in found["detail"]


def test_another_task_has_other_models(box: ScriptedBox) -> None:
    found = examine(box, "--task", "i2v", code=0)
    assert {"wan22-i2v-high", "wan22-i2v-low"} <= set(found)
    assert "wan22-t2v-high" not in found


def test_every_gpu_has_its_own_line(box: ScriptedBox, nvml_stub: NvmlStub) -> None:
    old = StubGpu(name="Tesla V100-SXM2-16GB", total=16 * GIB, compute_capability=(7, 0))
    busy = StubGpu(
        name="NVIDIA H100 80GB HBM3", total=80 * GIB, compute_capability=(9, 0), used=40 * GIB, pids=(99999999,)
    )
    nvml_stub.write([H100, busy, StubGpu(error=15), old, H100])
    with LeaseRoom(box.leases).try_take(uuid_of(4), LeaseHolder(run_id="20261122-141500-cat")) or pytest.fail("taken"):
        found = examine(box, code=0)
    assert found["gpu-0"]["level"] == "ok"
    assert "40.0 of 80.0 GiB in use" in found["gpu-1"]["detail"]
    assert "wan-train --gpus 0,4" in found["gpu-1"]["next"]
    assert "fallen off the bus" in found["gpu-2"]["detail"]
    assert "compute capability 7.0" in found["gpu-3"]["detail"]
    assert "wan-train --gpus 0,1,4" in found["gpu-3"]["next"]
    assert found["gpu-4"]["level"] == "ok"
    assert "used by 20261122-141500-cat" in found["gpu-4"]["detail"]
    assert "99999999" in found["pids"]["detail"]
    assert "gpus" not in found


def test_a_driver_that_is_too_old(box: ScriptedBox, nvml_stub: NvmlStub) -> None:
    nvml_stub.write([H100], driver="470.82.01")
    found = examine(box, code=3)
    assert found["driver"]["level"] == "error"
    assert "470.82" in found["driver"]["detail"]


def test_a_box_without_a_driver(box: ScriptedBox) -> None:
    found = examine(box, code=3, LD_LIBRARY_PATH="")
    assert found["driver"]["level"] == "error"
    assert "wan-train rehearse" in found["driver"]["next"]


def test_the_table_for_people(box: ScriptedBox) -> None:
    (box.checkout / "venv/wan-train.json").unlink()
    (box.checkout / "venv/bin/python").unlink()
    done = box.run_cli("doctor", HF_ENDPOINT=NOBODY, COLUMNS="80")
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    assert [line for line in lines if line in {"machine", "GPUs", "trainer", "models", "wan-train"}] == [
        "machine", "GPUs", "trainer", "models", "wan-train",
    ]  # fmt: skip
    assert any("ERROR" in line and "Environment" in line for line in lines)
    assert any(line.strip() == "→ `wan-train provision`" for line in lines)
    assert lines[-1] == "Next: wan-train provision"
    assert max(map(len, lines)) <= max(80, len(str(box.root)) + 40)


def test_ready_is_said_at_the_end(box: ScriptedBox) -> None:
    done = box.run_cli("doctor", HF_ENDPOINT=NOBODY)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("This box is ready to train")


WORKS = """#!/bin/sh
printf '{"torch": "2.7.0+cu128", "cuda": "12.8", "attention": ["sdpa", "xformers"]}' > "$3"
"""


def test_provision_tries_the_gpus_and_the_doctor_tells_what_came_of_it(box: ScriptedBox) -> None:
    for name in ("apt-get", "apt-cache", "dpkg"):  # no test may install anything on the machine
        (box.home / name).write_text("#!/bin/sh\nexit 100\n")
        (box.home / name).chmod(0o755)
    environment = {"HF_ENDPOINT": NOBODY, "PATH": f"{box.home}:{os.environ['PATH']}"}
    failed = box.run_cli("provision", "--skip-models", "--yes", **environment)
    assert failed.returncode == 3
    assert "GPU 0 H100 80GB HBM3 (80 GB)" in failed.stderr
    assert "No module named 'torch'" in failed.stderr
    found = examine(box, code=3)["kernel"]
    assert found["level"] == "error"
    assert "GPU 0 failed its test" in found["detail"]

    (box.checkout / "venv/bin/python").write_text(WORKS)
    done = box.run_cli("provision", "--skip-models", "--yes", **environment)
    assert done.returncode == 0, done.stderr
    now = examine(box, code=0)
    assert (now["kernel"]["level"], now["accelerate"]["level"]) == ("ok", "ok")
    assert "GPU 1: torch 2.7.0+cu128" in now["kernel"]["detail"]


def test_a_wrong_engine_is_bad_input(box: ScriptedBox) -> None:
    assert box.run_cli("doctor", "--engine", "nonsense").returncode == 2


def test_a_hub_that_does_not_answer_is_waited_for_once_and_not_for_long() -> None:
    asked = []

    def reach() -> str | None:
        asked.append(1)
        return "nowhere: no answer within 5 s"

    hub = doctor.ImpatientHub(reach=reach)
    for model in wanted((Task.T2V,)):
        with pytest.raises(doctor.HubError, match="cannot be reached"):
            hub.describe(model.repo, model.file)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"HF_ENDPOINT": NOBODY}, "127.0.0.1: connection refused"),
        ({"HF_ENDPOINT": "http://[bad"}, "not a valid address"),
    ],
)
def test_why_a_hub_cannot_be_reached(environ: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    said = doctor.why_unreachable(environ)
    assert said is not None
    assert words in said


def test_a_name_that_is_looked_up_for_ever_is_left_behind() -> None:
    go_on = threading.Event()

    def connect(_where: str) -> None:
        go_on.wait(60)

    said = doctor.why_unreachable({"HF_ENDPOINT": NOBODY}, connect, 0.1)
    go_on.set()
    assert said == f"{NOBODY}: no answer within 0.1 s"


def test_leases_that_are_not_to_be_trusted_are_an_error_and_no_crash(box: ScriptedBox) -> None:
    box.leases.mkdir()
    (box.leases / f"{uuid_of(0)}.lease").symlink_to("/etc/passwd")
    found = examine(box, code=3)
    assert found["gpu-0"]["level"] == "error"
    assert found["gpu-1"]["level"] == "ok"


def test_help_names_the_exit_code(box: ScriptedBox) -> None:
    done: subprocess.CompletedProcess[str] = box.run_cli("doctor", "--help")
    assert "exit code 3" in " ".join(done.stdout.split())


def test_lines_that_share_a_next_command_say_it_once() -> None:
    finding = doctor.Finding(state=doctor.State.MISSING, detail="gone")
    checks = tuple(
        doctor.Check(group=doctor.Group.TRAINER, id=name, title=name, finding=finding, next="`wan-train provision`")
        for name in ("a", "b")
    )
    text = plain(doctor_lines(doctor.Report(checks=checks, provision="wan-train provision"), 80))
    assert text.count("→ `wan-train provision`") == 1
    assert "2 errors" in text
