"""Renders that fit: what is lowered where memory does not do, and remembered for the rest of the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from longcat_tune.errors import DeviceError
from longcat_tune.model.vae import VideoAutoencoder
from longcat_tune.sampling.pictures import Frames
from longcat_tune.training.trouble import free_memory, out_of_memory, out_of_memory_reason
from longcat_tune.types import TEMPORAL_STRIDE, Bucket

logger = logging.getLogger(__name__)

Made = TypeVar("Made")

OnSmaller = Callable[[str, str], None]
"""(what is done about it, why)."""


class Fitting:
    """For every size asked for, the one that fits: fewer frames, never smaller ones.

    A shorter video at the size that was trained shows what was learned; a small one shows something else.

    Attributes:
        refines: whether refined renders fit, as far as is known.
    """

    def __init__(self) -> None:
        self.refines = True
        self._fits: dict[tuple[Bucket, int], Bucket] = {}

    def size(self, wanted: Bucket, *, given_frames: int) -> Bucket:
        """The largest one not known to be too large."""
        return self._fits.get((wanted, given_frames), wanted)

    def shrink(self, wanted: Bucket, *, given_frames: int) -> Bucket | None:
        """Halve the frames.

        Args:
            wanted: the size asked for.
            given_frames: leading frames of a render that are given; some are to be made.

        Returns:
            The size to try next; None when it cannot be shorter.
        """
        now = self.size(wanted, given_frames=given_frames)
        least = max(1, given_frames) + TEMPORAL_STRIDE
        if now.num_frames <= least:
            return None
        half = (now.num_frames // 2 - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1
        smaller = replace(now, num_frames=max(least, half))
        self._fits[wanted, given_frames] = smaller
        return smaller

    def make(
        self,
        attempt: Callable[[Bucket], Made],
        wanted: Bucket,
        *,
        given_frames: int,
        device: torch.device,
        on_smaller: OnSmaller,
    ) -> Made:
        """Try, with fewer frames after each time that memory ran out.

        Args:
            attempt: makes something of a size.
            wanted: the size asked for.
            given_frames: as for `shrink`.
            device: whose memory it is.
            on_smaller: hears of every new size.

        Raises:
            DeviceError: not even the shortest fits.
        """
        while True:
            size = self.size(wanted, given_frames=given_frames)
            try:
                return attempt(size)
            except (RuntimeError, MemoryError) as error:
                reason = out_of_memory_reason(error)
                if reason is None:
                    raise
                smaller = self.shrink(wanted, given_frames=given_frames)
                if smaller is None:
                    raise out_of_memory(f"rendering {size.name}", reason) from error
            # Only here, where the error and all that its frames held are gone.
            free_memory(device)
            on_smaller(f"{smaller.num_frames} frames in place of {size.num_frames}", reason)

    def refine(
        self, frames_FHW3: Frames, work: Callable[[], Frames], *, device: torch.device, on_smaller: OnSmaller
    ) -> Frames:
        """Refine a video, or leave it as it is if memory runs out, and all later ones, too.

        Args:
            frames_FHW3: of the render.
            work: gives the refined frames.
            device: whose memory it is.
            on_smaller: hears when it does not fit.
        """
        if not self.refines:
            return frames_FHW3
        try:
            return work()
        except (RuntimeError, MemoryError, DeviceError) as error:
            reason = str(error) if isinstance(error, DeviceError) else out_of_memory_reason(error)
            if reason is None:
                raise
        self.refines = False
        free_memory(device)
        on_smaller("the video is not refined", reason)
        return frames_FHW3


class Decoder:
    """The VAE of a set of renders: loaded when first needed, in tiles once whole frames did not fit.

    Args:
        load: loads it; True: working in tiles.
        device: where.
    """

    def __init__(self, load: Callable[[bool], VideoAutoencoder], device: torch.device) -> None:
        self._load = load
        self._device = device
        self._vae: VideoAutoencoder | None = None
        self._tiled = False

    def use(self, work: Callable[[VideoAutoencoder], Tensor], *, on_smaller: OnSmaller) -> Tensor:
        """Do something with it, and again in tiles if memory ran out.

        Raises:
            DeviceError: tiles do not fit either.
        """
        while True:
            if self._vae is None:
                self._vae = self._load(self._tiled)
            try:
                return work(self._vae)
            except (RuntimeError, MemoryError) as error:
                reason = out_of_memory_reason(error)
                if reason is None:
                    raise
                if self._tiled:
                    raise out_of_memory("decoding", reason) from error
            self._vae, self._tiled = None, True
            free_memory(self._device)
            on_smaller("frames are decoded in tiles", reason)
