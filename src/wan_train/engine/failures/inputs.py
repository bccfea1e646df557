"""Failures of input files: the dataset, its caches, model files."""

from __future__ import annotations

from wan_train.engine.failures import Cause
from wan_train.engine.failures.kinds import kind

_CHECK = "`wan-train dataset check` names what is wrong"
_COPY = "Then start a new run: a run has its own copy of the dataset.toml."
_MODEL = (
    "A model: `wan-train provision --check --verify` compares it with its checksum, and `wan-train provision` "
    "fetches it "
    "again. A cache: remove it. Then resume."
)

INPUTS_KINDS = (
    kind(
        r"Could not find matching control|do not have control paths|(?:Error|Exception): .*control_(?:directory|path)"
        r"|(?:No such file or directory|Invalid digits suffix).*control",
        Cause.BAD_INPUT,
        "control pictures are missing, and Wan 2.2 A14B does not use them",
        f"Remove control_directory (or control_path) from the dataset.toml. {_COPY}",
    ),
    kind(
        r"No training items found in the dataset",
        Cause.BAD_INPUT,
        "the dataset is empty: the trainer found no cached pictures to train on",
        "Check that the cache directory of dataset.toml is writable and its path has no `[` or `]`. "
        f"{_CHECK}; then resume.",
    ),
    kind(
        r"num_samples should be a positive integer value, but got num_samples=0|max\(\) (?:arg"
        r"|iterable argument) is (?:an )?empty"
        r"|No (?:image|video|data)s? files? found|dataset is empty",
        Cause.BAD_INPUT,
        "the dataset is empty",
        f"Check that the folder in dataset.toml contains pictures or clips. {_CHECK}; then resume.",
    ),
    kind(
        r"image file is truncated|cannot identify image file|UnidentifiedImageError|broken data stream"
        r"|unrecognized data stream"
        r"|DecompressionBombError|broken PNG file|Truncated File Read",
        Cause.BAD_INPUT,
        "a picture of the dataset cannot be read",
        f"Replace or remove it. {_CHECK}; then resume.",
    ),
    kind(
        r"^av\.|moov atom not found|Invalid data found when processing input",
        Cause.BAD_INPUT,
        "a clip of the dataset cannot be read",
        f"Convert it again or remove it. {_CHECK}; then resume.",
    ),
    kind(
        r"No such file or directory: '(?P<file>[^']*\.(?:txt|caption|cap))'",
        Cause.BAD_INPUT,
        "a picture has no caption file: {file} is missing",
        "Give every picture a caption file of the same name, then resume.",
    ),
    kind(
        r"UnicodeDecodeError",
        Cause.BAD_INPUT,
        "a text file, usually a caption, is not UTF-8",
        f"Save the caption files as UTF-8. {_CHECK}; then resume.",
    ),
    kind(
        r"MultipleInvalid|Toml\w*Error|TOMLDecodeError|extra keys not allowed|not supported config file format",
        Cause.BAD_INPUT,
        "the trainer rejects the dataset.toml",
        f"Compare it with docs/datasets.md; {_CHECK}. {_COPY}",
    ),
    kind(
        r"JSONDecodeError",
        Cause.BAD_INPUT,
        "a line of a jsonl file is not valid JSON",
        f"{_CHECK}; then resume.",
    ),
    kind(
        r"KeyError: 'latents_image",
        Cause.BAD_INPUT,
        "latent caches made for text-to-video are used for image-to-video",
        "Remove the cache directory of the dataset, then resume.",
    ),
    kind(
        r"stack expects each tensor to be equal size|Sizes of tensors must match except in dimension"
        r"|stack expects a non-empty TensorList",
        Cause.BAD_INPUT,
        "the items of one batch have different sizes",
        "Some caches have another resolution or frame count: remove the cache directory and resume. Or start a "
        "new run with `batch_size = 1` in the dataset.toml.",
    ),
    kind(
        r"SafetensorError|MetadataIncompleteBuffer|HeaderDeserialization|HeaderTooLarge|header too large"
        r"|IncompleteMetadata|safetensors.*(?:corrupt|damaged)",
        Cause.MISSING_FILE,
        "a safetensors file is damaged",
        _MODEL,
    ),
    kind(
        r"PytorchStreamReader failed|invalid load key|UnpicklingError|unexpected EOF, expected|^EOFError"
        r"|file might be corrupted|not a ZIP archive",
        Cause.MISSING_FILE,
        "a file of weights is damaged",
        _MODEL,
    ),
    kind(
        r"Tried to find \S+ but folder does not exist|checkpoint folder .* does not exist",
        Cause.MISSING_FILE,
        "the checkpoint to resume from is missing",
        "Start a new run without it. `wan-train resume RUN` itself takes the newest state that is whole.",
    ),
    kind(
        r"(?:NotADirectoryError|IsADirectoryError).*?'(?P<file>[^']+)'",
        Cause.MISSING_FILE,
        "a folder instead of a file, or a file instead of a folder: {file}",
        "Correct the path. One of yours is kept by `wan-train resume`: start a new run.",
    ),
    kind(
        r"FileNotFoundError.*?'(?P<file>[^']+)'|No such file or directory:? [\"']?(?P<other>[^\"'\n]+)",
        Cause.MISSING_FILE,
        "a file is missing: {path}",
        "Put it there and resume. A model: `wan-train provision` fetches it. A path of yours that is wrong: "
        "start a new run.",
        facts=lambda found: {"path": found["file"] or found["other"]},
    ),
    kind(
        r"FileNotFoundError|No such file or directory|ファイルが見つかりません",
        Cause.MISSING_FILE,
        "a file is missing",
        "Its text names it. Put it there and resume. A path of yours that is wrong: start a new run.",
    ),
)
