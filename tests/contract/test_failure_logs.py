"""What is said of logs by kind: the cause, what helps, and whether another attempt can."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from wan_train.engine.failures import Cause, Diagnosis
from wan_train.engine.failures.diagnosis import diagnose
from wan_train.run.retry import another_attempt

CASES: dict[str, dict[str, Any]] = tomllib.loads(
    (Path(__file__).parent / "failures" / "cases.toml").read_text(encoding="utf-8")
)

HARMLESS = [
    "A matching Triton is not available, some optimizations will not be enabled\n",
    "WARNING:xformers:WARNING[XFORMERS]: xFormers can't load C++/CUDA extensions.\n",
    "/venv/lib/python3.10/site-packages/torch/utils.py:9: UserWarning: CUDA out of memory is near\n",
    "INFO:musubi_tuner:prompt: No space left on device, Killed, PermissionError: [Errno 13]\n",
    "E0000 00:00:1 cuda_dnn.cc:8579] Unable to register cuDNN factory: Attempting to register factory twice\n",
    "steps:  50%|█████     | 4/8 [00:12<00:12,  3.22s/it, avr_loss=1.29]\r",
    (
        "Traceback (most recent call last):\n"
        '  File "/venv/lib/python3.10/site-packages/xformers/__init__.py", line 57, in _is_triton_available\n'
        "    import triton  # noqa\n"
        "ModuleNotFoundError: No module named 'triton'\n"
    ),
    (
        "Traceback (most recent call last):\n"
        '  File "/venv/lib/python3.10/site-packages/lib/cache.py", line 5, in load\n'
        "    open(path)\n"
        "FileNotFoundError: [Errno 2] No such file or directory: '/root/.cache/lib/index.json'\n"
        "INFO:lib:cache is built anew\n"
    ),
]


def said(found: Diagnosis) -> str:
    return f"{found.meaning} {found.advice}"


def problem(case: dict[str, Any]) -> str | None:
    found = diagnose(case["log"])
    if (found.cause.value, another_attempt(found).value) != (case["cause"], case["another_attempt"]):
        return f"{found} instead of {case['cause']}, {case['another_attempt']}"
    missing = [words for words in case["says"] if words not in said(found)]
    if missing or not found.evidence:
        return f"{found} lacks {missing or 'evidence'}"
    return None


def test_each_log_has_its_cause() -> None:
    wrong = {name: told for name, case in CASES.items() if (told := problem(case)) is not None}
    assert not wrong, "\n".join(f"{name}: {told}" for name, told in wrong.items())


@given(st.sampled_from(list(CASES)), st.lists(st.sampled_from(HARMLESS), max_size=4))
@example("openblas", [HARMLESS[-2]])
@example("python_m", [HARMLESS[-2]])
def test_what_a_library_printed_before_changes_nothing(name: str, before: list[str]) -> None:
    log = CASES[name]["log"]
    assert diagnose("".join(before) + "\n" + log) == diagnose(log)


def test_a_hubs_time_is_kept() -> None:
    assert diagnose(CASES["hf429_time"]["log"]).retry_after == 57
    assert diagnose(CASES["hf503"]["log"]).retry_after is None


def test_an_exceptions_text_is_shown_whole_and_without_boilerplate() -> None:
    text = diagnose(CASES["hf429_time"]["log"]).evidence
    assert text is not None
    assert [line.split(":")[0] for line in text.splitlines()] == [
        "huggingface_hub.errors.HfHubHTTPError",
        "Retry after 57 seconds (0/3000 requests remaining in current 300s window).",
        "Url",
    ]
    assert diagnose(CASES["illegal_access"]["log"]).evidence == (
        "torch.AcceleratorError: CUDA error: an illegal memory access was encountered"
    )


def test_a_bare_class_name_is_no_reason() -> None:
    log = 'Traceback (most recent call last):\n  File "/w/model.py", line 12, in forward\n    assert x.dim() == 5\n'
    found = diagnose(f"{log}AssertionError\n")
    assert found.cause is Cause.UNKNOWN
    assert found.evidence == "AssertionError in /w/model.py, line 12: assert x.dim() == 5"


def test_the_cause_and_what_it_ended_as_are_shown() -> None:
    assert diagnose(CASES["root_of_a_wrapper"]["log"]).evidence == (
        "OSError: [Errno 28] No space left on device\nRuntimeError: could not save the checkpoint"
    )


def test_a_program_that_went_on_was_not_ended_by_what_it_caught() -> None:
    caught = HARMLESS[-2] + "INFO:musubi_tuner:preparing\n"
    assert diagnose(caught).evidence is None
    assert diagnose(f"{caught}Killed\n").cause is Cause.INTERRUPTED


def test_nothing_hostile_gets_into_a_meaning() -> None:
    log = "Traceback (most recent call last):\nPermissionError: [Errno 13] Permission denied: '/a\x1b[31m\x07{0}b'\n"
    assert all(character.isprintable() for character in said(diagnose(log)))


@given(st.text(max_size=400))
def test_any_text_is_read(text: str) -> None:
    diagnose(text)
    diagnose(f"Traceback (most recent call last):\n{text}")
