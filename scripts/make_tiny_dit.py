"""Train the miniature's transformer from nothing on clips of the made-up world: seeded, in resumable steps.

Full weights, by the project's own noising, loss and schedule: text-to-video, image-to-video and continuation
mixed. Used by make_tiny_checkpoint.py.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from make_tiny_text import FIGURES, STAND_IN, of_figure
from make_tiny_vae import quicken
from safetensors.torch import save_file
from tiny_training import blend, load_state, save_state
from torch import Tensor, nn

from longcat_tune.data.demo import Outline, Scene, random_scene
from longcat_tune.data.demo_drawing import render
from longcat_tune.flow.density import SigmaDensity
from longcat_tune.flow.noising import standard_noise
from longcat_tune.model.attention import sdpa_attention
from longcat_tune.model.block_sparse.plan import BlockSparsePlan
from longcat_tune.model.block_sparse.selection import SelectionRule
from longcat_tune.model.block_sparse.settings import BlockSparseSettings
from longcat_tune.model.compilation import compiled
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.text_encoder import load_text_encoder
from longcat_tune.model.vae import VideoAutoencoder
from longcat_tune.training.step import noise_generator, training_step
from longcat_tune.types import TEXT_TOKENS, Batch

Item = TypeVar("Item")
SEED = 20260502
SHIFT = 12.0
DIT_SHARDS = 2
DIT_CONFIG = {
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 192,
    "depth": 4,
    "num_heads": 3,
    "caption_channels": 64,
    "mlp_ratio": 4,
    "adaln_tembed_dim": 128,
    "frequency_embedding_size": 256,
    "patch_size": [1, 2, 2],
    "text_tokens_zero_pad": True,
}
SPARSITY, CHUNK, LEAST_LATENTS = 0.5, (4, 2, 2), 600
"""Half of the steps attend block-sparsely if a channel of their clips has so many latents: boxes enough."""
RUN_TIME_CONFIG = {
    "enable_flashattn2": False,
    "enable_bsa": False,
    # Of boxes of the released size the miniature's clips have too few to leave any out.
    "bsa_params": {"sparsity": SPARSITY, "chunk_3d_shape_q": CHUNK, "chunk_3d_shape_k": CHUNK},
    "cp_split_hw": None,
}
STEPS = 92_500
LEARNING_RATE, LAST_SHARE, WARM_UP = 1e-3, 0.02, 100
BETAS, WEIGHT_DECAY, MAX_GRAD_NORM = (0.9, 0.98), 0.01, 1.0
ORTHOGONAL_STEPS = 4
"""Of Newton-Schulz in Muon, one less than torch's: a sixth of its time."""
SAVE_EVERY = 250
CAPTION_DROPOUT = 0.1
ENCODED_AT_ONCE, READ_AT_ONCE = 10, 500
"""Clips by the VAE, captions by the text encoder."""
LANGUAGES = (0.5, 0.2, 0.3)
"""How often a caption is the long English one, the short one, the Chinese one."""
NAMED = 2
"""As many clips of the world's shapes come with one of a figure, of other numbers of points and depths."""
FIGURE_SHARE = 0.4
"""Of what a step is trained on."""
DEPTHS = ((0.65, "deep"), (0.85, "notched"), (1.0, "flat"))
"""How far in a figure's notches are, at most, as a share of a regular polygon's; and what that is called."""
LEAST_INNER = {3: 0.3, 4: 0.3, 5: 0.53, 6: 0.3}
"""Points of figures, and how far in their notches are at most: deep ones of five points would be stars."""
POINTS_SHARE = (0.2, 0.2, 0.4, 0.2)
"""How often a figure has each number of points."""
IMAGE_SHARE, CONTINUATION_SHARE = 0.25, 0.15
"""Of the steps: the first frame is given; several are. The others are text-to-video."""


@dataclass(frozen=True, slots=True)
class Size:
    """One size of training clips.

    Attributes:
        width: in pixels.
        height: in pixels.
        frames: in pixels' time.
        clips: how many of the world's shapes are drawn and encoded.
        batch: clips per step.
        share: of the steps.
    """

    width: int
    height: int
    frames: int
    clips: int
    batch: int
    share: float

    @property
    def name(self) -> str:
        """`64x64x9`."""
        return f"{self.width}x{self.height}x{self.frames}"


SIZES = (
    Size(64, 64, 9, 8000, 32, 0.58),
    Size(64, 64, 17, 1000, 20, 0.13),
    Size(128, 64, 9, 800, 16, 0.1),
    Size(128, 64, 17, 300, 10, 0.08),
    Size(64, 64, 33, 160, 12, 0.05),
    Size(128, 64, 33, 100, 6, 0.06),
)


# --- latents and text ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Clip:
    """What is drawn, and what is said of it.

    Attributes:
        scene: names and places.
        outline: of a figure; None: the scene's shape.
    """

    scene: Scene
    outline: Outline | None = None

    @property
    def captions(self) -> tuple[str, ...]:
        """At length, in short and in Chinese; a figure's tell how many points it has, and how deep ones."""
        if self.outline is None:
            return self.scene.captions
        share = self.outline.inner / math.cos(math.pi / self.outline.points)
        depth = next(name for most, name in DEPTHS if share <= most)
        return of_figure(self.scene.captions, depth, self.outline.points)


def clips_of(size: Size) -> Iterator[Clip]:
    """All clips of one size, none of them held out: the world's shapes, then figures."""
    yield from itertools.islice(named(size), size.clips)
    for number in range(size.clips // NAMED):
        rng = np.random.default_rng((SEED, size.width, size.frames, number, 1))
        points = int(rng.choice(list(LEAST_INNER), p=POINTS_SHARE))
        inner = rng.uniform(LEAST_INNER[points], math.cos(math.pi / points))
        yield Clip(random_scene(rng, shape=STAND_IN), Outline(points, inner, FIGURES[points].chinese))


def named(size: Size) -> Iterator[Clip]:
    """Clips of the world's shapes, without end."""
    for number in itertools.count():
        scene = random_scene(np.random.default_rng((SEED, size.width, size.frames, number)))
        if not scene.is_held_out:
            yield Clip(scene)


def batched(drawn: Iterator[Item], count: int) -> Iterator[list[Item]]:
    """So many at a time."""
    while some := list(itertools.islice(drawn, count)):
        yield some


@torch.inference_mode()
def latents_of(size: Size, vae: AutoencoderKLWan, work_dir: Path) -> Tensor:
    """Normalised latents [N, C, T, H, W] of a size's clips, from the cache if they are there."""
    path = work_dir / f"latents_{size.name}.pt"
    if path.exists():
        cached: Tensor = torch.load(path, weights_only=True)
        return cached
    normalize = VideoAutoencoder(vae).normalize
    rows = []
    for some in batched(clips_of(size), ENCODED_AT_ONCE):
        frames = [
            render(one.scene, size.width, size.height, size.frames, outline=one.outline) for one in some
        ]
        pixels_BCFHW = torch.from_numpy(np.stack(frames)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        rows.append(normalize(vae.encode(pixels_BCFHW).latent_dist.mode()).half())
    latents = torch.cat(rows)
    torch.save(latents, path)
    print(f"{size.name}: {len(latents)} clips, spread {latents.float().std():.3f}", flush=True)
    return latents


@torch.inference_mode()
def text_of(checkpoint: Path, captions: Iterable[str]) -> dict[str, Tensor]:
    """Features [L, D] of captions, and of the empty one."""
    encoder = load_text_encoder(
        checkpoint,
        choice="auto",
        caption_channels=int(DIT_CONFIG["caption_channels"]),
        zero_pad=False,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    different = ["", *dict.fromkeys(captions)]
    found = {}
    for some in batched(iter(different), READ_AT_ONCE):
        # The project's own pads every caption to all tokens, which takes minutes here.
        tokens = encoder.tokenizer(some, padding=True, padding_side="right", return_tensors="pt")
        mask_BL = tokens.attention_mask
        hidden_BLD = encoder.module(input_ids=tokens.input_ids, attention_mask=mask_BL).last_hidden_state
        for caption, hidden_LD, mask_L in zip(some, hidden_BLD, mask_BL, strict=True):
            found[caption] = hidden_LD[mask_L.bool()].float()
    return found


# --- model -----------------------------------------------------------------------------------------------


@torch.no_grad()
def new_model() -> LongCatVideoTransformer:
    """A transformer to be trained: its blocks and its prediction start at nothing."""
    torch.manual_seed(SEED)
    config = {**DIT_CONFIG, "patch_size": tuple(DIT_CONFIG["patch_size"])}
    model = LongCatVideoTransformer(**config, attend=float32_attention)
    for part in model.modules():
        if isinstance(part, nn.Linear | nn.Conv3d):
            nn.init.normal_(part.weight, std=part.weight[0].numel() ** -0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for block in model.blocks:
        nn.init.zeros_(block.adaLN_modulation[1].weight)
        nn.init.normal_(block.cross_attn.proj.weight, std=0.02)
        look_away_from_pads(block.cross_attn.q_linear, block.cross_attn.kv_linear)
    nn.init.zeros_(model.final_layer.adaLN_modulation[1].weight)
    nn.init.zeros_(model.final_layer.linear.weight)
    return model


def float32_attention(q_BANd: Tensor, k_BAMd: Tensor, v_BAMd: Tensor, keep: Tensor | None = None) -> Tensor:
    """Torch's, in float32: on a CPU its backward takes more than twice as long in bfloat16."""
    with torch.autocast("cpu", enabled=False):
        out_BANd = sdpa_attention(q_BANd.float(), k_BAMd.float(), v_BAMd.float(), keep)
    return out_BANd.to(q_BANd.dtype)


def look_away_from_pads(q_linear: nn.Linear, kv_linear: nn.Linear) -> None:
    """Give queries a common part that points away from the key of a zeroed pad token.

    A caption has a dozen tokens and 500 pads, all attended to; without this the text would count for two per
    cent at first. A pad's key is its bias normalised, however small, so real keys hardly change.
    """
    q_linear.bias.fill_(1.0)
    kv_linear.bias.view(2, -1)[0] = -0.1


# --- training --------------------------------------------------------------------------------------------


def batch_of(
    step: int, latents: dict[str, Tensor], clips: dict[str, list[Clip]], text: dict[str, Tensor]
) -> Batch:
    """What one step trains on; the step's number alone decides."""
    rng = np.random.default_rng((SEED, step))
    size = SIZES[rng.choice(len(SIZES), p=[one.share for one in SIZES])]
    rows = np.where(
        rng.random(size.batch) < FIGURE_SHARE,
        rng.integers(size.clips, len(latents[size.name]), size=size.batch),
        rng.integers(size.clips, size=size.batch),
    )
    latents_BCTHW = latents[size.name][torch.from_numpy(rows)].float()
    frames = latents_BCTHW.shape[2]
    task = rng.random()
    cond = 0
    if task < IMAGE_SHARE:
        cond = 1
    elif task < IMAGE_SHARE + CONTINUATION_SHARE:
        cond = int(rng.integers(1, frames - 1, endpoint=True))
    features = []
    for row in rows:
        caption = clips[size.name][row].captions[rng.choice(3, p=LANGUAGES)]
        features.append(text["" if rng.random() < CAPTION_DROPOUT else caption])
    text_BLD = torch.stack([F.pad(one, (0, 0, 0, TEXT_TOKENS - len(one))) for one in features])
    lengths_B1 = torch.tensor([[len(one)] for one in features])
    mask_BL = (torch.arange(TEXT_TOKENS) < lengths_B1).long()
    return Batch(latents_BCTHW, text_BLD, mask_BL, cond, tuple(map(str, rows)))


def train_dit(checkpoint: Path, work_dir: Path) -> LongCatVideoTransformer:
    """Train what is left to train and return the averaged weights' model.

    Args:
        checkpoint: holds the finished VAE, tokenizer and text encoder.
        work_dir: of latents and of the state.
    """
    vae = AutoencoderKLWan.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32)
    quicken(vae)
    latents = {size.name: latents_of(size, vae, work_dir) for size in SIZES}
    clips = {size.name: list(clips_of(size)) for size in SIZES}
    text = text_of(checkpoint, (said for some in clips.values() for one in some for said in one.captions))
    model = new_model()
    average = copy.deepcopy(model)
    model.elementwise = compiled()
    muon, adamw = optimizers(model)
    state_path = work_dir / "dit.pt"
    first = load_state(state_path, model=model, average=average, muon=muon, adamw=adamw)
    density = SigmaDensity(kind="uniform", shift=SHIFT)
    sparse = BlockSparsePlan(
        BlockSparseSettings(CHUNK, SelectionRule(SPARSITY)),
        sdpa_attention,
        min_pixels=0,
        find_fault=lambda: None,
    )
    started, recent = time.monotonic(), []
    for step in range(first, STEPS):
        batch = batch_of(step, latents, clips, text)
        generator = noise_generator(SEED, step=step, micro_batch=0)
        sigma_B = density.sample(len(batch.latents_BCTHW), generator)
        noise_BCTHW = standard_noise(tuple(batch.latents_BCTHW.shape), generator)
        for group in (*muon.param_groups, *adamw.param_groups):
            group["lr"] = LEARNING_RATE * rate(step)
        has_boxes = batch.latents_BCTHW[0, 0].numel() >= LEAST_LATENTS
        model.plan_attention = sparse if has_boxes and step % 2 else None
        with torch.autocast("cpu", torch.bfloat16):
            output = training_step(model, batch, sigma_B=sigma_B, noise_BCTHW=noise_BCTHW)
        loss = output.loss_B.mean()
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        muon.step()
        adamw.step()
        blend(average, model, step)
        recent.append(loss.item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == STEPS:
            save_state(state_path, step + 1, model=model, average=average, muon=muon, adamw=adamw)
            minutes = (time.monotonic() - started) / 60
            print(f"dit {step + 1}/{STEPS}: loss {np.mean(recent):.4f}, {minutes:.1f} min", flush=True)
            recent.clear()
    return average


def optimizers(model: LongCatVideoTransformer) -> tuple[torch.optim.Muon, torch.optim.AdamW]:
    """Muon for the matrices of the blocks, which learn in fewer steps with it, AdamW for all else."""
    matrices = {
        id(weight): weight
        for name, weight in model.blocks.named_parameters()
        if weight.ndim == 2 and "adaLN" not in name
    }
    others = [weight for weight in model.parameters() if id(weight) not in matrices]
    muon = torch.optim.Muon(
        matrices.values(),
        LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        ns_steps=ORTHOGONAL_STEPS,
        adjust_lr_fn="match_rms_adamw",
    )
    return muon, torch.optim.AdamW(others, LEARNING_RATE, BETAS, weight_decay=WEIGHT_DECAY)


def rate(step: int) -> float:
    """Share of the learning rate: warm-up, then a cosine down to LAST_SHARE."""
    fall = LAST_SHARE + (1 - LAST_SHARE) * (1 + math.cos(math.pi * step / STEPS)) / 2
    return min(1.0, (step + 1) / WARM_UP) * fall


# --- the folder ------------------------------------------------------------------------------------------


def save_dit(folder: Path, model: LongCatVideoTransformer) -> None:
    """Write weights in bfloat16, in shards with the release's file names, and the config."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
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
    write_json(folder / "config.json", {**DIT_CONFIG, **RUN_TIME_CONFIG})


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write a config as the release does."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
