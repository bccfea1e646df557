"""Failures of user settings: optimizer, schedule, options, precision, weights to continue from."""

from __future__ import annotations

import re
from collections.abc import Mapping

from wan_train.engine.failures import Cause
from wan_train.engine.failures.kinds import NEW_RUN, kind

_SCHEDULES = (
    "linear, cosine, cosine_with_restarts, polynomial, constant, constant_with_warmup, inverse_sqrt, "
    "cosine_with_min_lr, warmup_stable_decay"
)
"""transformers' schedules that both trainer versions can use. A newer transformers lists its own in the error."""
_NEEDS_LOSSES = "reduce_lr_on_plateau"
"""transformers offers it. It needs a loss with each step, which this trainer does not pass."""

_OPTIMIZER_CLASS = (
    r"\w*(?:Adam|Ada|SGD|Lion|Prodigy|RMSprop|Rprop|CAME|ScheduleFree|Muon|Sophia|LBFGS"
    r"|Lamb|LAMB|Shampoo|SOAP|Tiger)\w*"
)
_SIZES = r"torch\.Size\(\[(?P<{0}>[\d, ]*)\]\)"
_MISMATCH = (
    rf"size mismatch for (?P<name>\S*{{0}}\S*): copying a param with shape {_SIZES.format('file')} from checkpoint, "
    rf"the shape in current model is {_SIZES.format('model')}"
)


def _ranks(found: re.Match[str], axis: int) -> Mapping[str, str]:
    return {name: found[name].split(",")[axis].strip() for name in ("file", "model")}


_RANK = "the LoRA to continue from has another rank ({file}) than this training ({model})"
_RANK_HELPS = (
    "Start a new run with the file's rank (`--rank {file}`), or without the file; `wan-train resume` keeps both."
)

SETTINGS_KINDS = (
    kind(
        r": error: (?P<text>unrecognized arguments: .*)",
        Cause.SETTING,
        "the trainer does not know an option it was given: {text}",
        "Check the arguments after `--` and the trainer's version (`wan-train doctor`), then start a new run: "
        "`wan-train "
        "resume` keeps them.",
    ),
    kind(
        r": error: (?P<text>.*)",
        Cause.SETTING,
        "the trainer refuses its arguments: {text}",
        NEW_RUN,
    ),
    kind(
        r"module 'torch\.optim\.lr_scheduler' has no attribute '(?P<name>[^']*)'",
        Cause.SETTING,
        "there is no learning-rate schedule {name} in torch.optim.lr_scheduler",
        f"`--lr_scheduler_type` takes a class of that module, or package.Class. {NEW_RUN}",
    ),
    kind(
        r"module 'torch\.optim' has no attribute '(?P<name>[^']*)'",
        Cause.SETTING,
        "there is no optimizer {name}: a name without a dot is one of torch.optim's, any other is package.Class",
        f"For example `adamw`, `adamw8bit`, `torch.optim.SGD`, `prodigyopt.Prodigy`. {NEW_RUN}",
    ),
    kind(
        r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>[^']*)'",
        Cause.SETTING,
        "there is no optimizer {name} in the package {module}",
        f"Look at that package's page for the class's name; upper and lower case count. {NEW_RUN}",
        at=r"get_optimizer",
    ),
    kind(
        rf"(?P<name>{_OPTIMIZER_CLASS})\.__init__\(\) got an unexpected keyword argument '(?P<argument>[^']*)'",
        Cause.SETTING,
        "the optimizer {name} does not take the argument {argument}",
        f"Take it out of the optimizer's arguments (`optimizer_args`). {NEW_RUN}",
    ),
    kind(
        r"(?P<name>\w+)\.__init__\(\) got an unexpected keyword argument '(?P<argument>[^']*)'",
        Cause.SETTING,
        "the optimizer {name} does not take the argument {argument}",
        f"Take it out of the optimizer's arguments (`optimizer_args`). {NEW_RUN}",
        at=r"get_optimizer",
    ),
    kind(
        r"(?P<name>get_\w*schedule\w*)\(\) got an unexpected keyword argument '(?P<argument>[^']*)'",
        Cause.SETTING,
        "the learning-rate schedule does not take the argument {argument}",
        f"Take it out of `lr_scheduler_args`, or choose the schedule that has it. {NEW_RUN}",
    ),
    kind(
        r"(?P<name>create_\w*network\w*"
        r"|\w*LoRA\w*\.__init__)\(\) got an unexpected keyword argument '(?P<argument>[^']*)'",
        Cause.SETTING,
        "the network module does not take the argument {argument}",
        f"Take it out of `network_args`. {NEW_RUN}",
    ),
    kind(
        r"ValueError: (?P<text>Invalid (?:learning rate|beta\w* (?:parameter|value)|epsilon|eps|weight_decay"
        r"|weight decay|rho"
        r"|momentum|lr|lr_decay|initial)\b.*)",
        Cause.SETTING,
        "the optimizer refuses a value: {text}",
        NEW_RUN,
    ),
    kind(
        r"(?P<text>Cannot combine manual `lr` and `relative_step=True`.*|`warmup_init=True` requires .*)",
        Cause.SETTING,
        "two arguments of Adafactor exclude each other: {text}",
        NEW_RUN,
    ),
    kind(
        r"not enough values to unpack|too many values to unpack|malformed node or string|invalid syntax",
        Cause.SETTING,
        "an argument of the optimizer, schedule or network is not written as KEY=VALUE with a Python value",
        f'For example `optimizer_args = ["weight_decay=0.1", "betas=(0.9, 0.99)"]`. {NEW_RUN}',
        at=r"get_optimizer|get_lr_scheduler|net_kwargs|literal_eval|_args\b.*split",
    ),
    kind(
        r"'(?P<name>[^']*)' is not a valid (?:Diffusers)?SchedulerType(?:, please select one of \[(?P<valid>[^\]]*)\])?"
        r"|(?P<named>\S+) is not a valid SchedulerType, please select one of \[(?P<listed>[^\]]*)\]",
        Cause.SETTING,
        "there is no learning-rate schedule {name}",
        "Valid are: {valid}. " + NEW_RUN,
        facts=lambda found: {
            "name": found["name"] or found["named"] or "",
            "valid": ", ".join(
                name
                for name in re.findall(r"\w+", found["valid"] or found["listed"] or _SCHEDULES)
                if name != _NEEDS_LOSSES
            ),
        },
    ),
    kind(
        r"(?P<text>\S+ (?:requires|does not require) `num_(?:warmup|training|decay|stable)_steps`)"
        r"|One of (?P<which>min_lr or "
        r"min_lr_rate) should be set|(?P<end>lr_end \(.*\) must be smaller than initial lr \(.*\))"
        r"|(?P<metrics>step\(\) missing 1 required positional argument: 'metrics')",
        Cause.SETTING,
        "the learning-rate schedule and its arguments do not match: {shown}",
        NEW_RUN,
        facts=lambda found: {"shown": found[0]},
    ),
    kind(
        _MISMATCH.format(r"lora_down"),
        Cause.SETTING,
        _RANK,
        _RANK_HELPS,
        facts=lambda found: _ranks(found, 0),
    ),
    kind(
        _MISMATCH.format(r"lora_up"),
        Cause.SETTING,
        _RANK,
        _RANK_HELPS,
        facts=lambda found: _ranks(found, 1),
    ),
    kind(
        r"loaded state dict contains a parameter group that doesn't match|loaded state dict has a different number of "
        r"parameter groups|optimizer state.*(?:shape|size)|param 'initial_lr' is not specified",
        Cause.SETTING,
        "the checkpoint belongs to a training with another optimizer, rank or network",
        "Start a new run without it. `wan-train resume RUN` itself takes only states of the very same settings.",
    ),
    kind(
        r"size mismatch for patch_embedding|to have 36 channels, but got 16\b|to have 16 channels, but got 36\b",
        Cause.SETTING,
        "the DiT file is of the other task: text-to-video and image-to-video have different inputs",
        "Start a new run with the `--task` of the file, or with the task's own DiT files.",
    ),
    kind(
        r"Error\(s\) in loading state_dict for (?P<what>\w+)[\s\S]*?size mismatch for (?P<name>\S+):",
        Cause.SETTING,
        "a file's weights have another shape than {what} needs, first {name}",
        "The file is for another model, network or rank. Start a new run with the right one; `wan-train resume` "
        "keeps it.",
    ),
    kind(
        r"Error\(s\) in loading state_dict for (?P<what>\w+)|AssertionError: (?:Missing|Unexpected) keys",
        Cause.SETTING,
        "a file does not hold the weights that the model needs",
        "The file is for another model or network. Start a new run with the right one; `wan-train resume` keeps it.",
    ),
    kind(
        r"AssertionError: DiT weights (?:is|are)|mixed_precision must be|mixed precision must be",
        Cause.SETTING,
        "the precision of the DiT's weights and --mixed_precision differ",
        "Start a new run and leave mixed_precision to wan-train, which takes the file's own; `wan-train resume` "
        "keeps it.",
    ),
    kind(
        r"to have the same dtype|should be the same\b.*(?:type|Tensor)|Input type .* and (?:bias"
        r"|weight) type .* should be"
        r"|expected scalar type \w+ but found \w+|not implemented for '(?:Half|BFloat16|Float8_\w+)'"
        r"|Attempting to unscale FP16 gradients|should either all have the same dtype|dtype mismatch"
        r"|must have the same (?:dtype|scalar type)",
        Cause.SETTING,
        "the precision of the weights and --mixed_precision differ",
        "Start a new run and leave mixed_precision, fp8_base and the like to wan-train; `wan-train resume` keeps them.",
    ),
    kind(
        r"(?P<text>fp8_scaled requires fp8_base|Cannot swap more than \d+ blocks\. Requested \d+[^.]*)",
        Cause.SETTING,
        "two settings conflict: {text}",
        NEW_RUN,
    ),
    kind(
        r"No LoRA modules found|optimizer got an empty parameter list",
        Cause.SETTING,
        "the network module found nothing in this model to train",
        f"For Wan it is `networks.lora_wan`; see `network_args`, too. {NEW_RUN}",
    ),
    kind(
        r"No operator found for `memory_efficient_attention|FlashAttention only supports|flash_attn.*not support",
        Cause.SETTING,
        "the chosen attention does not work on this GPU or with this precision",
        "Start a new run with `--attention sdpa`; `wan-train resume` keeps the other one.",
    ),
    kind(
        r"api_key not configured|wandb.*(?:API key must be|[Ii]nvalid API key|permission denied|No API key)"
        r"|API key must be 40",
        Cause.SETTING,
        "Weights & Biases (wandb) has no valid key",
        "`export WANDB_API_KEY=…` and resume, or start a new run without `--log_with wandb`.",
    ),
)
