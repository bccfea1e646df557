"""A bare box made ready: the guide's steps one after the other, and `wan-train provision`, over the same line."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from figures import Figure
from provision_box import MODEL_BYTES, Place, provision_box
from wan_train.provision import engine_file
from wan_train.provision.models import wanted
from wan_train.recipe.terms import Task

LINK = 1_250_000.0
"""Bytes a second: a hundredth of a rented box's 125 MB/s. With files of a thousandth, all takes a tenth of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds from the start: until caching could begin (environment, VAE, T5), and until everything was there."""

    caching: float
    all: float


def measure() -> Iterator[Figure]:
    for words, connection in (("one connection fills the line", None), ("one connection gets half the line", LINK / 2)):
        cap = int(connection) if connection else None
        with provision_box(LINK, cap) as place:
            serial = by_hand(place)
        with provision_box(LINK, cap) as place:
            ours = by_provision(place)
            installing = install_alone(place)
        bound = max(sum(MODEL_BYTES.values()) / LINK, installing)
        yield Figure(
            what=f"bare box, {words}: until caching can begin",
            measured=f"{ours.caching:.1f} s",
            against=f"the guide's steps {serial.caching:.1f} s",
            ratio=serial.caching / ours.caching,
            goal=">= 2 times sooner",
            met=serial.caching >= 2 * ours.caching,
        )
        yield Figure(
            what="the same, until everything is there",
            measured=f"{ours.all:.1f} s",
            against=f"the longer of models / line and installing {bound:.1f} s; the guide's steps {serial.all:.1f} s",
            ratio=ours.all / bound,
            goal="<= 1.15 of the longer",
            met=ours.all <= 1.15 * bound,
        )


def by_hand(place: Place) -> Times:
    """The guide's commands in its order, each when the one before has ended."""
    world, begun = place.world, time.monotonic()
    engine = engine_file.load(str(world.engine))
    python = str(world.checkout / "venv/bin/python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    index = ["--index-url", engine.first_index or ""]
    checkout = str(world.checkout)
    world.workspace.mkdir()
    _run(["git", "clone", "-q", "--recursive", engine.repository, checkout], place)
    _run(["git", "-C", checkout, "checkout", "-q", engine.commit], place)
    _run([sys.executable, "-m", "venv", f"{checkout}/venv"], place)
    for words in (["-e", checkout], ["protobuf"], ["six"], list(engine.first)):
        _run([*pip, *index, *words], place)
    names = ["umt5-xxl", "wan21-vae", "wan22-t2v-high", "wan22-t2v-low"]
    models = {model.name: model for model in wanted([Task.T2V])}
    caching = 0.0
    for name in names:
        model = models[name]
        hub = str(Path(sys.executable).parent / "hf")
        target = str(world.checkout / model.place)
        _run([hub, "download", model.repo, model.file, "--local-dir", target], place)
        if name == "wan21-vae":
            caching = time.monotonic() - begun
    return Times(caching=caching, all=time.monotonic() - begun)


def by_provision(place: Place) -> Times:
    world, begun = place.world, time.monotonic()
    early = [world.checkout / "venv/wan-train.json", *world.models()[:2]]
    with subprocess.Popen(
        world.argv("--yes"), env=place.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        caching = _when(lambda: all(path.exists() for path in early), child, begun)
        if child.wait() != 0:
            raise RuntimeError(f"provision ended with {child.returncode}")
    return Times(caching=caching, all=time.monotonic() - begun)


def install_alone(place: Place) -> float:
    """Seconds that the installing half takes with the line to itself, on a second bare box of the same world."""
    world = place.world
    begun = time.monotonic()
    argv = [*world.argv("--yes", "--skip-models")]
    argv[argv.index("--workspace") + 1] = str(world.folder / "other")
    _run(argv, place)
    return time.monotonic() - begun


def _when(there: Callable[[], bool], child: subprocess.Popen[bytes], begun: float) -> float:
    while not there() and child.poll() is None:
        time.sleep(0.05)
    return time.monotonic() - begun


def _run(argv: Sequence[str], place: Place) -> None:
    subprocess.run(argv, env=place.environment(), check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
