"""Make the miniature checkpoint: the released layout, a trained VAE, a random text encoder and DiT.

Seeded, in stages; the VAE's training (make_tiny_vae.py) goes on where it was stopped, the rest takes seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from make_tiny_vae import make_vae
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from longcat_tune.data.demo import random_scene
from longcat_tune.model.dit import LongCatVideoTransformer

SEED = 20260502
CAPTIONS = 20_000
TEXT_WIDTH = 64
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
DIT_SHARDS = 2
DIT_CONFIG = {
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 192,
    "depth": 4,
    "num_heads": 3,
    "caption_channels": TEXT_WIDTH,
    "mlp_ratio": 4,
    "adaln_tembed_dim": 128,
    "frequency_embedding_size": 256,
    "patch_size": [1, 2, 2],
    "text_tokens_zero_pad": True,
}
RUN_TIME_CONFIG = {
    "enable_flashattn2": False,
    "enable_bsa": False,
    "bsa_params": {"sparsity": 0.9375, "chunk_3d_shape_q": [4, 4, 4], "chunk_3d_shape_k": [4, 4, 4]},
    "cp_split_hw": None,
}


# --- tokenizer -------------------------------------------------------------------------------------------


def demo_captions(count: int) -> Iterator[str]:
    """Captions of random scenes, as the tokenizer's corpus."""
    rng = np.random.default_rng(SEED)
    for _ in range(count):
        yield random_scene(rng).caption


def make_tokenizer(folder: Path) -> int:
    """Write a Unigram tokenizer: the captions' words, then letters, then bytes, so that any text has tokens.

    Returns:
        The size of the vocabulary.
    """
    counts = Counter(word for caption in demo_captions(CAPTIONS) for word in caption.split())
    total = counts.total()
    words = [(f"\u2581{word}", math.log(count / total)) for word, count in sorted(counts.items())]
    # Far less likely than any word, so that a known word is never spelt.
    letters = [(letter, -20.0) for letter in ["\u2581", *map(chr, range(ord("!"), ord("~") + 1))]]
    data_bytes = [(f"<0x{value:02X}>", -30.0) for value in range(256)]
    vocabulary = [(PAD, 0.0), (EOS, 0.0), (UNKNOWN, 0.0), *words, *letters, *data_bytes]

    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, model_max_length=512
    )
    wrapped.save_pretrained(folder)
    # transformers 5 writes a class that version 4 does not know; this one loads in both.
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    write_json(config_path, {**config, "tokenizer_class": "PreTrainedTokenizerFast"})
    return len(vocabulary)


# --- text encoder ----------------------------------------------------------------------------------------


def make_text_encoder(folder: Path, vocabulary: int) -> None:
    """Write a random UMT5 encoder: word vectors of unit spread that two shallow layers mix a little."""
    torch.manual_seed(SEED)
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=TEXT_WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    UMT5EncoderModel(config).to(torch.bfloat16).save_pretrained(folder)


# --- transformer -----------------------------------------------------------------------------------------


@torch.no_grad()
def make_dit(folder: Path) -> None:
    """Write a random transformer of healthy scale, in two shards with an index like the release."""
    torch.manual_seed(SEED)
    model = LongCatVideoTransformer(**{**DIT_CONFIG, "patch_size": tuple(DIT_CONFIG["patch_size"])})
    for part in model.modules():
        if isinstance(part, nn.Linear | nn.Conv3d):
            nn.init.normal_(part.weight, std=part.weight[0].numel() ** -0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for block in model.blocks:
        # Shift, scale and gate depend a little on time; gates start open by a third.
        block.adaLN_modulation[1].weight *= 0.2
        for gate in (2, 5):
            block.adaLN_modulation[1].bias.view(6, -1)[gate] = 0.3
        look_away_from_pads(block.cross_attn.q_linear, block.cross_attn.kv_linear)
    model.final_layer.adaLN_modulation[1].weight *= 0.2
    save_shards(folder, {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()})
    write_json(folder / "config.json", {**DIT_CONFIG, **RUN_TIME_CONFIG})


def look_away_from_pads(q_linear: nn.Linear, kv_linear: nn.Linear) -> None:
    """Give queries a common part that points away from the key of a zeroed pad token.

    A caption has a dozen tokens and 500 pads, all attended to; without this the text of a random model would
    count for two per cent. A pad's key is its bias normalised, however small, so real keys hardly change.
    """
    q_linear.bias.fill_(1.0)
    kv_linear.bias.view(2, -1)[0] = -0.1


def save_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Split a state dict into shards of about equal size, in order, with the release's file names."""
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(tensor.nbytes for tensor in tensors.values())
    shards: list[dict[str, Tensor]] = [{} for _ in range(DIT_SHARDS)]
    seen = 0
    for name, tensor in tensors.items():
        shards[seen * DIT_SHARDS // total][name] = tensor.contiguous()
        seen += tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"diffusion_pytorch_model-{number:05d}-of-{DIT_SHARDS:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "diffusion_pytorch_model.safetensors.index.json", index)


# --- the folder ------------------------------------------------------------------------------------------


def write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("longcat_tune/assets/tiny"))
    parser.add_argument(
        "--work-dir", type=Path, default=Path("build/tiny"), help="where training state is kept"
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    for name in ("tokenizer", "text_encoder", "scheduler", "vae", "dit"):
        shutil.rmtree(options.out / name, ignore_errors=True)
    make_text_encoder(options.out / "text_encoder", make_tokenizer(options.out / "tokenizer"))
    FlowMatchEulerDiscreteScheduler(shift=12.0).save_pretrained(options.out / "scheduler")
    make_dit(options.out / "dit")
    make_vae(options.out / "vae", options.work_dir)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
