"""Writes the shrunken models' files. Runs in the trainer's own environment with the harness on PYTHONPATH.

`make_models.py MODELS_DIR HF_HOME` writes random float32 weights at the places and in the formats that the
guide's downloads have, and a small tokenizer in the Hugging Face cache under the repository name that the
trainer asks for.

Every parameter gets noise: the zero-initialised output head would otherwise give zero gradients everywhere.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from musubi_tuner.wan.configs import WAN_CONFIGS
from musubi_tuner.wan.modules.model import WanModel
from musubi_tuner.wan.modules.t5 import umt5_xxl
from musubi_tuner.wan.modules.vae import WanVAE_
from safetensors.torch import save_file
from sitecustomize import UMT5, VAE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

VAE_PATH = "vae/split_files/vae/wan_2.1_vae.safetensors"
T5_PATH = "text_encoders/models_t5_umt5-xxl-enc-bf16.pth"
DIT_PATH = "diffusion_models/split_files/diffusion_models/wan2.2_{task}_{expert}_noise_14B_fp16.safetensors"
TOKENIZER_REPO = "Wan-AI/Wan2.1-T2V-14B"
TOKENIZER_FOLDER = "google/umt5-xxl"


def noise(module: torch.nn.Module, *, scale: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """State dict of `module` with every tensor drawn from N(0, scale); norms are drawn around one."""
    state = {}
    for name, tensor in module.state_dict().items():
        value = torch.randn(tensor.shape, generator=generator) * scale
        if tensor.ndim == 1 and "norm" in name and name.endswith(("weight", "gamma")):
            value = value + 1
        state[name] = value.contiguous()
    return state


def dit(task: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    config = WAN_CONFIGS[task]
    with init_empty_weights():
        # The arguments that load_wan_model passes (wan/modules/model.py), from the same configuration.
        model = WanModel(
            model_type="i2v" if config.i2v else "t2v",
            dim=config.dim,
            eps=config.eps,
            ffn_dim=config.ffn_dim,
            freq_dim=config.freq_dim,
            in_dim=config.in_dim,
            num_heads=config.num_heads,
            num_layers=config.num_layers,
            out_dim=config.out_dim,
            text_len=config.text_len,
            model_version="2.2",
        )
    return noise(model, scale=0.05, generator=generator)


def write(path: Path, state: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)


def write_tokenizer(hf_home: Path) -> None:
    """One token per byte, T5's special tokens first, laid out as huggingface_hub lays out a download."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(["<pad>", "</s>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])

    revision = "0" * 40
    repo = hf_home / "hub" / ("models--" + TOKENIZER_REPO.replace("/", "--"))
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(revision, encoding="utf-8")
    folder = repo / "snapshots" / revision / TOKENIZER_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "T5TokenizerFast", "extra_ids": 0, "model_max_length": 512, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path)
    parser.add_argument("hf_home", type=Path)
    args = parser.parse_args()

    generator = torch.Generator().manual_seed(5)
    for task in ("t2v", "i2v"):
        for expert in ("high", "low"):
            write(args.models / DIT_PATH.format(task=task, expert=expert), dit(f"{task}-A14B", generator))
    with init_empty_weights():
        vae = WanVAE_(
            z_dim=16,
            dim_mult=[1, 2, 4, 4],
            num_res_blocks=2,
            attn_scales=[],
            temperal_downsample=[False, True, True],
            **VAE,
        )
        t5 = umt5_xxl(encoder_only=True, return_tokenizer=False)
    assert t5.token_embedding.num_embeddings == UMT5["vocab_size"], "the harness is not on PYTHONPATH"
    write(args.models / VAE_PATH, noise(vae, scale=0.1, generator=generator))
    write(args.models / T5_PATH, noise(t5, scale=0.05, generator=generator))
    write_tokenizer(args.hf_home)


if __name__ == "__main__":
    main()
