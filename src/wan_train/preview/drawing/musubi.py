"""The driver's backend for musubi-tuner: it imports the trainer's own `wan_generate_video` and copies none of it.

Read at d0a1930 and v0.3.4. The trainer's command merges LoRAs while it loads a DiT, so one process draws one pair.
Here a LoRA is attached to the loaded DiT and swapped for the next. Text encoding, noise, schedule, steps and decoding
are called as the command calls them. A picture without LoRAs is therefore bit-identical to the command's.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path.cwd() / "src"))

import torch
from accelerate import Accelerator
from musubi_tuner import wan_generate_video as trainer
from musubi_tuner.networks import lora_wan
from safetensors.torch import load_file

Json = dict[str, Any]
_SWAP_SECONDS = 5
"""The command's own wait before it drops a DiT: threads may still be moving its blocks."""


class Backend:
    """One process's models. `settings` has the `arguments` of the trainer's command and the `merged` LoRAs."""

    def __init__(self, settings: Json, prompts: list[Json]) -> None:
        # The command requires a prompt. The real prompts are set below.
        sys.argv = ["wan_generate_video.py", *settings["arguments"], "--prompt", "-"]
        args = trainer.setup_args(trainer.parse_args())
        args.device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._merged: dict[str, list[str]] = settings["merged"]
        self._text_on_cpu: bool = settings["text_on_cpu"]
        self._settings = trainer.get_generation_settings(args)
        self._device, self._config = args.device, self._settings.cfg
        self._args = args
        self._prompt_args = [self._with(prompt) for prompt in prompts]
        precision = "bf16" if self._settings.dit_dtype == torch.bfloat16 else "fp16"
        self._accelerator = Accelerator(mixed_precision=precision)
        self._inputs: dict[int, tuple[Any, Any]] = {}
        self._model: Any = None
        self._network: Any = None
        self._shape: Any = None
        self._vae: Any = None

    def prepare(self, prompts: list[int]) -> Json:
        """Encode these prompts and their start pictures. Noise and inputs are the same for every row."""
        contexts = self._encode(prompts)
        is_i2v = "i2v" in self._args.task
        vae = None
        if is_i2v:
            vae = trainer.load_vae(self._args, self._config, self._device, self._settings.vae_dtype)
        for number in prompts:
            args = self._prompt_args[number]
            if is_i2v:
                # In d0a1930 the command fails here with prompts from a file (UnboundLocalError). Its functions work.
                noise, inputs, _ = trainer.prepare_i2v_inputs(
                    args, self._config, self._accelerator, self._device, vae, contexts[number]
                )
            else:
                noise, inputs = trainer.prepare_t2v_inputs(
                    args, self._config, self._accelerator, self._device, None, contexts[number]
                )
            self._inputs[number] = (noise, inputs)
        del vae
        self._clean()
        return {"negative": self._config.sample_neg_prompt, "boundary": self._args.timestep_boundary}

    def _encode(self, prompts: list[int]) -> dict[int, Json]:
        device = torch.device("cpu") if self._text_on_cpu else self._device
        encoder = trainer.load_text_encoder(self._args, self._config, device)
        encoder.model.to(device)
        contexts: dict[int, Json] = {}
        with torch.no_grad():
            for number in prompts:
                args = self._prompt_args[number]
                negative = args.negative_prompt or self._config.sample_neg_prompt
                contexts[number] = {
                    "context": self._here(encoder([args.prompt], device)),
                    "context_null": self._here(encoder([negative], device)),
                    "clip_context": None,  # Wan 2.1 only
                }
        del encoder
        self._clean()
        return contexts

    def load(self, expert: str) -> None:
        path = self._args.dit_high_noise if expert == "high" else self._args.dit
        merged = self._merged.get(expert) or None
        self._model = trainer.load_dit_model(
            self._args,
            path,
            merged,
            [1.0] * len(merged) if merged else None,
            self._config,
            self._device,
            self._settings.dit_weight_dtype,
        )

    def unload(self) -> None:
        if self._args.blocks_to_swap:
            time.sleep(_SWAP_SECONDS)
        self._model = self._network = self._shape = None
        self._clean()

    def attach(self, path: str | None, strength: float) -> None:
        """Attach this LoRA, and no other, to the loaded DiT. Raise for keys that match nothing."""
        if path is None:
            self._detach()
            return
        weights = load_file(path)
        # A module's scale is fixed when it is made, so another rank or alpha needs new modules.
        shape = {key: float(value) if key.endswith(".alpha") else tuple(value.shape) for key, value in weights.items()}
        if self._network is None or shape != self._shape:
            self._detach()
            network = lora_wan.create_arch_network_from_weights(strength, weights, unet=self._model, for_inference=True)
            network.apply_to(None, self._model, apply_text_encoder=False, apply_unet=True)
            network.to(self._device, self._settings.dit_dtype).eval().requires_grad_(requires_grad=False)
            self._network, self._shape = network, shape
        self._network.set_multiplier(strength)
        self._network.load_state_dict(weights, strict=True)

    def _detach(self) -> None:
        if self._network is None:
            return
        for lora in self._network.unet_loras:
            lora.org_module_ref[0].forward = lora.org_forward
        self._network = self._shape = None

    def begin(self, prompt: int) -> Json:
        """Return the state before the first step."""
        noise, _ = self._inputs[prompt]
        args = self._prompt_args[prompt]
        scheduler, timesteps = trainer.setup_scheduler(args, self._config, self._device)
        generator = torch.Generator(device=self._device)
        generator.manual_seed(args.seed)
        return {
            "latent": noise.clone(),
            "scheduler": scheduler,
            "timesteps": timesteps,
            "generator": generator,
        }

    def advance(self, expert: str, prompt: int, state: Json) -> int:
        """Compute the steps of one expert and return their number."""
        args, (_, inputs) = self._prompt_args[prompt], self._inputs[prompt]
        left = state["timesteps"]
        # The trainer's own rule for each step.
        high = sum(float(moment) / 1000.0 >= args.timestep_boundary for moment in left)
        mine = high if expert == "high" else len(left)
        if mine == 0:
            return 0
        newer = {"gen_settings": self._settings}
        extra = newer if "gen_settings" in inspect.signature(trainer.run_sampling).parameters else {}
        state["latent"] = trainer.run_sampling(
            [self._model],
            state["latent"],
            state["scheduler"],
            left[:mine],
            args,
            inputs=inputs,
            device=self._device,
            seed_g=state["generator"],
            accelerator=self._accelerator,
            **extra,
        )
        state["timesteps"] = left[mine:]
        return mine

    def save(self, state: Json, path: str) -> None:
        """Save the state to a file, with the scheduler: its multistep solver remembers earlier predictions."""
        memory = {name: value for name, value in vars(state["scheduler"]).items() if _is_data(value)}
        torch.save(
            {
                "latent": state["latent"].cpu(),
                "timesteps": state["timesteps"].cpu(),
                "generator": state["generator"].get_state(),
                "scheduler": memory,
            },
            path,
        )

    def restore(self, state: Json, path: str) -> None:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        state["latent"] = saved["latent"].to(state["latent"].device)
        state["timesteps"] = saved["timesteps"].to(self._device)
        state["generator"].set_state(saved["generator"])
        state["scheduler"].__dict__.update(saved["scheduler"])

    def decode(self, prompt: int, latents: str, folder: str) -> list[str]:
        """Let the trainer write a cell's frames to a folder as PNG files. Return their paths in order."""
        args = self._prompt_args[prompt]
        if self._vae is None:
            # Like the command for one prompt: for image-to-video, it keeps the VAE that encoded the start picture.
            dtype = self._settings.vae_dtype if "i2v" in args.task else torch.bfloat16
            self._vae = trainer.load_vae(args, self._config, self._device, dtype)
        latent = torch.load(latents, map_location="cpu", weights_only=True)["latent"]
        vars(args).update(_vae=self._vae, save_path=folder)
        video = trainer.decode_latent(latent.unsqueeze(0), args, self._config)
        self._vae.to_device("cpu")
        trainer.clean_memory_on_device(self._device)
        trainer.save_images(video, args)
        return sorted(str(path) for path in Path(folder).rglob("*.png"))

    def _with(self, prompt: Json) -> argparse.Namespace:
        """Return the command's arguments for one prompt.

        Prompt-line options are not used, because `--g` sets the guidance of one expert only.
        """
        args: argparse.Namespace = trainer.apply_overrides(
            self._args,
            {
                "prompt": prompt["text"],
                "negative_prompt": prompt["negative"],
                "video_size_width": prompt["width"],
                "video_size_height": prompt["height"],
                "video_length": prompt["frames"],
                "infer_steps": prompt["steps"],
                "seed": prompt["seed"],
                "guidance_scale": prompt["guidance"]["low"],
                "guidance_scale_high_noise": prompt["guidance"]["high"],
                "flow_shift": prompt["shift"],
                "image_path": prompt["image"],
            },
        )
        args.lazy_loading = False  # missing in d0a1930
        return args

    def _here(self, tensors: list[Any]) -> list[Any]:
        return [tensor.to(self._device) for tensor in tensors]

    def _clean(self) -> None:
        gc.collect()
        trainer.clean_memory_on_device(self._device)


def _is_data(value: object) -> bool:
    """Whether an attribute of a scheduler is a number, text, tensor or list of these: the parts that steps change."""
    match value:
        case list() | tuple():
            return all(_is_data(each) for each in value)
        case _:
            return value is None or isinstance(value, bool | int | float | str | torch.Tensor)
