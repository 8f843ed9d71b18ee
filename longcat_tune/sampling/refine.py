"""The refinement pass: a finished video, enlarged and with twice the frames, half noised and cleaned again.

Knows frames and counts; who encodes, denoises and decodes them is the caller's.
Source: meituan-longcat/LongCat-Video, longcat_video/pipeline_longcat_video.py (generate_refine).
Letters: F frames, H rows, W columns, 3 colours, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from longcat_tune.sampling.pictures import Frames
from longcat_tune.types import TEMPORAL_STRIDE

START_SIGMA = 0.5
"""How noisy the enlarged video is made (the authors' t_thresh)."""

GRID_STEPS = 50
"""Steps of the whole schedule, of which those below START_SIGMA are made: 5."""

FRAMES_PER_FRAME = 2
SPARSE_BLOCK = 4
"""Latent frames that block-sparse attention takes together: counts of them are multiples of it."""

REFINED_SIZES: Mapping[float, tuple[int, int]] = MappingProxyType(
    {
        0.22: (448, 2048),
        0.29: (512, 1792),
        0.36: (576, 1600),
        0.45: (640, 1408),
        0.55: (704, 1280),
        0.63: (768, 1216),
        0.76: (832, 1088),
        0.88: (896, 1024),
        1.00: (960, 960),
        1.14: (1024, 896),
        1.31: (1088, 832),
        1.50: (1152, 768),
        1.58: (1216, 768),
        1.82: (1280, 704),
        1.91: (1344, 704),
        2.20: (1408, 640),
        2.30: (1472, 640),
        2.67: (1536, 576),
        2.89: (1664, 576),
        3.62: (1856, 512),
        3.75: (1920, 512),
    }
)
"""Height / width, and the height and width of the 720p class whose sides are multiples of 64."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a video lies in the latents of the pass.

    Attributes:
        num_frames: of the video.
        num_cond_latents: clean latents in front.
        num_noise_latents: those that are made.
        front: frames put before the video.
    """

    num_frames: int
    num_cond_latents: int
    num_noise_latents: int
    front: int

    @property
    def padded_frames(self) -> int:
        """Of the video with what is put before and behind it."""
        noise = TEMPORAL_STRIDE * self.num_noise_latents
        return noise + (TEMPORAL_STRIDE * (self.num_cond_latents - 1) + 1 if self.num_cond_latents else 0)

    @classmethod
    def of(cls, num_frames: int, *, given_frames: int = 0) -> Layout:
        """Lay out a video.

        Args:
            num_frames: of the enlarged video.
            given_frames: leading ones that are given: 0 or 1 mostly.
        """
        cond = _sparse(1 + -(-(given_frames - 1) // TEMPORAL_STRIDE)) if given_frames else 0
        front = 1 + TEMPORAL_STRIDE * (cond - 1) - given_frames if cond else 0
        return cls(num_frames, cond, _sparse(-(-(num_frames - given_frames) // TEMPORAL_STRIDE)), front)

    def pad(self, pixels_CFHW: Tensor) -> Tensor:
        """Repeat the first and the last frame until the latents are full."""
        back = self.padded_frames - self.front - pixels_CFHW.shape[1]
        first, last = pixels_CFHW[:, :1], pixels_CFHW[:, -1:]
        return torch.cat([first.repeat(1, self.front, 1, 1), pixels_CFHW, last.repeat(1, back, 1, 1)], dim=1)

    def cut(self, frames_FHW3: Frames) -> Frames:
        """Take the video out of what was decoded."""
        return frames_FHW3[self.front : self.front + self.num_frames]


def refined_size(width: int, height: int) -> tuple[int, int]:
    """Width and height in the 720p class for a video of this shape; the nearest ratio, the first of two."""
    nearest = min(REFINED_SIZES, key=lambda ratio: abs(ratio - height / width))
    refined_height, refined_width = REFINED_SIZES[nearest]
    return refined_width, refined_height


def enlarge(frames_FHW3: Frames, size: tuple[int, int], *, times: int = FRAMES_PER_FRAME) -> Tensor:
    """Bring a video to another size, with frames in between.

    Args:
        frames_FHW3: uint8.
        size: width and height.
        times: frames per frame; 1 leaves their number.

    Returns:
        pixels_CFHW in [-1, 1], float32.
    """
    width, height = size
    pixels_FCHW = torch.from_numpy(frames_FHW3).permute(0, 3, 1, 2).float()
    pixels_FCHW = functional.interpolate(pixels_FCHW, (height, width), mode="bilinear", align_corners=True)
    pixels_1CFHW = pixels_FCHW.permute(1, 0, 2, 3)[None] / 255
    shape = (times * len(frames_FHW3), height, width)
    pixels_1CFHW = functional.interpolate(pixels_1CFHW, shape, mode="trilinear", align_corners=True)
    return pixels_1CFHW[0] * 2 - 1


def _sparse(count: int) -> int:
    return -(-count // SPARSE_BLOCK) * SPARSE_BLOCK
