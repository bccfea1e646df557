"""The screen and the lines of a provision, as functions of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import StringIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, Group

from views.support import check_golden, shown
from wan_train.base.errors import ExitCode, NotReadyError
from wan_train.provision.status_table import Phase, Row
from wan_train.provision.steps import Finding, State
from wan_train.views.lines import plain
from wan_train.views.provision import Heading, Report, Screen, found_lines, report_json, summary_lines

NOW = 1_000.0
GB = 10**9
HEADING = Heading(
    what="text to video (t2v)", engine="engine guide (musubi-tuner d0a1930)", workspace="/workspace", began=NOW - 200
)
GIT = Row(id="git", title="git", phase=Phase.READY, detail="git is installed")
CHECKOUT = Row(id="checkout", title="musubi-tuner d0a1930", phase=Phase.DONE, worked=12.0, detail="done: it is there")
ENVIRONMENT = Row(
    id="environment",
    title="Trainer environment",
    phase=Phase.RUNNING,
    detail="installing torch",
    since=NOW - 188,
)
VAE = Row(
    id="wan21-vae",
    title="Model wan_2.1_vae.safetensors",
    phase=Phase.DONE,
    done=GB // 2,
    total=GB // 2,
    fetched=GB // 2,
    worked=5.0,
)
T5 = Row(
    id="umt5-xxl",
    title="Model models_t5_umt5-xxl-enc-bf16.pth",
    phase=Phase.RUNNING,
    done=5_100_000_000,
    total=11_400_000_000,
    since=NOW - 46,
)
HIGH = Row(
    id="wan22-t2v-high",
    title="Model wan2.2_t2v_high_noise_14B_fp16.safetensors",
    phase=Phase.WAITING,
    total=28_600_000_000,
    needs=("packages",),
)
LOW = replace(HIGH, id="wan22-t2v-low", title="Model wan2.2_t2v_low_noise_14B_fp16.safetensors")
TOKENIZER = Row(id="tokenizer", title="T5 tokenizer", phase=Phase.WAITING, needs=("environment",))
WORKING = (GIT, CHECKOUT, ENVIRONMENT, VAE, T5, HIGH, LOW, TOKENIZER)

FAILURE = "failed: installing torch failed:\n  ERROR: No matching distribution found for torch==2.7.0"
FAILED = (
    GIT,
    CHECKOUT,
    replace(ENVIRONMENT, phase=Phase.FAILED, detail=FAILURE, since=None, worked=61.0),
    replace(VAE, remarks=("wrong bytes: moved aside as /workspace/x.bad; delete it when you do not need it",)),
    replace(T5, detail="HTTP 503; retry in 4 s (2 of 4)"),
    HIGH,
    LOW,
    replace(TOKENIZER, phase=Phase.SKIPPED, detail="skipped, because Trainer environment failed", needs=()),
)
SCENES = {"working": WORKING, "failed": FAILED}


RATE = 112_000_000


def made(now: list[float], width: int, height: int = 60, *, ascii_only: bool = False) -> Screen:
    console = Console(width=width, height=height, file=StringIO(), color_system=None)
    return Screen(console, HEADING, is_drawn=False, ascii_only=ascii_only, clock=lambda: now[0])


def screen(
    rows: Sequence[Row],
    width: int,
    height: int = 60,
    *,
    ascii_only: bool = False,
    ending: bool = False,
    rate: int = RATE,
) -> str:
    """What is drawn once a download has come at this rate for ten seconds."""
    now = [NOW]
    drawn = made(now, width, height, ascii_only=ascii_only)
    for seconds in (10, 5, 0):
        now[0] = NOW - seconds
        before = [replace(row, done=max(0, row.done - rate * seconds)) for row in rows]
        drawn.show(before, ending=ending)
    return shown(Group(*drawn.get_renderables()), width)


@pytest.mark.parametrize("width", [60, 120])
@pytest.mark.parametrize("name", SCENES)
def test_screen(name: str, width: int) -> None:
    check_golden(f"provision_{name}_{width}", screen(SCENES[name], width, rate=RATE if name == "working" else 0))


def test_screen_in_ascii() -> None:
    simple = screen(FAILED, 80, ascii_only=True, rate=0)
    assert simple.isascii()
    check_golden("provision_failed_80_ascii", simple)


def test_a_low_screen_leaves_out_what_was_there_before() -> None:
    assert GIT.detail in screen(WORKING, 120)
    low = screen(WORKING, 120, height=12)
    assert GIT.detail not in low
    assert all(row.id in low for row in WORKING if row.phase is not Phase.READY)


def test_no_time_left_is_shown_before_there_is_a_rate() -> None:
    text = screen([replace(row, since=NOW - 1) if row is T5 else row for row in WORKING], 100)
    assert "no rate yet" in text
    assert "stalled" in screen(WORKING, 100, rate=0)


def test_a_resumed_download_has_no_rate_of_what_was_there() -> None:
    now = [NOW]
    drawn = made(now, 100)
    for seconds, done in ((0, 0), (1, T5.done), (9, T5.done + 1_000_000), (10, T5.done + 2_000_000)):
        now[0] = NOW + seconds
        drawn.show([replace(T5, done=done)])
    assert "1.0 MB/s" in shown(Group(*drawn.get_renderables()), 100)


def test_while_it_is_being_ended_the_screen_says_so() -> None:
    text = screen(WORKING, 80, ending=True)
    assert "stopping, 3 min 20 s" in text
    assert "Ctrl-C" not in text


def test_control_characters_and_markup_are_shown_not_obeyed() -> None:
    text = screen((replace(ENVIRONMENT, detail="[red]\x1b[2Jx"),), 80)
    assert "[red]\\x1b[2Jx" in text


AMOUNTS = st.integers(min_value=0, max_value=10**13)
ROWS = st.builds(
    Row,
    id=st.text(max_size=20),
    title=st.text(max_size=70),
    phase=st.sampled_from(Phase),
    detail=st.text(max_size=100),
    needs=st.tuples(st.text(max_size=20)),
    done=AMOUNTS,
    total=AMOUNTS,
    fetched=AMOUNTS,
    worked=st.floats(min_value=0, max_value=1e7),
    since=st.none() | st.floats(min_value=0, max_value=NOW),
    remarks=st.lists(st.text(max_size=60), max_size=2).map(tuple),
)


@settings(max_examples=60)
@given(st.lists(ROWS, max_size=9, unique_by=lambda row: row.id), st.integers(60, 200), st.booleans())
def test_any_rows_fit_any_screen(rows: list[Row], width: int, ascii_only: bool) -> None:
    text = screen(rows, width, ascii_only=ascii_only)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "\x1b" not in text


@settings(max_examples=40)
@given(st.lists(ROWS, max_size=9), st.integers(60, 200))
def test_any_rows_have_a_summary(rows: list[Row], width: int) -> None:
    assert "\x1b" not in plain(summary_lines(rows, 12.0, width))


def test_summary() -> None:
    over = (
        GIT,
        CHECKOUT,
        replace(ENVIRONMENT, phase=Phase.DONE, since=None, worked=240.0),
        VAE,
        replace(T5, phase=Phase.DONE, done=T5.total, fetched=T5.total, since=None, worked=102.0),
        replace(TOKENIZER, phase=Phase.DONE, needs=(), worked=2.0),
    )
    check_golden("provision_summary", plain(summary_lines(over, 258.0, 80)))
    check_golden("provision_summary_failed", plain(summary_lines(FAILED, 61.0, 80)))
    assert plain(summary_lines((GIT,), 1.0, 80)) == ""


def test_what_a_box_has() -> None:
    found = {
        "disk": Finding(state=State.READY, detail="69.1 GB are needed, 120.0 GB are free at /workspace"),
        "checkout": Finding(state=State.MISSING, detail="no checkout at /workspace/musubi-tuner"),
        "vae": Finding(state=State.UNVERIFIED, detail="it exists, not verified yet"),
        "git": Finding(state=State.BLOCKED, detail="git is not installed", hint="Install it."),
    }
    titles = {"disk": "Disk", "checkout": "musubi-tuner d0a1930", "vae": "Model vae.safetensors", "git": "git"}
    check_golden("provision_found_60", plain(found_lines(found, titles, 60)))


def test_a_silent_download_is_reported_every_15_seconds_and_an_install_every_minute() -> None:
    now = [NOW]
    drawn = made(now, 80)
    heard = []
    for second in range(125):
        now[0] = NOW + second
        drawn.show((ENVIRONMENT, replace(T5, done=T5.done + second * RATE // 4), HIGH))
        heard += [(second, line) for line in drawn.heartbeats(now[0])]
    assert [second for second, (title, _) in heard if title == T5.title] == list(range(15, 125, 15))
    assert [second for second, (title, _) in heard if title == ENVIRONMENT.title] == [60, 120]
    assert heard[0] == (15, (T5.title, "5.5 of 11.4 GB, 28 MB/s, 3 min 30 s left"))
    assert (60, (ENVIRONMENT.title, "… still installing torch, 4 min 8 s so far")) in heard


def test_the_document_tells_states_seconds_bytes_and_errors_without_secrets() -> None:
    secret = "hf_" + "x" * 30
    error = NotReadyError(f"it failed with {secret}", hint="Run it again.")
    said = report_json(
        Report(
            task="t2v",
            engine="guide",
            workspace="/workspace",
            titles={"checkout": CHECKOUT.title, "wan21-vae": VAE.title},
            found={
                "checkout": Finding(state=State.MISSING, detail=secret),
                "wan21-vae": Finding(state=State.READY, detail="verified"),
            },
            exit_code=ExitCode.NOT_READY,
            rows=(replace(CHECKOUT, phase=Phase.FAILED), VAE),
            failures={"checkout": error},
            seconds=17.04,
            log="/workspace/log",
            error=error,
        )
    )
    assert secret not in str(said)
    assert said["ready"] is False
    assert (said["exit_code"], said["seconds"], said["fetched_bytes"]) == (3, 17.0, GB // 2)
    assert said["error"]["hint"] == "Run it again."
    checkout, vae = said["steps"]
    assert (checkout["phase"], checkout["state"], checkout["seconds"]) == ("failed", "missing", 12.0)
    assert checkout["error"]["message"].startswith("it failed")
    assert (vae["phase"], vae["state"], vae["fetched_bytes"], vae["error"]) == ("done", "ready", GB // 2, None)


def test_what_was_there_and_will_hurt_is_not_called_ready() -> None:
    driver = replace(GIT, id="driver", detail="no NVIDIA driver", warns=True)
    shown = [line.split()[:3] for line in screen((driver, GIT), 80).splitlines() if "git" in line or "driver" in line]
    assert shown == [["!", "warning", "driver"], ["✓", "ready", "git"]]
