"""Uploads to the Hugging Face hub, by its own client: what is sent, verified, refused, and never sent twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from upload_world import BOTH, HIGH, KEPT, LOW, RUNNING, Place, lora, make

from support.upload_hub import READER, STRANGER, WRITER, Refusal, Repo, UploadHub
from wan_train.base.clock import moment
from wan_train.run.duties import Duties, write_duties
from wan_train.upload.status import due, unverified

TARGET = "hf:me/cat"
RECORDS = {"recipe.toml", "dataset.toml"}


def test_everything_that_is_ready_comes_in_one_commit_to_a_private_repository(place: Place, hub: UploadHub) -> None:
    lora(place.path / KEPT, 0.5)
    line = place.json("upload", "mylora", TARGET)
    repo = hub.repos["me/cat"]
    assert repo.private
    ((message, names),) = repo.commits
    assert message == "20261122-141500-mylora: 6 files by wan-train"
    assert set(names) == {HIGH, LOW, KEPT, "README.md", *RECORDS}
    assert all(repo.files[name] == (place.path / name).read_bytes() for name in (HIGH, LOW, KEPT, *RECORDS))
    (told,) = line["uploads"]
    assert (told["target"], told["state"], told["ready"], told["verified"]) == (TARGET, "verified", 5, 5)
    assert told["download"] == "hf download me/cat --include '*.safetensors' --local-dir ."


def test_the_card_says_what_was_trained(place: Place, hub: UploadHub) -> None:
    place.upload(TARGET)
    card = hub.repos["me/cat"].files["README.md"].decode()
    head, _, text = card.removeprefix("---\n").partition("\n---\n")
    assert "base_model: Wan-AI/Wan2.2-T2V-A14B" in head
    assert "instance_prompt: blkcat, a cat number" in head
    assert "# mylora" in text
    assert "Every caption begins with: blkcat, a cat number" in text
    assert "| Rank | 16 | 16 |" in text
    assert f"| {HIGH.replace('_', chr(92) + '_').replace('-', chr(92) + '-').replace('.', chr(92) + '.')} |" in text


def test_a_second_call_sends_nothing_and_asks_nobody(place: Place, hub: UploadHub) -> None:
    assert place.call("upload", "mylora", TARGET)[0] == 0
    asked = len(hub.asked)
    code, out, _ = place.call("upload", "mylora", TARGET)
    assert code == 0
    assert out.splitlines() == [
        f"{TARGET}: 4 files verified (1 kB)",
        "Download (on your own computer):",
        "    hf download me/cat --include '*.safetensors' --local-dir .",
    ]
    assert len(hub.asked) == asked


def test_a_lora_is_sent_while_the_other_still_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hub: UploadHub
) -> None:
    place = make(tmp_path, capsys, {**BOTH, "train-low": RUNNING})
    assert due(place.run, [TARGET], now=place.clock.now())
    place.upload(TARGET)
    assert not due(place.run, [TARGET], now=place.clock.now())
    assert set(hub.repos["me/cat"].files) == {HIGH, "README.md", *RECORDS}
    assert unverified(place.run, [TARGET]) == ("the run has not ended",)
    lora(place.path / LOW, 2.0)
    assert due(place.run, [TARGET], now=place.clock.now())
    place.upload(TARGET)
    (_, first), (_, second) = hub.repos["me/cat"].commits
    assert HIGH in first
    assert set(second) <= {LOW, "README.md"}


def test_samples_and_the_dataset_come_on_request(place: Place, hub: UploadHub) -> None:
    line = place.json("upload", "mylora", TARGET, "--with", "dataset")
    names = set(hub.repos["me/cat"].files)
    assert {f"dataset/0/{number}.{kind}" for number in range(3) for kind in ("png", "txt")} <= names
    assert line["uploads"][0]["ready"] == 10
    code, _, err = place.call("upload", "mylora", TARGET, "--with", "pictures")
    assert code == 2
    assert "'pictures' is nothing that can be uploaded on request" in err


def test_a_folder_and_a_public_repository(place: Place, hub: UploadHub) -> None:
    place.upload("hf-public:me/loras/cats")
    repo = hub.repos["me/loras"]
    assert not repo.private
    assert f"cats/{HIGH}" in repo.files
    line = place.json("upload", "mylora", "hf-public:me/loras/cats")
    assert line["uploads"][0]["download"] == "hf download me/loras --include 'cats/*.safetensors' --local-dir ."


def test_files_of_others_are_never_replaced(place: Place, hub: UploadHub) -> None:
    hub.repos["me/cat"] = Repo(private=True)
    hub.repos["me/cat"].files.update({HIGH: b"somebody else's " * 20, "README.md": b"my own card"})
    place.upload(TARGET)
    files = hub.repos["me/cat"].files
    assert (files[HIGH], files["README.md"]) == (b"somebody else's " * 20, b"my own card")
    assert files[f"20261122-141500-mylora/{HIGH}"] == (place.path / HIGH).read_bytes()
    assert unverified(place.run, [TARGET]) == ()
    line = place.json("upload", "mylora", TARGET)
    assert "20261122-141500-mylora/*.safetensors" in line["uploads"][0]["download"]


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("hf_wrong_0123456789", ("the hub refuses the token from HF_TOKEN (HTTP 401)", "Make one with write")),
        (READER, ("the token from HF_TOKEN may not write there", "Make one with write access")),
        (STRANGER, ("the repository is me's, and the token from HF_TOKEN is another's", "hf:another/cat")),
        ("", ("there is no token for the Hugging Face hub", "export HF_TOKEN=")),
    ],
)
def test_a_token_that_cannot_write_is_named(
    place: Place, hub: UploadHub, monkeypatch: pytest.MonkeyPatch, token: str, words: tuple[str, str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    code, out, err = place.call("upload", "mylora", TARGET)
    assert code == 3
    assert f"error: {TARGET}: {words[0]}" in err
    assert words[1] in err
    assert not hub.sent
    assert not token or token not in out + err + place.run.uploads.read_text(encoding="utf-8")
    known = place.known(TARGET)
    assert known.failed is not None
    assert known.failed.final
    assert not due(place.run, [TARGET], now=known.failed.at + 60)
    assert due(place.run, [TARGET], now=known.failed.at + 1000)


def test_a_full_account_says_so(place: Place, hub: UploadHub) -> None:
    hub.refusals = [Refusal(where="/commit/main", status=403, message="Private repository storage limit reached")]
    uploader = place.upload(TARGET)
    assert (
        "no space left for this account (HTTP 403: Private repository storage limit" in uploader.problems[TARGET].reason
    )
    assert place.known(TARGET).verified == {}
    assert unverified(place.run, [TARGET])[0].startswith(f"{TARGET} lacks 4 files: no space left")


def test_a_hub_that_is_down_is_tried_again_and_again(place: Place, hub: UploadHub) -> None:
    hub.refusals = [Refusal(where="/paths-info/", status=503)] * 6
    assert TARGET in place.upload(TARGET).problems
    assert place.clock.slept == [2, 8, 30]
    assert place.json("status")["uploads"] == [], "a target of nobody's that holds nothing"
    failed = place.known(TARGET).failed
    assert failed is not None
    assert (failed.reason, failed.final, failed.not_before - failed.at) == ("HTTP 503", False, 30)
    assert not due(place.run, [TARGET], now=place.clock.now())
    place.clock.at = failed.not_before
    assert due(place.run, [TARGET], now=place.clock.now())
    assert not place.upload(TARGET).problems
    assert unverified(place.run, [TARGET]) == ()
    assert "HTTP 503; retry in 2 s (1 of 3)" in place.said[1]


def test_nobody_listens_at_the_hubs_address(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    problem = place.upload(TARGET).problems[TARGET]
    assert problem.reason == "connection refused"
    assert problem.hint == "Check the network, HF_ENDPOINT and proxies."


def test_the_hubs_own_pause_is_kept(place: Place, hub: UploadHub) -> None:
    hub.refusals = [Refusal(where="/paths-info/", status=429, headers={"Retry-After": "45"})]
    assert not place.upload(TARGET).problems
    assert place.clock.slept == [45]


def test_a_connection_that_breaks_in_the_middle_of_a_file(place: Place, hub: UploadHub) -> None:
    lora(place.path / HIGH, 1.0, size=200_000)
    hub.refusals = [Refusal(where="/lfs/", after=32_768)]
    assert not place.upload(TARGET).problems
    assert hub.repos["me/cat"].files[HIGH] == (place.path / HIGH).read_bytes()
    assert unverified(place.run, [TARGET]) == ()


def test_other_bytes_at_the_hub_are_noticed(place: Place, hub: UploadHub) -> None:
    place.upload(TARGET)
    lora(place.path / KEPT, 3.0)
    hub.damages = {KEPT}
    assert not place.upload(TARGET).problems
    assert f"the hub's copy differs from the uploaded file: {KEPT}; retry in 2 s" in "\n".join(place.said)
    assert hub.repos["me/cat"].files[KEPT] == (place.path / KEPT).read_bytes()


def test_a_file_that_changes_while_it_is_sent_is_sent_again(place: Place, hub: UploadHub) -> None:
    recipe = place.path / "recipe.toml"

    class Changing(list[str]):
        def append(self, request: str) -> None:
            if "/commit/" in request and not any("/commit/" in each for each in self):
                recipe.write_text("# another recipe\n", encoding="utf-8")
            super().append(request)

    hub.asked = Changing()
    assert not place.upload(TARGET).problems
    assert "recipe.toml changed while it was read" in "\n".join(place.said)
    assert hub.repos["me/cat"].files["recipe.toml"] == b"# another recipe\n"


def test_what_is_verified_is_what_lies_there(place: Place, hub: UploadHub) -> None:
    place.upload(TARGET)
    told = place.known(TARGET).verified[HIGH]
    assert told.sha256 == hashlib.sha256(hub.repos["me/cat"].files[HIGH]).hexdigest()
    assert (told.where, told.bytes) == (HIGH, (place.path / HIGH).stat().st_size)
    lines = [json.loads(line) for line in place.run.uploads.read_text(encoding="utf-8").splitlines()]
    assert WRITER not in json.dumps(lines)


def test_a_target_of_the_run_says_when_it_is_tried_again(place: Place, hub: UploadHub) -> None:
    write_duties(place.run, Duties(began=moment(place.clock), uploads=(TARGET,), upload_extras=("dataset",)))
    (waiting,) = place.json("status")["uploads"]
    assert (waiting["state"], waiting["ready"], waiting["next_try"]) == ("pending", 10, None)
    hub.refusals = [Refusal(where="/paths-info/", status=503)] * 4
    place.upload(TARGET, "dataset")
    (failed,) = place.json("status")["uploads"]
    assert (failed["state"], failed["problem"]) == ("failed", "HTTP 503")
    assert failed["next_try"] == place.clock.now() + 30
    assert "0 of 10 files verified; next try" in place.call("status")[1]
    assert place.json("upload")["uploads"][0]["verified"] == 10, (
        "without words: the newest run, its own targets and extras"
    )


def test_the_way_home_names_this_box_where_its_provider_does(
    place: Place, hub: UploadHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "scp -P PORT 'root@HOST:" in place.call("status")[1]
    monkeypatch.setenv("PUBLIC_IPADDR", "203.0.113.7")
    monkeypatch.setenv("VAST_TCP_PORT_22", "41234")
    assert f"scp -P 41234 'root@203.0.113.7:{place.path}/*.safetensors' ." in place.call("status")[1]
    assert hub.address
    place.upload(TARGET)
    out = place.call("status")[1]
    assert "    hf download me/cat --include '*.safetensors' --local-dir .\n    scp -P 41234 " in out
    monkeypatch.setenv("VAST_TCP_PORT_22", "none")
    assert "scp" not in place.call("status")[1]
