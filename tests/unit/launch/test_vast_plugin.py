"""The repairs of SkyPilot on Vast, without SkyPilot: each test fails without its repair."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from wan_train.launch.skypilot import vast_plugin
from wan_train.launch.skypilot.vast_plugin import BoxError, Boxes, check_versions, order, status_word


class FakeSdk:
    """Vast's SDK: rows that change with every look."""

    def __init__(self, *looks: dict[str, Any]) -> None:
        self.looks = list(looks)
        self.rows: list[dict[str, Any]] = []
        self.ordered: list[dict[str, Any]] = []
        self.destroyed: list[int] = []
        self.refuses = False

    def show_instances(self) -> list[dict[str, Any]]:
        if self.rows and self.looks:
            self.rows[0] |= self.looks.pop(0)
        return [dict(row) for row in self.rows]

    def create_instance(self, **order: Any) -> object:
        self.ordered.append(order)
        if self.refuses:
            return {"success": False}
        self.rows.append({"id": 7, "label": order["label"], "actual_status": None, "ssh_port": 1})
        return {"new_contract": 7}

    def destroy_instance(self, *, id: int) -> None:  # noqa: A002  the SDK's own name
        self.destroyed.append(id)
        self.rows = [row for row in self.rows if row["id"] != id]


class Time:
    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


def boxes(sdk: FakeSdk) -> Boxes:
    clock = Time()
    return Boxes(sdk, sleep=clock.sleep, monotonic=clock.monotonic)


def pretend(monkeypatch: pytest.MonkeyPatch, modules: Mapping[str, Mapping[str, Any]]) -> None:
    """Modules of SkyPilot, which is not in this environment."""
    for name, parts in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(parts)
        monkeypatch.setitem(sys.modules, name, module)


TERMS = {"image": "i", "disk": 120, "public_key": "ssh-ed25519 AAAA me"}


class TestPlugin:
    def test_exactly_the_offer_is_rented_and_no_search_is_made(self) -> None:
        sdk = FakeSdk({"actual_status": "loading"}, {"actual_status": "running"})
        assert boxes(sdk).rent("c", {vast_plugin.OFFER: "101", vast_plugin.PRICE: 0.25}, **TERMS) == "7"
        [made] = sdk.ordered
        assert (made["id"], made["price"], made["label"], made["cancel_unavail"]) == (101, 0.25, "c-head", True)

    def test_on_demand_there_is_no_bid(self) -> None:
        assert "price" not in order({vast_plugin.OFFER: "101"}, label="c", **TERMS)  # type: ignore[arg-type]  # all of it

    def test_the_accounts_key_is_not_on_the_box(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VAST_API_KEY", "the-account")
        made = order({vast_plugin.OFFER: "101"}, label="c", **TERMS)  # type: ignore[arg-type]  # all of it
        assert "the-account" not in str(made)
        assert "api_key" not in made["onstart_cmd"]
        assert "ssh-ed25519 AAAA me" in made["onstart_cmd"]

    def test_the_timer_runs_from_the_start_and_cannot_end_the_start_script(self, tmp_path: Path) -> None:
        options = {vast_plugin.OFFER: "101", vast_plugin.TIMER: "echo timer\nexit 3"}
        script = order(options, label="c", **TERMS)["onstart_cmd"] + "\necho after"  # type: ignore[arg-type]  # all of it
        done = subprocess.run(
            ["bash", "-c", script], check=True, capture_output=True, text=True, env={"HOME": str(tmp_path)}
        )
        assert done.stdout.splitlines() == ["timer", "after"]

    def test_a_second_order_under_the_same_name_rents_nothing(self) -> None:
        sdk = FakeSdk({"actual_status": "running"})
        sdk.rows = [{"id": 7, "label": "c-head", "actual_status": None, "ssh_port": 1}]
        assert boxes(sdk).rent("c", {}, **TERMS) == "7"
        assert sdk.ordered == []

    def test_one_that_never_runs_is_given_back(self) -> None:
        sdk = FakeSdk()
        with pytest.raises(BoxError, match="did not run in time"):
            boxes(sdk).rent("c", {vast_plugin.OFFER: "101"}, **TERMS)
        assert sdk.destroyed == [7]

    def test_one_that_is_outbid_while_it_comes_up_is_given_back(self) -> None:
        sdk = FakeSdk({"actual_status": "loading"}, {"actual_status": "exited", "status_msg": "outbid"})
        with pytest.raises(BoxError, match="outbid"):
            boxes(sdk).rent("c", {vast_plugin.OFFER: "101"}, **TERMS)
        assert sdk.destroyed == [7]

    def test_a_refusal(self) -> None:
        sdk = FakeSdk()
        sdk.refuses = True
        with pytest.raises(BoxError, match="did not rent it"):
            boxes(sdk).rent("c", {vast_plugin.OFFER: "101"}, **TERMS)

    def test_the_reason_of_a_refusal_is_vasts_own(self) -> None:
        class Refused(Exception):  # noqa: N818  stands for requests.HTTPError
            response = types.SimpleNamespace(json=lambda: {"success": False, "msg": "Your account lacks credit"})

        def refuse(**_: object) -> None:
            raise Refused("400 Client Error: Bad Request")

        sdk = FakeSdk()
        sdk.create_instance = refuse  # type: ignore[method-assign]  # what this SDK does
        with pytest.raises(BoxError, match="Vast did not rent it: Your account lacks credit"):
            boxes(sdk).rent("c", {vast_plugin.OFFER: "101"}, **TERMS)

    def test_installed_it_keeps_every_key_file_from_the_boxes_and_rents_by_itself(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Vast:
            @classmethod
            def _check_compute_credentials(cls) -> tuple[bool, str | None]:
                return False, "no key file"

        provisioners: dict[str, Any] = {}
        modules: dict[str, dict[str, Any]] = {
            "sky": {},
            "sky.provision": {"register_provisioner": provisioners.__setitem__},
            "sky.check": {"get_cloud_credential_file_mounts": lambda _: {"~/.aws/credentials": "/root/.aws"}},
            "sky.clouds": {},
            "sky.clouds.vast": {"Vast": Vast},
        }
        pretend(monkeypatch, modules)
        for package, version in vast_plugin.VERSIONS.items():
            folder = tmp_path / f"{package}-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        monkeypatch.syspath_prepend(tmp_path)
        vast_plugin.VastPlugin().install(None)
        assert sys.modules["sky.check"].get_cloud_credential_file_mounts([]) == {}
        assert Vast._check_compute_credentials() == (True, None)
        assert set(provisioners) == {"vast"}
        assert callable(provisioners["vast"].run_instances)
        assert callable(provisioners["vast"].query_instances)

    def test_skypilot_gets_a_box_that_runs_and_a_word_for_each_state(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sdk = FakeSdk({"actual_status": "running"}, {"actual_status": "a new state"})
        status = {word: f"ClusterStatus.{word}" for word in ("INIT", "UP", "STOPPED")}
        pretend(
            monkeypatch,
            {
                "sky": {},
                "sky.adaptors": {},
                "sky.adaptors.vast": {"vast": lambda: sdk},
                "sky.provision": {},
                "sky.provision.common": {"ProvisionRecord": dict},
                "sky.utils": {},
                "sky.utils.status_lib": {"ClusterStatus": status},
            },
        )
        (tmp_path / "key.pub").write_text("ssh-ed25519 AAAA me")
        config = types.SimpleNamespace(
            authentication_config={"ssh_public_key": str(tmp_path / "key.pub")},
            provider_config={"create_instance_kwargs": {vast_plugin.OFFER: "101"}},
            node_config={"ImageId": "image", "DiskSize": 120},
        )
        provisioner = vast_plugin._Provisioner()
        record = provisioner.run_instances("anywhere", "wt-1", "wt-1-ab", config)
        assert (record["head_instance_id"], record["created_instance_ids"]) == ("7", ["7"])
        assert (sdk.ordered[0]["label"], sdk.ordered[0]["image"], sdk.ordered[0]["disk"]) == (
            "wt-1-ab-head",
            "image",
            120,
        )
        assert provisioner.query_instances("wt-1", "wt-1-ab") == {"7": ("ClusterStatus.INIT", None)}

    @pytest.mark.parametrize("offer", [{}, {vast_plugin.OFFER: ""}, {vast_plugin.OFFER: "1;2"}])
    def test_without_an_offer_nothing_is_rented(self, offer: dict[str, str]) -> None:
        with pytest.raises(BoxError, match="no offer"):
            boxes(FakeSdk()).rent("c", offer, **TERMS)

    @pytest.mark.parametrize(
        ("said", "word"),
        [
            ("running", "UP"),
            ("loading", "INIT"),
            (None, "INIT"),
            ("created", "INIT"),
            ("exited", "STOPPED"),
            ("?", "INIT"),
        ],
    )
    def test_every_state_has_a_word(self, said: str | None, word: str) -> None:
        assert status_word({"actual_status": said}) == word

    def test_other_versions_are_refused(self) -> None:
        check_versions(vast_plugin.VERSIONS.__getitem__)
        with pytest.raises(RuntimeError, match=r"is for skypilot 0\.14\.1, not 0\.15\.0"):
            check_versions(lambda _: "0.15.0")
