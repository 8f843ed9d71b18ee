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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor, nn

from longcat_tune.data.demo import COLOURS, random_scene, render

VAE_CONFIG = {
    "base_dim": 16,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
CROP = 64
SEED = 20260501
HELD_OUT_SEED = 7_000_000
TEXTURES, TEXTURE_SIZE = 64, 256
BETAS = (0.9, 0.95)
MAX_GRAD_NORM = 0.5
EMA_DECAY = 0.999
SAVE_EVERY = 100
POSTERIOR_STD = 0.01
"""Width of the posterior in units of a channel's spread, so that a sample decodes like the mode."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stretch of training.

    Attributes:
        name: also the file of its state.
        steps: optimiser steps.
        learning_rate: at its highest; it warms up and ends at a twentieth along a cosine.
        shapes: (clips, frames) of the batches, taken in turn.
    """

    name: str
    steps: int
    learning_rate: float
    shapes: tuple[tuple[int, int], ...]


STATISTICS_CLIPS = 256
MEASURED_SIZES = (
    (64, 64, 9, 64),
    (64, 64, 17, 32),
    (128, 64, 9, 32),
    (256, 192, 9, 8),
    (256, 192, 17, 8),
    (512, 512, 5, 2),
    (832, 512, 9, 2),
)
"""Width, height, frames and clips of the quality table."""

STAGES = (
    Stage("frames", 1800, 1e-3, ((16, 1),)),
    Stage("clips", 2400, 6e-4, ((4, 9), (6, 5), (16, 1), (4, 9))),
)


# --- the synthetic world ---------------------------------------------------------------------------------


def dead_leaves(rng: np.random.Generator) -> NDArray[np.float32]:
    """A picture of overlapping discs and boxes of all sizes over soft noise, [3, S, S] in [-1, 1].

    Their edges and spectra are much like those of photographs (Lee, Mumford and Huang 2001).
    """
    side = TEXTURE_SIZE
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    picture = np.broadcast_to(rng.uniform(-1, 1, (3, 1, 1)), (3, side, side)).astype(np.float32)
    for _ in range(260):
        radius = 4 / rng.uniform(0.04, 1.0) ** 0.9
        x, y, turn = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(0, math.pi)
        across = (columns - x) * math.cos(turn) + (rows - y) * math.sin(turn)
        along = (rows - y) * math.cos(turn) - (columns - x) * math.sin(turn)
        box = rng.random() < 0.4
        distance = np.maximum(abs(across), abs(along) * 2) if box else np.hypot(across, along)
        cover = np.clip(0.5 + radius - distance, 0, 1)
        colour = np.clip(rng.uniform(-1, 1) + rng.normal(0, 0.35, (3, 1, 1)), -1, 1)
        shade = colour + rng.normal(0, 0.25) * across / radius
        picture = picture + cover * (shade.astype(np.float32) - picture)
    for size in (8, 32, 128):
        noise = torch.from_numpy(rng.normal(0, 0.06, (1, 1, size, size)).astype(np.float32))
        picture = picture + F.interpolate(noise, (side, side), mode="bicubic")[0].numpy()
    return np.clip(picture, -1, 1)


class World:
    """Draws training clips; nothing but the generator it is given decides which.

    Attributes:
        textures_N3SS: pictures that layers are cut from.
    """

    def __init__(self, seed: int) -> None:
        self.textures_N3SS = torch.from_numpy(
            np.stack([dead_leaves(np.random.default_rng((seed, index))) for index in range(TEXTURES)])
        )

    def batch(self, rng: np.random.Generator, clips: int, frames: int) -> Tensor:
        """Clips of two layers, one seen through a moving shape, [clips, 3, frames, CROP, CROP] in [-1, 1]."""
        pixels = []
        for _ in range(clips):
            cover_1FHW = torch.from_numpy(moving_mask(rng, frames))[None]
            front, back = self.layer(rng, frames), self.layer(rng, frames)
            pixels.append(back + cover_1FHW * (front - back))
        return torch.stack(pixels)

    def layer(self, rng: np.random.Generator, frames: int) -> Tensor:
        """A flat colour, a gradient or a drifting texture, broadcastable to [3, frames, CROP, CROP]."""
        kind = rng.random()
        if kind < 0.45:
            palette = np.array(list(COLOURS.values()), dtype=np.float32)
            colour = rng.choice(palette) / 127.5 - 1
            return torch.from_numpy(np.clip(colour + rng.normal(0, 0.02), -1, 1).astype(np.float32)).view(
                3, 1, 1, 1
            )
        if kind < 0.6:
            return torch.from_numpy(rng.uniform(-1, 1, (3, 1, 1, 1)).astype(np.float32))
        if kind < 0.7:
            corners = torch.from_numpy(rng.uniform(-1, 1, (3, 2, 2)).astype(np.float32))[None]
            return F.interpolate(corners, (CROP, CROP), mode="bilinear", align_corners=True)[0][:, None]
        return self.drifting_texture(rng, frames)

    def drifting_texture(self, rng: np.random.Generator, frames: int) -> Tensor:
        """A window that pans, turns and zooms over a texture, [3, frames, CROP, CROP]."""
        moment_F = torch.arange(frames, dtype=torch.float32)
        # In the sampling grid 2 is the texture's side: one texel per pixel is zoom CROP / TEXTURE_SIZE.
        zoom_F = rng.uniform(0.2, 1.2) * CROP / TEXTURE_SIZE * (1 + rng.normal(0, 0.01) * moment_F)
        angle_F = rng.uniform(0, 6.3) + rng.normal(0, 0.02) * moment_F
        speed_x, speed_y = rng.normal(0, 2.0, 2) * 2 / TEXTURE_SIZE
        shift_x, shift_y = rng.uniform(-0.6, 0.6, 2)
        theta_F23 = torch.stack(
            [
                zoom_F * angle_F.cos(), -zoom_F * angle_F.sin(), shift_x + speed_x * moment_F,
                zoom_F * angle_F.sin(), zoom_F * angle_F.cos(), shift_y + speed_y * moment_F,
            ],
            dim=1,
        ).view(frames, 2, 3).float()  # fmt: skip
        grid = F.affine_grid(theta_F23, [frames, 3, CROP, CROP], align_corners=False)
        picture = self.textures_N3SS[rng.integers(TEXTURES)].expand(frames, -1, -1, -1)
        return F.grid_sample(picture, grid, padding_mode="reflection", align_corners=False).transpose(0, 1)


def moving_mask(rng: np.random.Generator, frames: int) -> NDArray[np.float32]:
    """Coverage of a random scene's shape, through a window of a frame of any size, [frames, CROP, CROP]."""
    scene = random_scene(rng)
    side = int(rng.choice([64, 64, 64, 96, 128, 256, 512]))
    slower = rng.uniform(0.1, 1.0) * min(1.0, 96 / side)
    black_white = replace(scene, colour="white", background="black", travel=scene.travel * slower)
    picture = render(black_white, side, side, frames)[..., 0].astype(np.float32)
    low, high = COLOURS["black"][0], COLOURS["white"][0]
    cover = (picture - low) / (high - low)
    radius = scene.size * side
    turn = rng.uniform(0, 2 * math.pi)
    # Look at the rim: inside a large shape there is nothing to learn.
    left, top = (
        int(np.clip(radius + share * (side - 2 * radius) + radius * 0.8 * toward - CROP / 2, 0, side - CROP))
        for share, toward in ((scene.x, math.cos(turn)), (scene.y, math.sin(turn)))
    )
    return cover[:, top : top + CROP, left : left + CROP]


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
    first = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        vae.load_state_dict(state["vae"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    use_last_tap(vae, all(frames == 1 for _, frames in stage.shapes))
    started, recent = time.monotonic(), []
    for step in range(first, stage.steps):
        rng = np.random.default_rng((SEED, STAGES.index(stage), step))
        pixels_BCFHW = world.batch(rng, *stage.shapes[step % len(stage.shapes)])
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * _rate(step, stage.steps)
        loss = F.mse_loss(reconstruct(vae, pixels_BCFHW), pixels_BCFHW)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        _average(average, vae, step)
        recent.append(loss.item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == stage.steps:
            _save(state_path, step + 1, vae=vae, average=average, optimizer=optimizer)
            minutes = (time.monotonic() - started) / 60
            decibels = 10 * math.log10(4 / np.mean(recent))
            print(f"{stage.name} {step + 1}/{stage.steps}: {decibels:.2f} dB, {minutes:.1f} min", flush=True)
            recent.clear()
    use_last_tap(vae, enabled=False)
    return average


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate: 50 steps of warm-up, then a cosine down to 0.05."""
    return min(1.0, (step + 1) / 50) * (0.525 + 0.475 * math.cos(math.pi * step / steps))


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, step: int) -> None:
    decay = min(EMA_DECAY, (step + 1) / (step + 10))
    for mean, parameter in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(parameter, 1 - decay)


def _save(
    path: Path, step: int, vae: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    state = {
        "step": step,
        "vae": vae.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def train_all(work_dir: Path) -> AutoencoderKLWan:
    """All stages, going on where the files in work_dir end."""
    work_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    world = World(SEED)
    vae = AutoencoderKLWan(**VAE_CONFIG)
    vae = train(STAGES[0], vae, work_dir, world)
    inflate(vae)
    return train(STAGES[1], vae, work_dir, world)


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


def make_vae(folder: Path, work_dir: Path) -> None:
    """Train what is left to train, measure, and write the VAE in half precision."""
    vae = train_all(work_dir).eval()
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
