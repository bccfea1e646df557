"""Why a trainer process failed: signatures in its output, each with a cause and what to do next."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum


class Cause(StrEnum):
    """Why an attempt ended without success."""

    OUT_OF_MEMORY = "out_of_memory"
    HOST_OUT_OF_MEMORY = "host_out_of_memory"
    SAMPLING = "sampling"
    NAN_LOSS = "nan_loss"
    NO_PROGRESS = "no_progress"
    DISK_FULL = "disk_full"
    CUDA_ERROR = "cuda_error"
    BAD_INPUT = "bad_input"
    MISSING_FILE = "missing_file"
    INTERRUPTED = "interrupted"
    LOST = "lost"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A pattern in the output, what it means and what helps."""

    pattern: re.Pattern[str]
    cause: Cause
    meaning: str
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What is known of a failure; `evidence` is the line of output it rests on."""

    cause: Cause
    meaning: str
    advice: str
    evidence: str | None = None


def _signature(pattern: str, cause: Cause, meaning: str, advice: str) -> Signature:
    return Signature(pattern=re.compile(pattern), cause=cause, meaning=meaning, advice=advice)


# The first matching signature wins, so the specific ones stand before the general ones.
SIGNATURES: tuple[Signature, ...] = (
    _signature(
        r"OutOfMemoryError: CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
        Cause.OUT_OF_MEMORY,
        "the GPU's memory was not enough",
        "Try `--blocks-to-swap 10` (more saves more), a smaller `--resolution`, or a GPU with more memory.",
    ),
    _signature(
        r"No space left on device|StorageFull|Not enough free space to write"
        r"|inline_container\.cc.*(?:write|unexpected pos)",
        Cause.DISK_FULL,
        "the disk is full",
        "Free some space (`wan-train runs` lists old runs), then start again.",
    ),
    _signature(
        r"DataLoader worker .*is killed by signal: Bus error",
        Cause.HOST_OUT_OF_MEMORY,
        "the container's shared memory (/dev/shm) is full",
        "Start the container with more of it (Docker: `--shm-size 8g`), or rent another machine.",
    ),
    _signature(
        r"No training items found in the dataset",
        Cause.BAD_INPUT,
        "the trainer found no cached pictures to train on",
        "Check that the cache directory of dataset.toml is writable and its path has no `[` or `]`.",
    ),
    _signature(
        r"image file is truncated|cannot identify image file|UnidentifiedImageError",
        Cause.BAD_INPUT,
        "a picture of the dataset cannot be read",
        "Replace or remove the picture named in the log.",
    ),
    _signature(
        r"FileNotFoundError: \[Errno 2\].*\.(?:txt|caption|cap)'",
        Cause.BAD_INPUT,
        "a picture has no caption file",
        "Give every picture a caption file of the same name.",
    ),
    _signature(
        r"UnicodeDecodeError",
        Cause.BAD_INPUT,
        "a caption is not UTF-8 text",
        "Save the caption files as UTF-8.",
    ),
    _signature(
        r"MultipleInvalid|toml\.decoder\.TomlDecodeError",
        Cause.BAD_INPUT,
        "the trainer rejects the dataset.toml",
        "Compare it with docs/datasets.md.",
    ),
    _signature(
        r"KeyError: 'latents_image",
        Cause.BAD_INPUT,
        "latent caches made for text-to-video are used for image-to-video",
        "Remove the cache directory of the dataset and start again.",
    ),
    _signature(
        r"SafetensorError|MetadataIncompleteBuffer|InvalidHeaderDeserialization",
        Cause.MISSING_FILE,
        "a safetensors file is damaged",
        "The log names it. A cache file: remove it and start again. A model: fetch it again.",
    ),
    _signature(
        r"error: unrecognized arguments:|error: argument --|error: the following arguments are required",
        Cause.BAD_INPUT,
        "the trainer does not know an option it was given",
        "Check the words after `--`, and the trainer's version.",
    ),
    _signature(
        r"no kernel image is available for execution|is not compatible with the current PyTorch installation",
        Cause.CUDA_ERROR,
        "this PyTorch has no kernels for this GPU",
        "The trainer's environment needs a PyTorch built for this GPU (cu128 or newer for Blackwell).",
    ),
    _signature(
        r"CUDA driver version is insufficient|The NVIDIA driver on your system is too old",
        Cause.CUDA_ERROR,
        "the NVIDIA driver is too old for this PyTorch",
        "Rent a machine with a newer driver (CUDA 12.8 or later).",
    ),
    _signature(
        r"GPU is lost"
        r"|CUDA error: (?:unspecified launch failure|an illegal memory access|uncorrectable ECC|device-side assert)"
        r"|cudaErrorDevicesUnavailable|CUDA-capable device\(s\) is/are busy",
        Cause.CUDA_ERROR,
        "the GPU or its driver failed",
        "Look at `nvidia-smi` and `dmesg | grep -i xid`; if the GPU does not answer, restart or change the machine.",
    ),
    _signature(
        r"RuntimeError: CUDA error|CUDA error:|cuDNN error|CUBLAS_STATUS",
        Cause.CUDA_ERROR,
        "a CUDA operation failed",
        "The log names the operation; another attention (`--attention sdpa`) helps when it is an attention kernel.",
    ),
    _signature(
        r"ModuleNotFoundError: No module named|ImportError:",
        Cause.MISSING_FILE,
        "the trainer's Python environment is incomplete",
        "Run `wan-train provision` to repair it.",
    ),
    _signature(
        r"LocalEntryNotFoundError|We couldn't connect to|OfflineModeIsEnabled|Can't load tokenizer",
        Cause.MISSING_FILE,
        "the T5 tokenizer is not on this box and could not be fetched",
        "Run `wan-train provision`, which puts it into the Hugging Face cache.",
    ),
    _signature(
        r"FileNotFoundError|No such file or directory",
        Cause.MISSING_FILE,
        "a file is missing",
        "The log names it.",
    ),
    _signature(
        r"AssertionError: DiT weights is|mixed_precision must be",
        Cause.BAD_INPUT,
        "the DiT file's precision and --mixed_precision differ",
        "Leave mixed_precision to wan-train, or set it to the file's own precision.",
    ),
)

_SAMPLING_FRAME = re.compile(r'\s+File ".*", line \d+, in (?:sample_images|process_sample_prompts)')
"""A line of a traceback out of the samples (both versions); the trainer catches nothing there, so one ends it."""

_OF_SAMPLING = frozenset({Cause.OUT_OF_MEMORY, Cause.BAD_INPUT, Cause.MISSING_FILE, Cause.UNKNOWN})
"""What the samples themselves may be to blame for; a full disk or a lost GPU would have ended the training too."""

_PROMPT = re.compile(r"INFO:[\w.]+:(?:cache Text Encoder outputs for |negative )?prompt: ")
_SUFFIX = re.compile(r"subprocess\.CalledProcessError: Command")
_KILLED = re.compile(r"died with <Signals\.(SIG\w+): -?\d+>\.$")
_LOADER_KILLED = re.compile(r"^RuntimeError: DataLoader worker .*is killed by signal: Killed.*", re.MULTILINE)


def killing_signal(tail: str) -> tuple[str, str] | None:
    """The name of the signal that ended the trainer and the words that tell it, if the end of its log does.

    `accelerate launch` ends with exit code 1 when its trainer was killed, and so does a trainer whose data loader was:
    only their words tell (accelerate 1.6, torch 2.13).
    """
    if killed := _KILLED.search(tail.rstrip()):
        return killed[1], killed[0]
    loader = _LOADER_KILLED.search(tail)
    return ("SIGKILL", loader[0].strip()) if loader else None


def diagnose(tail: str) -> Diagnosis:
    """The cause that the end of a log speaks of; UNKNOWN with the last error line when nothing is recognised.

    SAMPLING where it was not the training itself that failed, but a sample made on the way.
    """
    found = _diagnose(tail)
    if found.cause not in _OF_SAMPLING or not any(_SAMPLING_FRAME.fullmatch(line) for line in tail.split("\n")):
        return found
    because = "" if found.cause is Cause.UNKNOWN else f": {found.meaning}"
    smaller = found.cause is Cause.OUT_OF_MEMORY
    return replace(
        found,
        cause=Cause.SAMPLING,
        meaning=f"a sample could not be made{because}",
        advice="Give the prompts smaller --w, --h or --f." if smaller else "Read the end of the log.",
    )


def _diagnose(tail: str) -> Diagnosis:
    lines = [line.rsplit("\r", 1)[-1] for line in tail.split("\n")]
    # `accelerate launch` repeats the whole command line in its own traceback, and each sample tells its prompt: what a
    # user wrote is no evidence.
    lines = [line for line in lines if not _SUFFIX.search(line) and not _PROMPT.match(line)]
    for signature in SIGNATURES:
        for line in reversed(lines):
            if signature.pattern.search(line):
                return Diagnosis(
                    cause=signature.cause, meaning=signature.meaning, advice=signature.advice, evidence=line.strip()
                )
    if killed := killing_signal(tail):
        return Diagnosis(
            cause=Cause.INTERRUPTED,
            meaning=f"the trainer was ended by {killed[0]}",
            advice="If nobody ended it, the box ran out of RAM: look at `dmesg | grep -i oom`.",
            evidence=killed[1],
        )
    errors = [line for line in lines if re.match(r"\w*(?:Error|Exception)\b.*", line)]
    return Diagnosis(
        cause=Cause.UNKNOWN,
        meaning="the trainer stopped with an error that is not in wan-train's table",
        advice="Read the end of the log.",
        evidence=errors[-1].strip() if errors else None,
    )
