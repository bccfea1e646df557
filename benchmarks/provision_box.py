"""A bare box with everything that a provision asks for on this machine, at a thousandth of the real sizes."""

from __future__ import annotations

import json
import random
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests/provision"))

import provision_world
from file_server import FileServer, serve, write_index
from hub_server import Hub
from link import Link
from provision_world import World

from wan_train.provision.models import wanted
from wan_train.recipe.terms import Task

MODEL_BYTES = {"wan21-vae": 254_000, "umt5-xxl": 11_361_000, "wan22-t2v-high": 28_577_000, "wan22-t2v-low": 28_577_000}
"""A thousandth of the hub's sizes in bytes (VAE 0.25, T5 11.4, each expert 28.6 GB)."""

PACKAGE_BYTES = 3_300_000
"""A thousandth of torch 2.7.0 for CUDA 12.8 with NVIDIA's packages and what the trainer asks for."""

PACKAGE_FILES = 10_000
"""So many keep pip busy for about a tenth of the 120 to 240 s that the guide's installations take on a rented box."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The box, and the two servers that share one line."""

    world: World
    hub: Hub
    index: FileServer

    def environment(self) -> dict[str, str]:
        """For programs on this box: aria2c is installed, and packages come from the box's own index."""
        found = self.world.environment()
        tools = Path(sys.executable).parent
        return {
            **found,
            "PATH": f"{found['PATH']}:{tools}",
            "UV_DEFAULT_INDEX": f"{self.index.address}/simple",
            "HF_HUB_DISABLE_XET": "1",
        }


@contextmanager
def provision_box(link: float, connection: int | None = None) -> Iterator[Place]:
    """`link` in bytes a second for everything together, `connection` for each connection to the hub."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wan-train-bench-")))
        world = provision_world.make(folder)
        stack.callback(world.hub.stop)
        _fill(world)
        index = stack.enter_context(serve(folder / "index"))
        text = world.engine.read_text(encoding="utf-8").splitlines()
        kept = [line for line in text if not line.startswith("arguments")]
        world.engine.write_text("\n".join([*kept, f"first_index = {json.dumps(f'{index.address}/simple')}", ""]))
        world.hub.link = index.link = Link(link)
        world.hub.rate = connection
        world.hub.redirects = True
        yield Place(world=world, hub=world.hub, index=index)


def _fill(world: World) -> None:
    chance = random.Random(5)
    for model in wanted([Task.T2V]):
        world.hub.files[f"{model.repo}/{model.file}"] = chance.randbytes(MODEL_BYTES[model.name])
    wheels = world.folder / "wheels"
    with zipfile.ZipFile(wheels / "torch-2.7.0-py3-none-any.whl", "a") as wheel:
        wheel.writestr("torch/lib/libtorch_cuda.so", chance.randbytes(PACKAGE_BYTES))
        for number in range(PACKAGE_FILES):
            wheel.writestr(f"torch/include/part{number}.h", f"// {number}\n")
    (world.folder / "index").mkdir()
    write_index(world.folder / "index", wheels)
