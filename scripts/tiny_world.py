"""Training clips for the miniature's VAE: shapes as in longcat_tune.data.demo, over more than plain colours.

Textures and odd colours are there so that real photographs do not fall apart; no photograph is used.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from longcat_tune.data.demo import ALL_COLOURS, ALL_MOTIONS, ALL_SHAPES, COLOURS, random_scene
from longcat_tune.data.demo_drawing import render

CROP = 64
"""Side of a training clip in pixels."""
TEXTURES, TEXTURE_SIZE = 64, 256


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

    def batch(self, rng: np.random.Generator, clips: int, frames: int, *, plain: float) -> Tensor:
        """Clips of two layers, one seen through a moving shape.

        Args:
            rng: decides everything.
            clips: how many.
            frames: of each.
            plain: share of clips in two flat colours at full speed, as demo clips are.

        Returns:
            [clips, 3, frames, CROP, CROP] in [-1, 1].
        """
        pixels = []
        for index in range(clips):
            is_plain = index < round(plain * clips)
            cover_1FHW = torch.from_numpy(moving_mask(rng, frames, slow_down=not is_plain))[None]
            if is_plain:
                front, back = palette(rng, 2)
            else:
                front, back = self.layer(rng, frames), self.layer(rng, frames)
            pixels.append((back + cover_1FHW * (front - back)).expand(3, frames, CROP, CROP))
        return torch.stack(pixels)

    def layer(self, rng: np.random.Generator, frames: int) -> Tensor:
        """A flat colour, a gradient or a drifting texture, broadcastable to [3, frames, CROP, CROP]."""
        kind = rng.random()
        if kind < 0.25:
            [colour] = palette(rng, 1)
            return (colour + rng.normal(0, 0.02)).clamp(-1, 1)
        if kind < 0.4:
            return torch.from_numpy(rng.uniform(-1, 1, (3, 1, 1, 1)).astype(np.float32))
        if kind < 0.45:
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


def palette(rng: np.random.Generator, count: int) -> list[Tensor]:
    """Different colours, each [3, 1, 1, 1]: mostly those that have names."""
    if rng.random() < 0.25:
        return [torch.from_numpy(rng.uniform(-1, 1, (3, 1, 1, 1)).astype(np.float32)) for _ in range(count)]
    names = rng.choice(list(ALL_COLOURS), size=count, replace=False)
    return [torch.tensor(ALL_COLOURS[name].rgb).view(3, 1, 1, 1) / 127.5 - 1 for name in names]


def moving_mask(rng: np.random.Generator, frames: int, *, slow_down: bool) -> NDArray[np.float32]:
    """Coverage of a random scene's shape, through a window of a frame of any size, [frames, CROP, CROP]."""
    # A codec knows every outline at every angle, whatever the transformer will be shown.
    shape, motion = str(rng.choice(list(ALL_SHAPES))), str(rng.choice(list(ALL_MOTIONS)))
    scene = random_scene(rng, shape=shape, motion=motion)
    if rng.random() < 0.5:
        scene = replace(scene, angle=rng.uniform(0, 2 * math.pi))
    # At full speed a shape crosses large frames too fast for anything to be learnt.
    side = int(rng.choice([64, 64, 64, 96, 128, 256, 512] if slow_down else [64, 64, 64, 96, 128]))
    slower = rng.uniform(0.1, 1.0) * min(1.0, 96 / side) if slow_down else 1.0
    black_white = replace(scene, colour="white", background="black", travel=scene.travel * slower)
    picture = render(black_white, side, side, frames)[..., 0].astype(np.float32)
    low, high = COLOURS["black"].rgb[0], COLOURS["white"].rgb[0]
    cover = (picture - low) / (high - low)
    radius = scene.size * side
    turn = rng.uniform(0, 2 * math.pi)
    # Look at the rim: inside a large shape there is nothing to learn.
    left, top = (
        int(np.clip(radius + share * (side - 2 * radius) + radius * 0.8 * toward - CROP / 2, 0, side - CROP))
        for share, toward in ((scene.x, math.cos(turn)), (scene.y, math.sin(turn)))
    )
    return cover[:, top : top + CROP, left : left + CROP]
