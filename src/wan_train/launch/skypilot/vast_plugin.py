"""Fixes SkyPilot on Vast.ai, as a plugin of its API server (`sky/server/plugins.py`).

It works only with skypilot 0.14.1 and vastai 1.9.1 and refuses others, because it replaces some of their functions.
Each fix names its fault and can go once SkyPilot no longer has that fault.

It does not search for a box: the launch found an offer, which the task's `create_instance_kwargs` name.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

VERSIONS = {"skypilot": "0.14.1", "vastai": "1.9.1"}
OFFER = "wan_train_offer"
PRICE = "wan_train_price"
SECONDS = "wan_train_seconds"
TIMER = "wan_train_timer"
"""Keys of `create_instance_kwargs`: the offer's ID, a spot box's bid, the seconds it may take to run, and a script
that the box runs at its start."""
DEFAULT_SECONDS = 900.0
LOOK_SECONDS = 5.0
_DOWN = frozenset({"exited", "stopped", "offline", "frozen"})


class BoxError(RuntimeError):
    """A box did not come up, and was destroyed."""


def check_versions(installed: Callable[[str], str] = importlib.metadata.version) -> None:
    """Raise RuntimeError for unsupported versions."""
    for package, wanted in VERSIONS.items():
        found = installed(package)
        if found != wanted:
            raise RuntimeError(f"wan-train's plugin is for {package} {wanted}, not {found}")


def onstart(public_key: str | None, timer: str = "") -> str:
    """Return the script that a box runs first.

    SkyPilot 0.14.1 also writes the account's key to `~/.vast_api_key` (sky/provision/vast/utils.py, `launch`): a rented
    box could then rent and destroy any other. Here a box does not get the key.
    """
    lines = ["touch ~/.no_auto_tmux"]
    if public_key:
        key = shlex.quote(public_key.strip())
        lines += [
            "mkdir -p ~/.ssh && chmod 700 ~/.ssh",
            f"(echo; echo {key}) >> ~/.ssh/authorized_keys",
            "chmod 600 ~/.ssh/authorized_keys",
        ]
    return ";".join(lines) + (f"\n(\n{timer}\n)" if timer else "")


def order(options: Mapping[str, Any], *, label: str, image: str, disk: float, public_key: str | None) -> dict[str, Any]:
    """The arguments of `create_instance` for exactly the chosen offer.

    This avoids three faults of SkyPilot 0.14.1. Its search loses the GPU filter, because the SDK's parser stops at the
    first quoted value: one RTX 4090 became a box with two (skypilot issue 9733, PR 9724). It takes the first offer by
    Vast's score, not the cheapest. And `use_spot` rents an on-demand box unless a price is passed explicitly.
    """
    offer = str(options.get(OFFER, ""))
    if not (offer.isascii() and offer.isdecimal()):
        raise BoxError("no offer was named for this box")
    made: dict[str, Any] = {
        "id": int(offer),
        "image": image,
        "disk": disk,
        "label": label,
        "onstart_cmd": onstart(public_key, str(options.get(TIMER) or "")),
        "env": {"__SOURCE": "skypilot"},
        # Fail if the offer was rented meanwhile, instead of getting a stopped box that waits for it.
        "cancel_unavail": True,
    }
    if options.get(PRICE) is not None:
        made["price"] = float(options[PRICE])
    return made


def _reason(error: Exception) -> str:
    """Vast's own message, such as an offer that is gone or no credit. The error itself names only a status."""
    try:
        said = error.response.json()  # type: ignore[attr-defined]  # requests.HTTPError
        return str(said.get("msg") or said.get("error") or error)
    except (AttributeError, TypeError, ValueError):
        return str(error)


def status_word(row: Mapping[str, Any]) -> str:
    """Return SkyPilot's word, `INIT`, `UP` or `STOPPED`, for a box in Vast's list.

    SkyPilot 0.14.1 raises KeyError for every state that is not in its table of four
    (sky/provision/vast/instance.py, `query_instances`).
    """
    said, meant = row.get("actual_status"), row.get("intended_status")
    if said in _DOWN or meant == "stopped":
        return "STOPPED"
    return "UP" if said == "running" else "INIT"


class Boxes:
    """The boxes of one account. `sdk` is `vastai.VastAI`. Time is injected, so that waits can be tested."""

    def __init__(
        self,
        sdk: Any,  # noqa: ANN401  a class from another environment
        *,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sdk = sdk
        self.sleep = sleep
        self.monotonic = monotonic

    def of(self, cluster: str) -> list[dict[str, Any]]:
        labels = {f"{cluster}-head", f"{cluster}-worker"}
        return [row for row in self.sdk.show_instances() if row.get("label") in labels]

    def rent(self, cluster: str, options: Mapping[str, Any], **terms: Any) -> str:  # noqa: ANN401  see `order`
        """Return the ID of a running box. A box already rented under this name is reused.

        SkyPilot 0.14.1 waits without a limit for a box to run, while a box that never does is billed.
        """
        until = self.monotonic() + float(options.get(SECONDS) or DEFAULT_SECONDS)
        try:
            if not self.of(cluster):
                self._order(cluster, options, terms)
            seen = False
            while (box := self._running(cluster)) is None:
                if seen and not self.of(cluster):
                    raise BoxError("it was destroyed before it ran")  # noqa: TRY301  the handler below is for it too
                seen = seen or bool(self.of(cluster))
                self._wait(until)
        except BaseException:
            self.destroy(cluster)
            raise
        return box

    def _order(self, cluster: str, options: Mapping[str, Any], terms: Mapping[str, Any]) -> None:
        asked = order(options, label=f"{cluster}-head", **terms)
        try:
            made = self.sdk.create_instance(**asked)
        except Exception as error:
            raise BoxError(f"Vast did not rent it: {_reason(error)}") from error
        if not isinstance(made, dict) or not made.get("new_contract"):
            raise BoxError("Vast did not rent it")

    def _running(self, cluster: str) -> str | None:
        for row in self.of(cluster):
            word = status_word(row)
            if word == "STOPPED":
                raise BoxError(f"it was stopped before it ran: {row.get('status_msg') or row.get('actual_status')}")
            if word == "UP" and row.get("ssh_port"):
                return str(row["id"])
        return None

    def _wait(self, until: float) -> None:
        if self.monotonic() > until:
            raise BoxError("it did not run in time")
        self.sleep(LOOK_SECONDS)

    def destroy(self, cluster: str) -> None:
        for row in self.of(cluster):
            self.sdk.destroy_instance(id=row["id"])

    def statuses(self, cluster: str) -> dict[str, str]:
        return {str(row["id"]): status_word(row) for row in self.of(cluster)}


def _plugin_base() -> type:
    """SkyPilot's base class; `object` without SkyPilot, so that the parts above can be tested."""
    try:
        base: type = importlib.import_module("sky.server.plugins").BasePlugin
    except ImportError:
        return object
    return base


class VastPlugin(_plugin_base()):  # type: ignore[misc]  # a class from another environment
    """Loaded in every process of the API server by `plugins.yaml`."""

    def install(self, extension_context: Any) -> None:  # noqa: ANN401, ARG002  SkyPilot's own type; its signature
        check_versions()
        provision = importlib.import_module("sky.provision")
        provision.register_provisioner("vast", _Provisioner())
        # SkyPilot copies every cloud's key files to every box, and for Vast no setting turns that off
        # (sky/check.py, `get_cloud_credential_file_mounts`).
        check: Any = importlib.import_module("sky.check")
        check.get_cloud_credential_file_mounts = lambda _excluded: {}
        # The key is in the server's environment, but SkyPilot looks only for a key file.
        importlib.import_module("sky.clouds.vast").Vast._check_compute_credentials = classmethod(  # noqa: SLF001  what SkyPilot itself calls
            lambda _cls: (True, None)
        )


class _Provisioner:
    """Functions that SkyPilot calls for Vast in place of its own. It keeps its own for those missing here."""

    def run_instances(self, region: str, cluster_name: str, cluster_name_on_cloud: str, config: Any) -> Any:  # noqa: ANN401, ARG002  SkyPilot's own types; its signature
        path = config.authentication_config.get("ssh_public_key")
        box = _boxes().rent(
            cluster_name_on_cloud,
            config.provider_config.get("create_instance_kwargs", {}),
            image=config.node_config["ImageId"],
            disk=config.node_config["DiskSize"],
            public_key=Path(path).expanduser().read_text(encoding="utf-8") if path else None,
        )
        return importlib.import_module("sky.provision.common").ProvisionRecord(
            provider_name="vast",
            cluster_name=cluster_name_on_cloud,
            region=region,
            zone=None,
            head_instance_id=box,
            resumed_instance_ids=[],
            created_instance_ids=[box],
        )

    def query_instances(
        self,
        cluster_name: str,  # noqa: ARG002  SkyPilot's signature
        cluster_name_on_cloud: str,
        provider_config: Any = None,  # noqa: ANN401, ARG002  the same
        non_terminated_only: bool = True,  # noqa: ARG002, FBT001, FBT002  the same
        retry_if_missing: bool = False,  # noqa: ARG002, FBT001, FBT002  the same
    ) -> dict[str, tuple[Any, None]]:
        words = importlib.import_module("sky.utils.status_lib").ClusterStatus
        return {box: (words[word], None) for box, word in _boxes().statuses(cluster_name_on_cloud).items()}


def _boxes() -> Boxes:
    return Boxes(importlib.import_module("sky.adaptors.vast").vast())
