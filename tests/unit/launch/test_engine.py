"""SkyPilot's driver as a real child, with a stand-in for SkyPilot; and other infrastructure than Vast through it."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from wan_train.box.vast import VastError
from wan_train.launch.box_check import timer
from wan_train.launch.engine import EngineDownError, EngineError, SkyEngine, SkyHome, catalogue, kind_of, task_for
from wan_train.launch.infra import KNOWN, OVER, keeper, variables_of
from wan_train.launch.market import Power
from wan_train.launch.model import GpuWant, Offer, Wants
from wan_train.launch.sky_market import SkyMarket, card_name
from wan_train.launch.skypilot import sky_driver, vast_plugin

OFFER = Offer(id="101", machine="m", gpu="RTX 5090", gpus=2, gpu_bytes=32 * 10**9, per_hour=0.5)
WANTS = Wants(max_hours=6)

SKY = """
import os, time, types

class ClusterDoesNotExist(Exception): pass

class Task:
    @classmethod
    def from_yaml_config(cls, config): return config

boxes = {}

def launch(task, cluster_name):
    print("SkyPilot prints")
    boxes[cluster_name] = task
    return ("launch", cluster_name)

StatusRefreshMode = types.SimpleNamespace(FORCE="force")
CloudImplementationFeatures = types.SimpleNamespace(AUTODOWN="autodown", SPOT_INSTANCE="spot_instance")
clouds = types.SimpleNamespace(CloudImplementationFeatures=CloudImplementationFeatures)

def check(infras, verbose): return ("check", infras[0])


class Resources:
    def __init__(self, infra): self.infra = infra

class Cloud:
    def __init__(self, name): self.name = name

    def check_features_are_supported(self, resources, features):
        lacks = {"hyperbolic": {"autodown"}, "lambda": {"spot_instance"}}.get(self.name, set())
        if lacks & features: raise RuntimeError(f"{self.name} does not support {lacks}")

class CLOUD_REGISTRY:
    from_str = Cloud

def list_accelerators(gpus_only, clouds, require_price): return ("catalogue", clouds)

client = types.SimpleNamespace(sdk=types.SimpleNamespace(check=check, list_accelerators=list_accelerators))
del check, list_accelerators

def row(name, count, price, spot, kind="k", gib=24.0):
    return types.SimpleNamespace(instance_type=kind, accelerator_name=name, accelerator_count=count, device_memory=gib,
                                 memory=64.0, price=price, spot_price=spot)

def stream_and_get(request, output_stream=None):
    if request[0] == "check":
        if request[1] == "gcp":
            output_stream.write("Checking.\\n\\x1b[2m  GCP: disabled \\x1b[0m\\n")
            output_stream.write("    Reason: no key.\\n    Run: gcloud\\n\\nend")
            return {"default": {}}
        return {"default": {request[1].upper(): ["compute"]}}
    if request[1].startswith("broken"): raise RuntimeError("Ray did not start")
    if request[1].startswith("fatal"): os._exit(3)
    if request[1].startswith("cut"): raise ConnectionError("connection refused")
    if request[1].startswith("slow"): time.sleep(600)

def api_stop(): pass

def status(names=None, refresh=None, _include_credentials=False): return ("status", names)

def down(name):
    if name not in boxes: raise ClusterDoesNotExist(name)
    return ("down", name)

def get(request):
    if request[0] == "down": return boxes.pop(request[1])
    if request[0] == "catalogue":
        return {"RTX4090": [row("RTX4090", 1, 0.44, 0.3), row("RTX4090", 2.0, 0.88, float("nan"))],
                "L4": [row("L4", 0.5, 0.2, 0.1)], "T4": [row("T4", 1, 0.1, 0.1, gib=16.0)],
                "H100": [row("H100", 1, float("nan"), None)],
                "A100-80GB": [row("A100-80GB", 1, 1.2, 0.7, kind=None, gib=80.0)]}
    handle = types.SimpleNamespace(cached_external_ips=["1.2.3.4"], cached_external_ssh_ports=[2222])
    status = types.SimpleNamespace(name="UP")
    credentials = {"ssh_user": "root", "ssh_private_key_content": "KEY", "ssh_proxy_command": None}
    return [{"name": name, "handle": handle, "credentials": credentials, "status": status}
            for name in boxes if request[1] is None or name in request[1]]
"""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SkyEngine]:
    (tmp_path / "sky.py").write_text(SKY)
    own = {"HOME": str(tmp_path / "home"), "SKYPILOT_API_SERVER_LOCAL_PORT": "46601"}
    environ = {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"], **own}
    made = SkyEngine([sys.executable, str(sky_driver.__file__)], environ, tmp_path, tmp_path / "log")
    yield made
    made.close()


class TestEngine:
    def test_a_box_is_rented_listed_and_ended(self, engine: SkyEngine) -> None:
        address = engine.rent("wt-1", OFFER, WANTS)
        assert (address.name, address.host, address.port, address.user) == ("wt-1", "1.2.3.4", 2222, "root")
        assert address.key.read_text() == "KEY\n"
        assert address.key.stat().st_mode & 0o077 == 0
        assert tuple(engine.boxes()) == ("wt-1",)
        engine.down("wt-1")
        engine.down("wt-1")
        assert tuple(engine.boxes()) == ()

    def test_a_box_whose_set_up_fails_is_ended(self, engine: SkyEngine) -> None:
        with pytest.raises(EngineError, match="Ray did not start"):
            engine.rent("broken-1", OFFER, WANTS)
        assert tuple(engine.boxes()) == ()

    def test_many_ask_at_once(self, engine: SkyEngine) -> None:
        threads = [threading.Thread(target=engine.rent, args=(f"wt-{n}", OFFER, WANTS)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(engine.boxes()) == [f"wt-{n}" for n in range(8)]

    def test_a_driver_that_dies_says_nothing_of_the_box_and_is_started_again(self, engine: SkyEngine) -> None:
        engine.rent("wt-1", OFFER, WANTS)
        with pytest.raises(EngineDownError, match="has ended"):
            engine.rent("fatal", OFFER, WANTS)
        assert engine.rent("wt-2", OFFER, WANTS).name == "wt-2"

    def test_a_server_that_ends_while_it_rents_leaves_the_box_and_no_worker(
        self, engine: SkyEngine, tmp_path: Path
    ) -> None:
        with workers(tmp_path / "home") as left:
            with pytest.raises(EngineDownError, match="connection refused"):
                engine.rent("cut-1", OFFER, WANTS)
            assert all(not Path(f"/proc/{pid}/exe").exists() for pid in left)
        assert tuple(engine.boxes()) == ("cut-1",)

    def test_the_end_waits_for_no_request(self, engine: SkyEngine) -> None:
        def rent() -> None:
            with pytest.raises(EngineDownError):
                engine.rent("slow-1", OFFER, WANTS)

        thread = threading.Thread(target=rent)
        thread.start()
        while tuple(engine.boxes()) != ("slow-1",):
            pass
        engine.close()
        thread.join()

    def test_the_end_of_the_server_ends_what_it_left(self, engine: SkyEngine, tmp_path: Path) -> None:
        with workers(tmp_path / "home") as ours, workers(tmp_path / "elsewhere") as others:
            engine.stop_server()
            assert all(not Path(f"/proc/{pid}/exe").exists() for pid in ours)
            assert all(Path(f"/proc/{pid}/exe").exists() for pid in others)


@contextmanager
def workers(home: Path) -> Iterator[list[int]]:
    """What a killed server leaves: a process with its environment, and one that has overwritten its own."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "SKYPILOT_API_SERVER_LOCAL_PORT": "46601"}
    (home / ".sky").mkdir(parents=True)
    (home / ".sky/user_hash").write_text(home.name)
    ssh = f"setsid bash -c 'exec -a \"ssh: /tmp/sky_ssh_{home.name}/1 [mux]\" sleep 600'"
    text = f"env -i sleep 600 >&- & echo $!; env -i PATH=$PATH {ssh} >&- & echo $!; exec sleep 600 >&-"
    first = subprocess.Popen(["sh", "-c", text], env=environ, start_new_session=True, stdout=subprocess.PIPE)
    assert first.stdout is not None
    with first.stdout as said:
        pids = [first.pid, *map(int, said.read().split())]
    try:
        yield pids
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        first.wait()


class TestElsewhere:
    def test_what_can_be_rented_is_read_from_skypilots_catalogue(self, engine: SkyEngine) -> None:
        found = SkyMarket(engine, "aws").offers(replace(WANTS, infra="aws"))
        assert [(each.gpu, each.gpus, each.per_hour, each.bid) for each in found] == [
            ("RTX 4090", 1, 0.44, None),
            ("RTX 4090", 2, 0.88, None),
            ("A100 80GB", 1, 1.2, None),
        ]
        assert found[2].id == "A100-80GB:1:"

    def test_spot_has_its_own_price_and_other_cards_are_left_out(self, engine: SkyEngine) -> None:
        wants = replace(WANTS, infra="aws", spot=True, gpus=(GpuWant(name="RTX4090"),))
        [found] = SkyMarket(engine, "aws").offers(wants)
        assert (found.per_hour, found.is_spot) == (0.3, True)

    @pytest.mark.parametrize(
        ("infra", "spot", "why"),
        [
            ("gcp", False, "gcp is not enabled in SkyPilot: Reason: no key. Run: gcloud$"),
            ("hyperbolic", False, "hyperbolic does not support"),
            ("lambda", True, "lambda does not support"),
        ],
    )
    def test_what_is_not_enabled_or_cannot_end_a_box_is_refused(
        self, engine: SkyEngine, infra: str, spot: bool, why: str
    ) -> None:
        with pytest.raises(VastError, match=why):
            SkyMarket(engine, infra).offers(replace(WANTS, infra=infra, spot=spot))

    def test_the_end_of_a_box_is_proved_by_skypilots_list(self, engine: SkyEngine) -> None:
        market = SkyMarket(engine, "aws")
        address = engine.rent("wt-1", replace(OFFER, id="RTX4090:1:k"), replace(WANTS, infra="aws"))
        assert address.proxy == ""
        [box] = market.boxes()
        assert (box.label, box.power, box.is_of("wt-1")) == ("wt-1", Power.RUNNING, True)
        market.destroy("wt-1")
        assert market.boxes() == ()

    @pytest.mark.parametrize(
        ("name", "shown"),
        [("RTX4090", "RTX 4090"), ("RTXA6000", "RTX A6000"), ("RTXPRO6000", "RTX PRO 6000"), ("L40S", "L40S")],
    )
    def test_names_of_cards(self, name: str, shown: str) -> None:
        assert card_name(name) == shown

    @pytest.mark.parametrize("infra", KNOWN)
    def test_the_keeper_is_a_script(self, infra: str) -> None:
        task = task_for(replace(OFFER, id="L4:1:k"), replace(WANTS, infra=infra))
        assert subprocess.run(["sh", "-n"], input=task["run"], text=True, check=False).returncode == 0

    @pytest.mark.parametrize(("made", "minutes"), [("over", 3), ("plan", 480), ("", 240)])
    def test_a_box_ends_when_its_guardian_says_so_or_nothing_trains_or_at_the_limit(
        self, tmp_path: Path, made: str, minutes: int
    ) -> None:
        script = keeper(6).replace("/workspace", str(tmp_path))
        (tmp_path / "wan-train-launch").mkdir()
        if made == "plan":
            (tmp_path / "wan-train-runs/run").mkdir(parents=True)
            (tmp_path / "wan-train-runs/run/plan.json").touch()
        over = (
            f"[ $(wc -l <{tmp_path}/slept) -lt 3 ] || touch {tmp_path}/wan-train-launch/over" if made == "over" else ":"
        )
        (tmp_path / "sleep").write_text(f"#!/bin/sh\necho >>{tmp_path}/slept\n{over}\n")
        (tmp_path / "sleep").chmod(0o755)
        subprocess.run(["sh", "-c", script], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True)
        assert (tmp_path / "slept").read_text().count("\n") == minutes


class TestTask:
    def test_on_vast_the_offer_is_named_and_a_bid_is_passed_on(self) -> None:
        task = task_for(replace(OFFER, bid=0.25), WANTS)
        assert task["config"]["vast"]["create_instance_kwargs"] == {
            vast_plugin.OFFER: "101",
            vast_plugin.PRICE: 0.25,
            vast_plugin.SECONDS: 900.0,
            vast_plugin.TIMER: timer(WANTS.max_hours),
        }
        assert task["resources"]["instance_type"] == kind_of(2)
        assert vast_plugin.PRICE not in task_for(OFFER, WANTS)["config"]["vast"]["create_instance_kwargs"]

    def test_elsewhere_the_kind_of_box_is_and_it_ends_by_itself(self) -> None:
        task = task_for(replace(OFFER, id="RTX4090:2:2x_4090"), replace(WANTS, infra="runpod", spot=True))
        assert task["resources"]["accelerators"] == {"RTX4090": 2}
        assert task["resources"]["instance_type"] == "2x_4090"
        assert task["resources"]["use_spot"]
        assert task["resources"]["autostop"] == {"idle_minutes": 5, "down": True, "wait_for": "jobs"}
        assert str(OVER) in task["run"]
        assert "config" not in task

    def test_every_number_of_gpus_is_in_the_catalogue(self) -> None:
        rows = list(csv.DictReader(catalogue()["catalogs/v8/vast/vms.csv"].splitlines()))
        assert [row["InstanceType"] for row in rows][:2] == [kind_of(1), kind_of(2)]
        assert len(rows) == 16

    def test_a_home_of_other_infrastructure_has_its_credentials_and_no_others(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user = tmp_path / "user"
        for name in (".aws", ".runpod", ".kube"):
            (user / name).mkdir(parents=True)
        monkeypatch.setenv("HOME", str(user))
        home = SkyHome(python=Path(sys.executable), folder=tmp_path / "sky", port=46999, infra="runpod")
        home.write()
        home.write()
        assert (home.folder / ".runpod").readlink() == user / ".runpod"
        assert not (home.folder / ".aws").exists()
        assert not (home.folder / ".sky/plugins.yaml").exists()
        environ = {"AWS_PROFILE": "me", "KUBECONFIG": "/k", "VAST_API_KEY": "secret"}
        assert variables_of("aws", environ) == {"AWS_PROFILE": "me"}
        assert variables_of("runpod", environ) == {}

    def test_the_home_has_our_programs_and_nothing_else_of_ours(self, tmp_path: Path) -> None:
        home = SkyHome(python=Path(sys.executable), folder=tmp_path, port=46999)
        home.write()
        home.write()
        assert sorted(path.name for path in home.programs.iterdir()) == ["sky_driver.py", "vast_plugin.py"]
        assert "vast_plugin.VastPlugin" in (tmp_path / ".sky/plugins.yaml").read_text()
        assert home.environ({"VAST_API_KEY": "k"})["SKYPILOT_API_SERVER_LOCAL_PORT"] == "46999"
