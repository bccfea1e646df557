"""What is said of real failures: logs of real trainings, and the texts of the libraries below."""

from __future__ import annotations

from pathlib import Path

import pytest

from wan_train.engine.failures import Cause
from wan_train.engine.failures.diagnosis import KINDS, diagnose

SAMPLES = Path(__file__).parent / "samples"

LAUNCHER = (
    "Traceback (most recent call last):\n"
    '  File "/workspace/musubi-tuner/venv/bin/accelerate", line 8, in <module>\n'
    "    sys.exit(main())\n"
    "subprocess.CalledProcessError: Command '['python', 'train.py', '--metadata_title', 'No space left on device', "
    "'--dit', 'No such file or directory', '--output_name', 'CUDA out of memory UnicodeDecodeError']' "
    "returned non-zero exit status 1.\n"
)


@pytest.mark.parametrize(
    ("sample", "cause", "evidence"),
    [
        ("d0a1930/cache-text-missing-caption.log", Cause.BAD_INPUT, "img001.txt"),
        ("d0a1930/cache-latents-corrupt-image.log", Cause.BAD_INPUT, "image file is truncated"),
        ("d0a1930/train-no-cache.log", Cause.BAD_INPUT, "No training items found"),
        ("v0.3.4/train-no-cache.log", Cause.BAD_INPUT, "No training items found"),
        # A width of 40, which the trainer rounds to 8 and its DiT cannot take.
        ("d0a1930/train-sample-failed.log", Cause.SAMPLING, "k_lens is not supported"),
        ("v0.3.4/train-sample-failed.log", Cause.SAMPLING, "k_lens is not supported"),
    ],
)
def test_real_failures(sample: str, cause: Cause, evidence: str) -> None:
    found = diagnose((SAMPLES / sample).read_text(encoding="utf-8"))
    assert found.cause is cause
    assert found.evidence is not None
    assert evidence in found.evidence
    assert "CalledProcessError" not in found.evidence


@pytest.mark.parametrize("version", ["d0a1930", "v0.3.4"])
@pytest.mark.parametrize(
    ("error", "cause", "meaning"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory.", Cause.SAMPLING, "a sample could not be made: the GPU's memory"),
        ("OSError: [Errno 28] No space left on device", Cause.DISK_FULL, "the disk is full"),
        ("RuntimeError: CUDA error: unspecified launch failure", Cause.CUDA_ERROR, "the GPU or its driver failed"),
    ],
)
def test_what_fails_in_a_sample(version: str, error: str, cause: Cause, meaning: str) -> None:
    """The real traceback with another error at its end."""
    text = (SAMPLES / version / "train-sample-failed.log").read_text(encoding="utf-8")
    before, found, _ = text.partition("AssertionError: k_lens")
    assert found
    diagnosis = diagnose(f"{before}{error}\n{LAUNCHER}")
    assert diagnosis.cause is cause
    assert diagnosis.meaning.startswith(meaning)


@pytest.mark.parametrize("words", ["prompt", "negative prompt", "cache Text Encoder outputs for prompt"])
def test_what_a_prompt_says_is_no_evidence(words: str) -> None:
    text = f"INFO:musubi_tuner.hv_train_network:{words}: CUDA out of memory, GPU is lost\nRuntimeError: no\n"
    assert diagnose(text).cause is Cause.UNKNOWN


def test_samples_made_before_are_not_to_blame() -> None:
    made = "INFO:musubi_tuner.hv_train_network:generating sample images at step / x: 10\n"
    text = f'{made}Traceback (most recent call last):\n  File "a.py", line 1, in train\nRuntimeError: no\n'
    assert diagnose(text).cause is Cause.UNKNOWN


def test_a_missing_caption_is_told_as_such() -> None:
    text = (SAMPLES / "d0a1930" / "cache-text-missing-caption.log").read_text(encoding="utf-8")
    assert "caption" in diagnose(text).meaning


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            (
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 126.00 MiB. GPU 0 has a total capacity "
                "of 31.37 GiB of which 92.19 MiB is free."
            ),
            Cause.OUT_OF_MEMORY,
        ),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", Cause.OUT_OF_MEMORY),
        # Both of torch 2.13, from a loader that was sent the signal.
        ("RuntimeError: DataLoader worker (pid 14264) is killed by signal: Killed.", Cause.INTERRUPTED),
        (
            (
                "RuntimeError: DataLoader worker (pid 14293) is killed by signal: Bus error. It is possible that "
                "dataloader's workers are out of shared memory. Please try to raise your shared memory limit."
            ),
            Cause.HOST_OUT_OF_MEMORY,
        ),
        ("RuntimeError: CUDA error: out of memory", Cause.OUT_OF_MEMORY),
        (
            (
                "safetensors_rust.SafetensorError: Error while serializing: IoError(Os { code: 28, kind: StorageFull, "
                'message: "No space left on device" })'
            ),
            Cause.DISK_FULL,
        ),
        ("OSError: Not enough free space to write 3211264 bytes after offset 0", Cause.DISK_FULL),
        ("OSError: [Errno 28] No space left on device", Cause.DISK_FULL),
        # Numbers that begin like another's: 12 is a lack of RAM, 11 of threads, 5 a broken disk.
        *(
            (f"safetensors_rust.SafetensorError: Error while serializing: I/O error: {text}", cause)
            for text, cause in (
                ("Cannot allocate memory (os error 12)", Cause.HOST_OUT_OF_MEMORY),
                ("Remote I/O error (os error 121)", Cause.STORAGE),
                ("Disk quota exceeded (os error 122)", Cause.DISK_FULL),
                ("Stale file handle (os error 116)", Cause.STORAGE),
            )
        ),
        (
            "RuntimeError: [enforce fail at inline_container.cc:626] . unexpected pos 64 vs 0",
            Cause.DISK_FULL,
        ),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", Cause.CUDA_ERROR),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device", Cause.ENVIRONMENT),
        (
            "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer",
            Cause.MISSING_FILE,
        ),
        ("ModuleNotFoundError: No module named 'six'", Cause.ENVIRONMENT),
        ("wan_train_network.py: error: unrecognized arguments: --unknown", Cause.SETTING),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/workspace/models/t5.pth'", Cause.MISSING_FILE),
        ("UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte", Cause.BAD_INPUT),
    ],
)
def test_texts_of_the_libraries_below(line: str, cause: Cause) -> None:
    found = diagnose(f"steps: 1/3\rsteps: 2/3\nTraceback (most recent call last):\n{line}\n{LAUNCHER}")
    assert (found.cause, found.evidence) == (cause, line)


@pytest.mark.parametrize("listed", ["", ", please select one of ['linear', 'reduce_lr_on_plateau', 'cosine']"])
def test_a_schedule_that_this_trainer_cannot_use_is_not_offered(listed: str) -> None:
    advice = diagnose(f"ValueError: 'sometimes' is not a valid SchedulerType{listed}\n").advice
    assert advice.startswith("Valid are: linear, cosine")
    assert "reduce_lr_on_plateau" not in advice


def test_the_launchers_own_command_line_is_no_evidence() -> None:
    found = diagnose(LAUNCHER)
    assert (found.cause, found.evidence) == (Cause.UNKNOWN, None)


def test_an_unknown_error_is_quoted() -> None:
    found = diagnose(f"Traceback (most recent call last):\nValueError: a thing nobody thought of\n{LAUNCHER}")
    assert (found.cause, found.evidence) == (Cause.UNKNOWN, "ValueError: a thing nobody thought of")


def test_the_last_redraw_of_a_line_is_read() -> None:
    assert diagnose("steps: 1/3\rRuntimeError: CUDA error: out of memory").cause is Cause.OUT_OF_MEMORY


@pytest.mark.parametrize("tail", ["", "\n\n", "\r", "steps: 3/3", "ordinary words about memory and disk"])
def test_logs_that_tell_nothing(tail: str) -> None:
    assert diagnose(tail).cause is Cause.UNKNOWN


@pytest.mark.parametrize("version", ["d0a1930", "v0.3.4"])
@pytest.mark.parametrize("name", ["train", "train-resumed", "cache-latents", "cache-text"])
def test_no_signature_fits_a_log_of_success(version: str, name: str) -> None:
    text = (SAMPLES / version / f"{name}.log").read_text(encoding="utf-8")
    found = diagnose(text)
    assert (found.cause, found.evidence) == (Cause.UNKNOWN, None)


def test_every_kind_says_what_to_do() -> None:
    assert all(each.meaning and each.advice for each in KINDS)
