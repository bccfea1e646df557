"""Failures of the trainer's Python environment: modules, libraries, compilers."""

from __future__ import annotations

from wan_train.engine.failures import Cause
from wan_train.engine.failures.kinds import kind

_PIP_NAMES = {
    "adabelief_pytorch": "adabelief-pytorch",
    "adam_mini": "adam-mini",
    "apollo_torch": "apollo-torch",
    "came_pytorch": "came-pytorch",
    "cv2": "opencv-python-headless",
    "dadaptation": "dadaptation",
    "flash_attn": "flash-attn",
    "galore_torch": "galore-torch",
    "google": "protobuf",
    "lion_pytorch": "lion-pytorch",
    "lycoris": "lycoris-lora",
    "PIL": "pillow",
    "prodigyplus": "prodigy-plus-schedule-free",
    "pytorch_optimizer": "pytorch-optimizer",
    "torch_optimizer": "torch-optimizer",
    "yaml": "pyyaml",
}
"""Packages with names that differ from their import names."""

_REPAIR = "`wan-train provision` repairs the trainer's environment; then resume."
_NO_MODULE = r"(?:ModuleNotFoundError|ImportError|python[\d.]*): No module named "
_OPTIMIZERS = (
    "adabelief_pytorch|adam_mini|apollo_torch|bitsandbytes|came_pytorch|dadaptation|galore_torch|heavyball|lion_pytorch"
    "|muon|prodigyopt|prodigyplus|pytorch_optimizer|schedulefree|sophia|torch_optimizer"
)
_OF_TRAINER = (
    "accelerate|ascii_magic|av|cv2|diffusers|easydict|einops|filelock|ftfy|google|huggingface_hub|numpy|packaging|PIL|psutil"
    "|regex|requests|safetensors|sentencepiece|six|tokenizers|toml|torch|torchvision|tqdm|transformers|voluptuous|yaml"
)
_LIBRARIES = {"libGL.so.1": "libgl1", "libgthread-2.0.so.0": "libglib2.0-0", "libglib-2.0.so.0": "libglib2.0-0"}


def pip_name(module: str) -> str:
    """The package to install for a module or submodule."""
    top = module.partition(".")[0]
    return _PIP_NAMES.get(top, top)


_COMPILING = (
    kind(
        r"Python\.h: No such file",
        Cause.ENVIRONMENT,
        "`--compile` needs the headers of Python (Python.h)",
        "`apt-get install python3-dev`, then resume; or start a new run without `--compile`.",
    ),
    kind(
        r"cannot find -lcuda\b|cuda\.h: No such file",
        Cause.ENVIRONMENT,
        "`--compile` found no libcuda to link with",
        "`ldconfig -p | grep libcuda` shows what there is. Run `ldconfig` as root and resume, or start a new run "
        "without "
        "`--compile`.",
    ),
)
"""Reasons that the compiler prints before it fails."""

ENVIRONMENT_KINDS = (
    kind(
        r"HF_HUB_ENABLE_HF_TRANSFER=1|'?hf_transfer'? package is not available|No module named 'hf_transfer'",
        Cause.ENVIRONMENT,
        "HF_HUB_ENABLE_HF_TRANSFER=1 is set, and the package hf_transfer is missing",
        "`unset HF_HUB_ENABLE_HF_TRANSFER`, then resume.",
    ),
    kind(
        r"Failed to find C compiler|No such file or directory: '(?:[^']*/)?(?:gcc|cc|clang|x86_64-linux-gnu-gcc)'"
        r"|\b(?:gcc|cc|clang): (?:command )?not found",
        Cause.ENVIRONMENT,
        "`--compile` needs a C compiler",
        "`apt-get install gcc`, then resume; or start a new run without `--compile`.",
    ),
    kind(
        r"No working C\+\+ compiler|InvalidCxxCompiler|No such file or directory: '(?:[^']*/)?(?:g\+\+|c\+\+"
        r"|clang\+\+)'"
        r"|g\+\+: (?:command )?not found",
        Cause.ENVIRONMENT,
        "`--compile` needs a C++ compiler",
        "`apt-get install g++`, then resume; or start a new run without `--compile`.",
    ),
    kind(
        r"No such file or directory: '(?:[^']*/)?nvcc'|nvcc: (?:command )?not found"
        r"|CUDA_HOME environment variable is not set",
        Cause.ENVIRONMENT,
        "a package wants to compile for CUDA, and nvcc is missing",
        "Use an image with the CUDA toolkit (`-devel`), or start a new run without the option that needs it "
        "(`--attention sdpa`, no `--compile`).",
    ),
    *_COMPILING,
    kind(
        r"CalledProcessError: Command '\['[^']*(?:gcc|clang|/cc)'",
        Cause.ENVIRONMENT,
        "`--compile` could not compile a kernel: the C compiler failed",
        "The lines before it in the log are the compiler's. Start a new run without `--compile` if they do not help.",
        reasons=_COMPILING,
    ),
    kind(
        r"TritonMissing|[Cc]annot find a working triton installation|triton not found|" + _NO_MODULE + r"'triton",
        Cause.ENVIRONMENT,
        "the package triton is missing in the trainer's environment",
        "`wan-train provision` installs it; or start a new run without `--compile`.",
    ),
    kind(
        _NO_MODULE + r"'?musubi_tuner\b",
        Cause.ENVIRONMENT,
        "the trainer musubi-tuner is not installed in this Python",
        "`wan-train provision` installs it; then resume. `WAN_TRAIN_MUSUBI_PYTHON`, if it is set, names another "
        "Python.",
    ),
    kind(
        _NO_MODULE + r"'?(?:musubi_tuner\.)?(?P<module>networks\.\w+)'?",
        Cause.SETTING,
        "the trainer has no network module {module}",
        "Start a new run with `networks.lora_wan`, which is the one for Wan; `wan-train resume` keeps the wrong one.",
    ),
    kind(
        _NO_MODULE + rf"'?(?P<module>(?:{_OPTIMIZERS})\b[\w.]*)'?|(?:No|no) (?P<shown>bitsandbytes)\b",
        Cause.ENVIRONMENT,
        "the optimizer's package {package} is missing in the trainer's environment",
        "`wan-train provision --with {package}` installs it there; then resume.",
        facts=lambda found: {"package": pip_name(found["module"] or found["shown"])},
    ),
    kind(
        _NO_MODULE + r"'?(?P<module>xformers|flash_attn|sageattention)\b",
        Cause.ENVIRONMENT,
        "the package {package}, which the chosen attention needs, is missing in the trainer's environment",
        "Start a new run with `--attention sdpa`, or `wan-train provision --with {package}` and resume.",
        facts=lambda found: {"package": pip_name(found["module"])},
    ),
    kind(
        r"(?:ImportError: No wandb\b|" + _NO_MODULE + r"'?wandb\b)",
        Cause.ENVIRONMENT,
        "the package wandb is missing in the trainer's environment",
        "`wan-train provision --with wandb` and resume, or start a new run without `--log_with wandb`.",
    ),
    kind(
        _NO_MODULE + rf"'?(?P<module>(?:{_OF_TRAINER})\b[\w.]*)'?",
        Cause.ENVIRONMENT,
        "the trainer's Python environment is incomplete: {module} is missing",
        _REPAIR,
    ),
    kind(
        _NO_MODULE + r"'?(?P<module>[\w.]+)'?",
        Cause.ENVIRONMENT,
        "the Python package {module} is missing in the trainer's environment",
        "If a setting of yours needs it: `wan-train provision --with {package}`. If the trainer does: `wan-train "
        "provision`. Then resume.",
        facts=lambda found: {"package": pip_name(found["module"])},
    ),
    kind(
        r"(?:/\S*/)?(?P<library>libcudart|libnvrtc|libcublas\w*|libcusparse\w*|libnvJitLink|libcudnn\w*|libc10\w*|libtorch\w*)"
        r"\.so[\w.]*: cannot open shared object file",
        Cause.ENVIRONMENT,
        "the library {library} is missing: a package was built for another CUDA or another PyTorch",
        f"{_REPAIR} If an attention package asks for it, start a new run with `--attention sdpa`.",
    ),
    kind(
        r"(?P<library>lib[\w.+-]+\.so[\w.]*): cannot open shared object file",
        Cause.ENVIRONMENT,
        "the system library {library} is missing",
        "{command}, then resume.",
        facts=lambda found: {
            "command": f"`apt-get install {_LIBRARIES[found['library']]}`"
            if found["library"] in _LIBRARIES
            else f"Install the system package that brings it (`apt-file search {found['library']}`)"
        },
    ),
    kind(
        r"version [`'](?P<version>GLIBC\w*_[\d.]+)' not found",
        Cause.ENVIRONMENT,
        "the system is too old for a package: {version} is missing",
        "Use a newer image (Ubuntu 22.04 or later).",
    ),
    kind(
        r"undefined symbol: |DLL load failed|binary incompatibility|compiled using NumPy 1\.x|Numpy is not available"
        r"|operator torchvision::\w+ does not exist|module '(?:torch|transformers|diffusers|accelerate"
        r"|numpy)' has no attribute",
        Cause.ENVIRONMENT,
        "two packages of the trainer's environment are incompatible",
        f"{_REPAIR} If it is an attention package, start a new run with `--attention sdpa`.",
    ),
    kind(
        r"[Cc]onfigured CUDA binary not found|CUDA Setup failed|libbitsandbytes_\w+|str2optimizer\w+|'cadam\w+"
        r"|bitsandbytes .*(?:no kernel|without GPU support|CUDA)",
        Cause.ENVIRONMENT,
        "bitsandbytes (8-bit optimizers) cannot use this GPU or this CUDA",
        "`wan-train provision --with bitsandbytes` installs its newest build; or start a new run with "
        "`-- --optimizer_type adamw`.",
    ),
    kind(
        r"ImportError: cannot import name '(?P<name>[^']*)' from (?:partially initialized module )?'(?P<module>[^']*)'",
        Cause.ENVIRONMENT,
        "{module} has no {name}: a package of the trainer's environment has the wrong version",
        _REPAIR,
    ),
    kind(
        r"ImportError\b|PackageNotFoundError|accelerate: (?:command )?not found",
        Cause.ENVIRONMENT,
        "the trainer's Python environment is incomplete",
        _REPAIR,
    ),
)
