"""Draw pairs of LoRAs with the tiny model, as blots of colour: the rehearsal's backend of `preview/drawing/driver.py`.

It ignores guidance and negative prompts. `preview/drawing/musubi.py` documents the methods.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from wan_train.rehearsal.sampling import frames_of, noise_levels, start_condition
from wan_train.rehearsal.tiny_model import (
    CHANNELS,
    STRIDE,
    TIMESTEPS,
    Network,
    TinyWan,
    default_device,
    encode_text,
)

BOUNDARY = {"t2v": 0.875, "i2v": 0.9}
"""The high-noise expert computes from this noise level up, as in Wan 2.2."""
NEGATIVE = "no blots"

Json = dict[str, Any]


class Backend:
    """One tiny model at a time; `settings` has the task."""

    def __init__(self, settings: Json, prompts: list[Json]) -> None:
        # The model is so small that more threads only wait for each other.
        torch.set_num_threads(1)
        self._is_i2v = "i2v" in settings["task"]
        self._boundary = BOUNDARY["i2v" if self._is_i2v else "t2v"]
        self._prompts = prompts
        self._device = default_device()
        self._text: dict[int, Tensor] = {}
        self._conditions: dict[int, Tensor | None] = {}
        self._model: Any = None

    def prepare(self, prompts: list[int]) -> Json:
        for number in prompts:
            prompt = self._prompts[number]
            self._text[number] = encode_text(prompt["text"]).to(self._device)
            size = prompt["width"], prompt["height"]
            self._conditions[number] = (
                start_condition(prompt["image"], size, prompt["frames"], self._device) if self._is_i2v else None
            )
        return {"negative": NEGATIVE, "boundary": self._boundary}

    def load(self, expert: str) -> None:
        del expert  # both experts start as the same model

    def unload(self) -> None:
        self._model = None

    def attach(self, path: str | None, strength: float) -> None:
        self._model = TinyWan(i2v=self._is_i2v).to(self._device)
        if path is None:
            return
        weights = load_file(path)
        rank = next(len(tensor) for name, tensor in weights.items() if name.endswith("lora_down.weight"))
        alpha = next(float(tensor) for name, tensor in weights.items() if name.endswith(".alpha"))
        network = Network(self._model, rank=rank, alpha=alpha * strength, dropout=None).to(self._device)
        network.load_state_dict(weights, strict=True)
        network.eval()

    def begin(self, prompt: int) -> Json:
        asked = self._prompts[prompt]
        frames = (asked["frames"] - 1) // 4 + 1
        generator = torch.Generator().manual_seed(asked["seed"])
        shape = (1, CHANNELS, frames, asked["height"] // STRIDE, asked["width"] // STRIDE)
        noise = torch.randn(shape, generator=generator).to(self._device)
        return {"latent": noise, "levels": noise_levels(asked["steps"], asked["shift"])}

    def advance(self, expert: str, prompt: int, state: Json) -> int:
        levels, x, steps = state["levels"], state["latent"], 0
        text, condition = [self._text[prompt]], self._conditions[prompt]
        with torch.no_grad():
            while len(levels) > 1 and (expert == "low" or float(levels[0]) >= self._boundary):
                moment = torch.full((1,), float(levels[0]) * TIMESTEPS, device=self._device)
                x = x + (levels[1] - levels[0]).to(self._device) * self._model(x, moment, text, condition).float()
                levels, steps = levels[1:], steps + 1
        state["latent"], state["levels"] = x, levels
        return steps

    def save(self, state: Json, path: str) -> None:
        torch.save({"latent": state["latent"].cpu(), "levels": state["levels"]}, path)

    def restore(self, state: Json, path: str) -> None:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        state.update(latent=saved["latent"].to(self._device), levels=saved["levels"])

    def decode(self, prompt: int, latents: str, folder: str) -> list[str]:
        latent = torch.load(latents, map_location="cpu", weights_only=True)["latent"]
        paths = []
        for number, frame in enumerate(frames_of(latent[0], self._prompts[prompt]["frames"])):
            paths.append(str(Path(folder) / f"{number:03d}.png"))
            frame.save(paths[-1])
        return paths
