"""Tokens of the environment stay there."""

from __future__ import annotations

from pathlib import Path

from support.trainers import ScriptedBox

SECRETS = {
    "HF_TOKEN": "hf_" + "Ab3" * 12,
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "89abcdef",
    "SOME_PASSWORD": "correct-horse-battery",
}
IN_ADDRESS = "geheim-t0ken-4711"
NOTIFY = f"json://me:{IN_ADDRESS}@127.0.0.1:9/{IN_ADDRESS}?rto=1"
"""Where nobody listens."""


def holds_secret(data: bytes) -> list[str]:
    return [name for name, value in {**SECRETS, "WAN_TRAIN_NOTIFY": IN_ADDRESS}.items() if value.encode() in data]


def environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended meanwhile
        return b""


def test_no_secret_is_in_a_file_of_the_run_or_on_a_command_line(scripted_box: ScriptedBox) -> None:
    running = scripted_box.popen_cli(
        *scripted_box.train_words(), **SECRETS, WAN_TRAIN_NOTIFY=NOTIFY, SCRIPTED_STEP_SECONDS="0.05"
    )
    scripted_box.wait_for_record("epoch", place="low")
    processes = scripted_box.processes()
    assert any("wan_train_network" in words for words in processes.values())
    assert not {pid: words for pid, words in processes.items() if holds_secret(words.encode())}
    assert not [pid for pid in processes if pid != running.pid and IN_ADDRESS.encode() in environment_of(pid)]
    assert running.wait() == 0
    # One file has the addresses, for those who send; only its owner can read it.
    settings = scripted_box.home / ".config/wan-train/settings.toml"
    assert NOTIFY in settings.read_text()
    assert settings.stat().st_mode & 0o077 == 0
    files = [path for path in scripted_box.root.rglob("*") if path.is_file() and not path.is_symlink()]
    files.remove(settings)
    assert (scripted_box.run() / "plan.json") in files
    assert {str(path): found for path in files if (found := holds_secret(path.read_bytes()))} == {}


def test_what_a_trainer_prints_of_them_is_not_shown(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--experts", "high", "--json", **SECRETS, SCRIPTED_FAULT="tokens,die@step=2")
    assert done.returncode == 4
    shown = [
        done,
        *(scripted_box.run_cli(*words) for words in (["logs"], ["status"], ["status", "--json"], ["attach"])),
    ]
    assert "HF_TOKEN" in shown[1].stdout
    for output in shown:
        assert not holds_secret((output.stdout + output.stderr).encode()), output.args
    run = scripted_box.run()
    records = [run / name for name in ("events.jsonl", "live.json", "plan.json", "supervisor.log")]
    assert {str(path): holds_secret(path.read_bytes()) for path in records if holds_secret(path.read_bytes())} == {}


def test_the_records_of_a_run_are_for_their_owner_only(scripted_box: ScriptedBox) -> None:
    assert scripted_box.train("--experts", "high").returncode == 0
    run = scripted_box.run()
    open_to_others: list[Path] = [run] if run.stat().st_mode & 0o077 else []
    assert not open_to_others
