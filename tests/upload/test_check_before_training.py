"""A target that cannot be written to is known before a training starts, and nothing is started then."""

from __future__ import annotations

from pathlib import Path

import pytest
from upload_world import Place

from support.upload_hub import READER, Refusal, Repo, UploadHub
from wan_train.base import settings
from wan_train.base.errors import NotReadyError
from wan_train.cli.output import Sink
from wan_train.cli.upload import check_targets


def runs(place: Place) -> set[str]:
    return {path.name for path in place.runs.iterdir()} - {place.path.name}


def test_a_wrong_token_starts_nothing(place: Place, hub: UploadHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_0123456789")
    code, _, err = place.call("rehearse", "--upload", "hf:me/cat", "--detach")
    assert code == 3, err
    assert "error: nothing was started: hf:me/cat: the hub refuses the token from HF_TOKEN (HTTP 401)" in err
    assert "export HF_TOKEN=" in err
    assert runs(place) <= {"rehearsal-pictures"}, "no run directory"
    assert not hub.repos


def test_the_check_leaves_no_trace_in_the_history(place: Place, hub: UploadHub) -> None:
    hub.repos["me/cat"] = Repo(private=True)
    check_targets(["hf:me/cat"], place.settings, Sink())
    assert hub.repos["me/cat"] == Repo(private=True)
    assert "POST /api/models/me/cat/commit/wan-train-check" in hub.asked
    assert "hf:me/cat can be written to." in place.capsys.readouterr().err


def test_a_token_that_only_reads_is_found_though_the_repository_is_there(
    place: Place, hub: UploadHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["me/cat"] = Repo(private=False)
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(NotReadyError, match="may not write there"):
        check_targets(["hf:me/cat"], place.settings, Sink())


def test_a_hub_that_is_down_keeps_no_box_waiting(place: Place, hub: UploadHub) -> None:
    hub.refusals = [Refusal(where="/repos/create", status=503)]
    check_targets(["hf:me/cat"], place.settings, Sink())
    assert "hf:me/cat cannot be checked now: HTTP 503" in place.capsys.readouterr().err


def test_every_problem_is_said_at_once(place: Place, hub: UploadHub, rclone: Path, tmp_path: Path) -> None:
    assert rclone
    targets = ["rclone:nowhere:x", "hf:another/cat", f"rclone:{tmp_path}/shelf"]
    with pytest.raises(NotReadyError) as caught:
        check_targets(targets, place.settings, Sink())
    assert "rclone:nowhere:x: rclone has no remote named 'nowhere'" in caught.value.message
    assert "hf:another/cat: the repository is another's" in caught.value.message
    assert "rclone config" in str(caught.value.hint)
    assert not list((tmp_path / "shelf").iterdir())
    assert not hub.repos


@pytest.mark.parametrize("text", ["hf:me", "s3:bucket", "rclone:", "hf:me/../cat", "rclone::s3,secret_access_key=x:b"])
def test_what_is_no_target(place: Place, text: str) -> None:
    code, out, err = place.call("upload", "mylora", text)
    assert code == 2
    assert "cannot be uploaded to" in err
    assert "secret_access_key" not in out + err


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("hf:me/cat rclone:drive:My LoRAs hf-public:me/b", ("hf:me/cat", "rclone:drive:My LoRAs", "hf-public:me/b")),
        ("rclone:/mnt/a b\nrclone:/mnt/c", ("rclone:/mnt/a b", "rclone:/mnt/c")),
        ("none", ()),
    ],
)
def test_several_targets_in_one_text(text: str, targets: tuple[str, ...]) -> None:
    assert settings.split_targets(text) == targets
    found = settings.resolve(flags={}, environ={"WAN_TRAIN_UPLOAD": text}, file=Path("/nowhere"))
    assert found.upload == targets
    assert settings.resolve(flags={}, environ=found.environment(), file=Path("/nowhere")).upload == targets
