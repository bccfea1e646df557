"""Run by the trainer's own Python: builds network, optimizer and learning-rate schedule as the trainer would.

Only the functions needed are taken from the trainer's source. That takes a fifth of the time, needs neither a GPU nor a
model, and follows each version's own rules. This file imports only the standard library and supports Python 3.10.
It reads one JSON object from stdin and writes one to stdout.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import logging
import math
import os
import pkgutil
import sys
import warnings
from pathlib import Path
from typing import Any

_STEPS_TRIED = 20_000
_TEXT = 600
_HIDDEN, _FEED_FORWARD = 5120, 13824
_SOURCES = ("training/trainer_base.py", "training/parser_common.py", "hv_train_network.py")
_CALLED = ("optimizer_class", "schedule_func", "lr_scheduler_class")
_NOT_THE_USERS = frozenset({"params", "optimizer", "lr", "args", "kwargs", "num_warmup_steps", "num_training_steps"})
_METHODS = ("get_optimizer", "is_schedulefree_optimizer", "get_dummy_scheduler", "get_lr_scheduler")


class Excerpt:
    """Selected functions of a program, with the imports and other functions that they need."""

    def __init__(self, path: Path) -> None:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        self._path = path
        self._nodes: dict[str, ast.stmt] = {}
        self.methods: dict[str, ast.FunctionDef] = {}
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    self._nodes[alias.asname or alias.name.partition(".")[0]] = node
            elif isinstance(node, ast.FunctionDef):
                self._nodes[node.name] = node
            elif isinstance(node, ast.Assign):
                self._nodes.update({target.id: node for target in node.targets if isinstance(target, ast.Name)})
            elif isinstance(node, ast.ClassDef):
                self._nodes[node.name] = node
                found = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
                if _METHODS[0] in found:
                    self.methods = found
        self.space: dict[str, Any] = {"__name__": "musubi_tuner.judged", "__file__": str(path)}

    def function(self, name: str) -> Any | None:  # noqa: ANN401  whatever the trainer's function is
        if name not in self._nodes:
            return None
        self._need(ast.Module(body=[self._nodes[name]], type_ignores=[]))
        return self._defined(self._nodes[name], name)

    def trainer(self) -> Any:  # noqa: ANN401  an object with the trainer's own methods
        wanted = [self.methods[name] for name in _METHODS if name in self.methods]
        self._need(ast.Module(body=list(wanted), type_ignores=[]))
        body: list[ast.stmt] = list(wanted)
        holder = ast.ClassDef(name="Judged", bases=[], keywords=[], body=body, decorator_list=[])
        vars(holder)["type_params"] = []  # required since Python 3.12
        return self._defined(ast.fix_missing_locations(ast.copy_location(holder, wanted[0])), "Judged")()

    def _need(self, node: ast.AST) -> None:
        for each in ast.walk(node):
            name = each.id if isinstance(each, ast.Name) else None
            source = self._nodes.get(name) if name is not None and name not in self.space else None
            if source is not None and name is not None:
                self.space[name] = None  # ends the recursion if functions need each other
                if not isinstance(source, ast.Import | ast.ImportFrom):
                    self._need(source)
                self.space.pop(name)
                self._defined(source, name)

    def _defined(self, node: ast.stmt, name: str) -> Any:  # noqa: ANN401  see above
        code = compile(ast.Module(body=[node], type_ignores=[]), str(self._path), "exec")
        exec(code, self.space)  # noqa: S102  the installed trainer's own source, which is about to be run as a whole
        return self.space[name]


class StoppedError(Exception):
    """A stage failed. The failure is already recorded."""


class Judged:
    """One training. `found` collects the results."""

    def __init__(self, package: Path, wanted: dict[str, Any]) -> None:
        self._package = package
        self._wanted = wanted
        self.found: dict[str, Any] = {"failure": None, "weights": {}}

    def judge(self) -> dict[str, Any]:
        with contextlib.suppress(StoppedError):
            with self._stage("trainer"):
                args, trainer = self._trainer()
            with self._stage("network_module", module=args.network_module):
                params = self._network(args)
            with self._stage("optimizer_type"):
                optimizer = trainer.get_optimizer(args, params)[2]
                inspect.signature(optimizer.step).bind()
            with self._stage("lr_scheduler"):
                scheduler = trainer.get_lr_scheduler(args, optimizer, 1)
                for _ in range(min(self._wanted["steps"], _STEPS_TRIED)):
                    scheduler.step()
                rates = scheduler.get_last_lr()
                if not all(math.isfinite(float(rate)) for rate in rates):
                    raise ValueError(f"the learning rate becomes {rates[0]}")
        return self.found

    @contextlib.contextmanager
    def _stage(self, name: str, **more: Any) -> Any:  # noqa: ANN401  JSON values
        try:
            yield
        except (Exception, SystemExit) as error:  # whatever the trainer and its libraries raise is the answer
            self.found["failure"] = {
                "stage": name,
                "kind": type(error).__name__,
                "text": str(error)[:_TEXT],
                "missing": error.name if isinstance(error, ModuleNotFoundError) else None,
                "takes": _taken(error) if isinstance(error, TypeError) else [],
                **more,
            }
            raise StoppedError from error

    def _trainer(self) -> tuple[Any, Any]:
        excerpts = [Excerpt(path) for name in _SOURCES if (path := self._package / name).is_file()]
        make_parser = next(made for each in excerpts if (made := each.function("setup_parser_common")) is not None)
        args = make_parser().parse_known_args(self._wanted["words"])[0]
        args.max_train_steps = self._wanted["steps"]
        return args, next(each for each in excerpts if each.methods).trainer()

    def _network(self, args: Any) -> Any:  # noqa: ANN401  the trainer's own namespace and parameters
        import importlib

        module = importlib.import_module(args.network_module)
        pairs = dict(pair.split("=") for pair in args.network_args or [])
        known = _network_arguments(self._package / "networks", module)
        unread = [name for name in pairs if name not in known] if known else []
        if unread:
            raise ValueError(f"it does not read {', '.join(unread)}; it reads {', '.join(sorted(known))}")
        unet = _one_block()
        if hasattr(module, "create_arch_network"):
            network = module.create_arch_network(
                1.0,
                args.network_dim,
                args.network_alpha,
                None,
                None,
                unet,
                neuron_dropout=args.network_dropout,
                **pairs,
            )
        else:
            network = module.create_network(1.0, args.network_dim, args.network_alpha, None, None, unet, **pairs)
        if network is None:
            raise ValueError("it makes no network")
        network.apply_to(None, unet, apply_text_encoder=False, apply_unet=True)
        self.found["weights"] = {name: list(value.shape) for name, value in network.state_dict().items()}
        if not self.found["weights"]:
            raise ValueError("it finds nothing to train in Wan 2.2")
        return network.prepare_optimizer_params(unet_lr=args.learning_rate)[0]


def _network_arguments(folder: Path, module: Any) -> set[str]:  # noqa: ANN401  a module
    """The `network_args` that a network module of this checkout reads; empty if unknown.

    It silently ignores all others, so a mistyped one would change nothing.
    """
    if module.__file__ is None or (path := Path(module.__file__).resolve()).parent != folder.resolve():
        return set()
    paths = {path, path.with_name("lora.py")}  # the other modules pass their arguments to its function
    functions = [
        node
        for each in filter(Path.is_file, paths)
        for node in ast.parse(each.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name in {"create_arch_network", "create_network"}
    ]
    found = set()
    for node in (each for function in functions for each in ast.walk(function)):
        match node:
            case (
                ast.Call(
                    func=ast.Attribute(value=ast.Name(id="kwargs"), attr="get" | "pop"),
                    args=[ast.Constant(value=name), *_],
                )
                | ast.Subscript(value=ast.Name(id="kwargs"), slice=ast.Constant(value=name))
            ):
                found.add(str(name))
            case _:
                pass
    return found


def _taken(error: BaseException) -> list[str]:
    """Argument names of the class or function that the trainer was calling when this was raised."""
    trace = error.__traceback__
    while trace is not None:
        called = [trace.tb_frame.f_locals.get(name) for name in _CALLED]
        if trace.tb_frame.f_code.co_name in _METHODS and any(called):
            made = next(each for each in reversed(called) if each)
            try:
                return [name for name in inspect.signature(made).parameters if name not in _NOT_THE_USERS]
            except (TypeError, ValueError):
                return []
        trace = trace.tb_next
    return []


def _one_block() -> Any:  # noqa: ANN401  torch is not installed when this file is checked
    """A Wan 2.2 DiT block with the real layer names and sizes. Its weights take no memory."""
    from torch import nn

    def linear(inputs: int, outputs: int) -> Any:  # noqa: ANN401  see above
        return nn.Linear(inputs, outputs, device="meta")

    class WanAttentionBlock(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
        def __init__(self) -> None:
            super().__init__()
            for name in ("self_attn", "cross_attn"):
                layers = {each: linear(_HIDDEN, _HIDDEN) for each in ("q", "k", "v", "o")}
                self.add_module(name, nn.ModuleDict(layers))
            self.ffn = nn.Sequential(linear(_HIDDEN, _FEED_FORWARD), nn.GELU(), linear(_FEED_FORWARD, _HIDDEN))

    unet = nn.Module()
    unet.blocks = nn.ModuleList([WanAttentionBlock()])
    return unet


def _offered(package: Path) -> dict[str, Any]:
    """Valid alternatives: network modules of this checkout, torch's optimizers, schedules."""
    import torch

    optimizers = [
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    ]
    folder = package / "networks"
    modules = [
        f"networks.{module.name}"
        for module in pkgutil.iter_modules([str(folder)])
        if "def create_arch_network(" in (folder / f"{module.name}.py").read_text(encoding="utf-8")
    ]
    return {"optimizers": sorted(optimizers), "modules": modules, "schedulers": _schedulers(package)}


def _schedulers(package: Path) -> list[str]:
    import importlib

    # transformers exists only in the trainer's environment.
    types = importlib.import_module("transformers.optimization").SchedulerType

    # `reduce_lr_on_plateau` needs a loss with each step, which this trainer does not pass.
    names = [str(each.value) for each in types if each.value != "reduce_lr_on_plateau"]
    source = next(path for name in _SOURCES if (path := package / name).is_file())
    rex = ["rex"] if '"rex"' in source.read_text(encoding="utf-8") else []
    return [*names, "piecewise_constant", *rex]


def main() -> None:
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    asked = json.load(sys.stdin)
    package = Path(asked["package"])
    sys.path[0] = str(package)  # as when the training script in this folder runs
    trainings = [Judged(package, wanted).judge() for wanted in asked["trainings"]]
    try:
        offered = _offered(package)
    except Exception:  # noqa: BLE001  without torch or transformers there are no alternatives
        offered = {"optimizers": [], "modules": [], "schedulers": []}
    json.dump({"trainings": trainings, **offered}, answer)
    answer.flush()


if __name__ == "__main__":
    main()
