"""Which GPUs of the box a run may use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from wan_train.base.errors import BadInputError
from wan_train.gpu.model import Gpu, GpuReading, LostGpu

AnyGpu = TypeVar("AnyGpu", bound=Gpu | LostGpu)


def choose(reading: GpuReading, gpus: str | None, visible: str | None) -> tuple[Gpu, ...]:
    """The GPUs that both `gpus` and `visible` allow, in the order of `gpus`, else of `visible`, else of NVML.

    Args:
        reading: the GPUs of the box; lost ones are never chosen, and naming one is not an error.
        gpus: None or "all", or a comma list of NVML indices, UUIDs and unique UUID prefixes.
        visible: the value of CUDA_VISIBLE_DEVICES, None when unset. Read as CUDA reads it (CUDA C++
            Programming Guide, "CUDA Environment Variables"): the list ends at its first invalid entry, so ""
            and "-1" allow none. Indices are taken in PCI order, which is NVML's.

    Raises:
        BadInputError: `gpus` is empty or names a GPU that is not there.
    """
    seen = _visible(reading, visible)
    if gpus is None or _is_all(gpus):
        return seen
    allowed = {gpu.uuid for gpu in seen}
    return tuple(gpu for gpu in _named(reading, gpus) if gpu.uuid in allowed)


def names_some(gpus: str | None, visible: str | None) -> bool:
    """Whether the user limited the GPUs, with the arguments of `choose`."""
    return visible is not None or (gpus is not None and not _is_all(gpus))


def choose_again(
    reading: GpuReading, before: Sequence[str], visible: str | None, *, keep_number: bool
) -> tuple[Gpu, ...] | None:
    """The new GPUs of a run whose box lacks some of its old ones; None keeps the old choice.

    Remaining GPUs of `before` come first, then others that `visible` allows. With `keep_number` (the user chose the
    GPUs) there are no more than before. The old choice also stands if a GPU is lost or the box shows no other GPU.
    """
    here = [gpu for gpu in reading.gpus if gpu.uuid in before]
    if len(here) == len(before) or reading.lost:
        return None
    others = [gpu for gpu in _visible(reading, visible) if gpu.uuid not in before]
    room = len(before) - len(here) if keep_number else len(others)
    return (*here, *others[:room]) if others[:room] else None


def why_none(reading: GpuReading, visible: str | None) -> str:
    """Why `choose` returned nothing, for people."""
    if reading.gpus and visible is not None and visible.strip().upper().startswith("MIG-"):
        return (
            f"CUDA_VISIBLE_DEVICES={visible!r} names a MIG instance that the driver does not list here "
            f"({_listing(reading)})"
        )
    if reading.gpus and not _visible(reading, visible):
        return f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU of this box ({_listing(reading)})"
    if reading.gpus:
        hidden = "" if visible is None else f"CUDA_VISIBLE_DEVICES={visible!r}; "
        return f"none of the GPUs asked for can be used ({hidden}{_listing(reading)})"
    if reading.lost:
        return f"no GPU of this box can be used ({_listing(reading)})"
    return "the NVIDIA driver reports no GPU"


def how_to_show(reading: GpuReading, visible: str | None) -> str:
    """What to do when `choose` returned nothing."""
    if reading.gpus and visible is not None:
        one = reading.gpus[0].uuid
        return f"Show them: `unset CUDA_VISIBLE_DEVICES`, or name one: `export CUDA_VISIBLE_DEVICES={one}`."
    return "Look at `nvidia-smi`."


def _is_all(gpus: str) -> bool:
    return gpus.strip().casefold() == "all"


def _named(reading: GpuReading, gpus: str) -> tuple[Gpu, ...]:
    entries = [entry.strip() for entry in gpus.split(",") if entry.strip()]
    if not entries:
        raise BadInputError(
            f"--gpus {gpus!r} names no GPU", hint=f"Use --gpus all, or choose from: {_listing(reading)}."
        )
    known: tuple[Gpu | LostGpu, ...] = (*reading.gpus, *reading.lost)
    found: dict[str, Gpu] = {}
    for entry in entries:
        matches = _matches(known, entry)
        if not _is_one(matches, entry):
            problem = "names several GPUs" if matches else "names a GPU that is not there"
            raise BadInputError(
                f"--gpus: {entry!r} {problem}; this box has {_listing(reading)}",
                hint="Use an index or UUID from that list, comma separated, or --gpus all.",
            )
        found.update((match.uuid, match) for match in matches if isinstance(match, Gpu) and match.uuid not in found)
    return tuple(found.values())


def _visible(reading: GpuReading, visible: str | None) -> tuple[Gpu, ...]:
    if visible is None:
        return reading.gpus
    found: dict[str, Gpu] = {}
    for entry in visible.split(","):
        matches = _matches(reading.gpus, entry.strip())
        if not _is_one(matches, entry.strip()):
            break
        found.update((match.uuid, match) for match in matches if match.uuid not in found)
    return tuple(found.values())


def _is_one(matches: Sequence[Gpu | LostGpu], entry: str) -> bool:
    """Whether an entry names one GPU, or by its index all MIG instances of one."""
    return len(matches) == 1 or (bool(matches) and entry.isdecimal())


def _matches(known: Sequence[AnyGpu], entry: str) -> list[AnyGpu]:
    # isdecimal alone would accept Arabic digits.
    if entry.isascii() and entry.isdecimal():
        return [gpu for gpu in known if gpu.index == int(entry)]
    if entry.isascii() and entry.replace(":", "", 1).isdecimal():
        return [gpu for gpu in known if gpu.number == entry]
    wanted = entry.casefold()
    if exact := [gpu for gpu in known if (gpu.uuid or "").casefold() == wanted != ""]:
        return exact
    # "G" or "GPU-" would name the GPU of a box with one GPU, but be ambiguous on others.
    if len(wanted) <= len("gpu-"):  # "mig-" is equally long
        return []
    return [gpu for gpu in known if (gpu.uuid or "").casefold().startswith(wanted)]


def _listing(reading: GpuReading) -> str:
    known = [f"{gpu.number} = {gpu.name} ({gpu.uuid})" for gpu in reading.gpus]
    known += [f"{gpu.index} = unusable ({gpu.reason})" for gpu in reading.lost]
    return "; ".join(known) or "no GPU"
