"""Train the miniature's video VAE from nothing: single frames first, then clips; seeded and resumable.

Used by make_tiny_checkpoint.py; run alone it prints how well a finished VAE reconstructs unseen clips.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import time
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm
from tiny_training import blend, load_state, save_state
from tiny_world import World
from torch import Tensor, nn

from longcat_tune.data.demo import random_scene
from longcat_tune.data.demo_drawing import render

VAE_CONFIG = {
    "base_dim": 16,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
SEED = 20260501
HELD_OUT_SEED = 7_000_000
BETAS = (0.9, 0.95)
MAX_GRAD_NORM = 0.5
SAVE_EVERY = 100
SMALLEST_ERROR = 1e-4
"""Mean squared error below which a clip counts as reconstructed (46 dB)."""
POSTERIOR_STD = 0.01
"""Width of the posterior in units of a channel's spread, so that a sample decodes like the mode."""

STATISTICS_CLIPS = 160
MEASURED_SIZES = (
    (64, 64, 9, 64),
    (64, 64, 17, 32),
    (128, 64, 9, 32),
)
"""Width, height, frames and clips of the quality table."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stretch of training.

    Attributes:
        name: also the file of its state.
        steps: optimiser steps.
        horizon: steps of the cosine along which the learning rate falls; a stage may end before it.
        learning_rate: at its highest.
        shapes: (clips, frames) of the batches, taken in turn.
        plain: share of clips that are like demo clips.
        logarithmic: lower the mean of the clips' log errors, which is their PSNR, not their mean error:
            textured clips, whose errors are ten times those of plain ones, then no longer decide alone.
        half: activations in bfloat16, which takes two thirds of the time.
    """

    name: str
    steps: int
    horizon: int
    learning_rate: float
    shapes: tuple[tuple[int, int], ...]
    plain: float
    logarithmic: bool
    half: bool = False


STAGES = (
    Stage("frames", 1400, 1800, 1e-3, ((16, 1),), 0.0, logarithmic=False),
    # The first frame of every clip is coded alone: clips go on teaching single frames.
    Stage("clips", 1000, 1000, 6e-4, ((4, 5), (3, 9)), 0.0, logarithmic=False),
    Stage("plain_clips", 850, 850, 6e-4, ((4, 5), (3, 9)), 0.7, logarithmic=True),
    Stage("polish", 400, 400, 3e-4, ((4, 5), (3, 9)), 0.7, logarithmic=True),
    Stage("sharpen", 2200, 2200, 5e-4, ((4, 5), (3, 9)), 0.5, logarithmic=True, half=True),
    Stage("outlines", 3800, 3800, 6e-4, ((4, 5), (3, 9)), 0.67, logarithmic=True, half=True),
    Stage("soft_edges", 3400, 3400, 3e-4, ((4, 5), (3, 9)), 0.67, logarithmic=True, half=True),
    Stage("notches", 5000, 5000, 4e-4, ((4, 5), (3, 9)), 0.75, logarithmic=True, half=True),
)


# --- training --------------------------------------------------------------------------------------------


def reconstruct(vae: AutoencoderKLWan, pixels_BCFHW: Tensor) -> Tensor:
    """Encode to the mode and decode, without the clamp of `vae.decode`.

    The clamp has no gradient outside [-1, 1]; trained through it, flat colours near the ends never arrive and
    everything stalls at 15 to 19 dB. The loop is diffusers' own: one latent frame at a time, features cached.
    """
    latents_BCTHW = vae.post_quant_conv(vae.encode(pixels_BCFHW).latent_dist.mode())
    cached: list[Tensor | None] = [None] * sum(isinstance(part, nn.Conv3d) for part in vae.decoder.modules())
    chunks = [
        vae.decoder(frame_BCTHW, feat_cache=cached, feat_idx=[0], first_chunk=index == 0)
        for index, frame_BCTHW in enumerate(latents_BCTHW.split(1, dim=2))
    ]
    return torch.cat(chunks, dim=2)


def _last_tap(conv: nn.Conv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """What a causal convolution does to a single frame, whose past is padding, in a third of the time."""
    padding = conv.kernel_size[-1] // 2
    return F.conv2d(x[:, :, 0], conv.weight[:, :, -1], conv.bias, padding=padding)[:, :, None]


def use_last_tap(vae: AutoencoderKLWan, enabled: bool) -> None:
    """Switch every 3-D convolution between its own forward and the one for single frames."""
    for part in vae.modules():
        if isinstance(part, nn.Conv3d) and enabled:
            part.forward = types.MethodType(_last_tap, part)
        elif isinstance(part, nn.Conv3d):
            vars(part).pop("forward", None)


def norm_quickly(norm: WanRMS_norm, x: Tensor) -> Tensor:
    """WanRMS_norm without torch's slow norm over a strided axis: a quarter less time for a whole step."""
    squares = (x * x).sum(1, keepdim=True, dtype=torch.float32)
    return x * (squares + 1e-12).rsqrt().mul(norm.scale).to(x.dtype) * norm.gamma.to(x.dtype) + norm.bias


def quicken(vae: AutoencoderKLWan) -> None:
    """Give every norm its quick forward."""
    for part in vae.modules():
        if isinstance(part, WanRMS_norm):
            part.forward = types.MethodType(norm_quickly, part)


def inflate(vae: AutoencoderKLWan) -> None:
    """Turn a model of frames into one of still clips: past taps near zero, time strides near identity."""
    with torch.no_grad():
        for name, part in vae.named_modules():
            if not isinstance(part, nn.Conv3d) or part.kernel_size[0] == 1:
                continue
            if not name.endswith("time_conv"):
                part.weight[:, :, :-1] *= 0.1
                continue
            part.weight *= 0.1
            part.bias.zero_()
            channels = part.in_channels
            for start in range(0, part.out_channels, channels):
                part.weight[start : start + channels, :, -1, 0, 0] += torch.eye(channels)


def train(stage: Stage, vae: AutoencoderKLWan, work_dir: Path, world: World) -> AutoencoderKLWan:
    """Run what is left of a stage and return the averaged weights' model."""
    state_path = work_dir / f"vae_{stage.name}.pt"
    average = copy.deepcopy(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=stage.learning_rate, betas=BETAS, weight_decay=0)
    first = load_state(state_path, vae=vae, average=average, optimizer=optimizer)
    quicken(vae)
    use_last_tap(vae, all(frames == 1 for _, frames in stage.shapes))
    started, recent = time.monotonic(), []
    for step in range(first, stage.steps):
        rng = np.random.default_rng((SEED, STAGES.index(stage), step))
        pixels_BCFHW = world.batch(rng, *stage.shapes[step % len(stage.shapes)], plain=stage.plain)
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * _rate(step, stage.horizon)
        with torch.autocast("cpu", torch.bfloat16, enabled=stage.half):
            rebuilt_BCFHW = reconstruct(vae, pixels_BCFHW)
        error_B = (rebuilt_BCFHW.float() - pixels_BCFHW).square().mean(dim=(1, 2, 3, 4))
        loss = (error_B + SMALLEST_ERROR).log().mean() if stage.logarithmic else error_B.mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        blend(average, vae, step)
        recent.append(10 * math.log10(4) - 10 * error_B.detach().log10().mean().item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == stage.steps:
            save_state(state_path, step + 1, vae=vae, average=average, optimizer=optimizer)
            minutes = (time.monotonic() - started) / 60
            print(
                f"{stage.name} {step + 1}/{stage.steps}: {np.mean(recent):.2f} dB, {minutes:.1f} min",
                flush=True,
            )
            recent.clear()
    use_last_tap(vae, enabled=False)
    return average


def _rate(step: int, horizon: int) -> float:
    """Share of the learning rate: 50 steps of warm-up, then a cosine down to 0.05."""
    return min(1.0, (step + 1) / 50) * (0.525 + 0.475 * math.cos(math.pi * step / horizon))


def train_all(work_dir: Path, start: Path | None = None) -> AutoencoderKLWan:
    """All stages, going on where the files in work_dir end; from a finished VAE only the last stage."""
    work_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    world = World(SEED)
    if start is not None:
        vae = AutoencoderKLWan.from_pretrained(start, torch_dtype=torch.float32)
        return train(STAGES[-1], vae, work_dir, world)
    vae = AutoencoderKLWan(**VAE_CONFIG)
    vae = train(STAGES[0], vae, work_dir, world)
    inflate(vae)
    for stage in STAGES[1:]:
        vae = train(stage, vae, work_dir, world)
    return vae


# --- statistics and quality ------------------------------------------------------------------------------


def held_out_clips(count: int, *, width: int, height: int, frames: int) -> Iterator[Tensor]:
    """Scenes no training step has drawn, each [1, 3, frames, height, width]."""
    for index in range(count):
        scene = random_scene(np.random.default_rng((HELD_OUT_SEED, width, height, frames, index)))
        frames_FHW3 = torch.from_numpy(render(scene, width, height, frames))
        yield (frames_FHW3.permute(3, 0, 1, 2).float() / 127.5 - 1)[None]


@torch.inference_mode()
def measure_latents(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    """Mean and spread of every latent channel over random scenes."""
    clips = itertools.chain(
        held_out_clips(STATISTICS_CLIPS, width=64, height=64, frames=9),
        held_out_clips(STATISTICS_CLIPS // 2, width=128, height=64, frames=17),
    )
    latents_CN = torch.cat([vae.encode(clip).latent_dist.mode()[0].flatten(1) for clip in clips], dim=1)
    return latents_CN.mean(dim=1), latents_CN.std(dim=1)


@torch.no_grad()
def narrow_posterior(vae: AutoencoderKLWan, spread_C: Tensor) -> None:
    """Give the posterior a constant, small width: training used its mode alone and left the width random."""
    channels = len(spread_C)
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = 2 * torch.log(POSTERIOR_STD * spread_C)


@torch.inference_mode()
def quality(vae: AutoencoderKLWan, clips: Iterable[Tensor]) -> list[float]:
    """PSNR in dB of every clip's reconstruction from the mode."""
    errors = (F.mse_loss(vae.decode(vae.encode(clip).latent_dist.mode()).sample, clip) for clip in clips)
    return [10 * math.log10(4 / error.item()) for error in errors]


def make_vae(folder: Path, work_dir: Path, start: Path | None = None) -> None:
    """Train what is left to train, measure, and write the VAE in half precision."""
    vae = train_all(work_dir, start).eval()
    mean_C, spread_C = measure_latents(vae)
    narrow_posterior(vae, spread_C)
    vae.register_to_config(latents_mean=mean_C.tolist(), latents_std=spread_C.tolist())
    # float16, not bfloat16: weights are small, and its finer steps keep the reconstruction.
    vae.half().save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, default=Path("longcat_tune/assets/tiny/vae"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vae = AutoencoderKLWan.from_pretrained(options.vae, torch_dtype=torch.float32)
    for width, height, frames, count in MEASURED_SIZES:
        decibels = quality(vae, held_out_clips(count, width=width, height=height, frames=frames))
        mean, worst = np.mean(decibels), min(decibels)
        print(
            f"{width}x{height}, {frames} frames, {count} clips: {mean:.1f} dB, worst {worst:.1f}", flush=True
        )


if __name__ == "__main__":
    main()
