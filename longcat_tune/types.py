"""The frozen dataclasses that cross rooms; imports nothing of ours and no torch at run time.

Letters: B batch, C latent channels, T/H/W latent frames, rows and columns, F pixel frames, L text tokens, D
text width.
Sizes in pixels are always written width first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

TEMPORAL_STRIDE = 4
"""Pixel frames per latent frame after the first (Wan VAE)."""
SPATIAL_STRIDE = 8
"""Pixels per latent row or column (Wan VAE)."""
TEXT_TOKENS = 512
"""Every caption and prompt is padded or cut to this many tokens; the count itself changes the result."""


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """One size that clips are brought to: width and height in pixels, length in frames (4k + 1)."""

    width: int
    height: int
    num_frames: int

    @property
    def name(self) -> str:
        """`832x480@93`."""
        return f"{self.width}x{self.height}@{self.num_frames}"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns."""
        return (
            (self.num_frames - 1) // TEMPORAL_STRIDE + 1,
            self.height // SPATIAL_STRIDE,
            self.width // SPATIAL_STRIDE,
        )

    @property
    def num_tokens(self) -> int:
        """Video tokens in the transformer, whose patches are 1 x 2 x 2 latents."""
        frames, rows, columns = self.latent_shape
        return frames * (rows // 2) * (columns // 2)


@dataclass(frozen=True, slots=True)
class ClipRecord:
    """One usable file of a dataset as found on disk, before any frame is decoded.

    Attributes:
        dataset_id: the entry it belongs to.
        path: the file.
        name: its path inside the dataset folder, with forward slashes.
        kind: how it is read.
        captions: one or more; empty for a conditioning image.
        width: in pixels as shown, rotation applied.
        height: in pixels as shown, rotation applied.
        source_frames: frames in the file; 1 for an image.
        seconds: duration by presentation time; 0 for an image.
        conditioning: the image paired with it; None when there is none or its own first frame is meant.
    """

    dataset_id: str
    path: Path
    name: str
    kind: Literal["video", "image"]
    captions: tuple[str, ...]
    width: int
    height: int
    source_frames: int
    seconds: float
    conditioning: Path | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """One file that will not be trained on: which, why, and what to do about it."""

    dataset_id: str
    path: Path
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class PlannedClip:
    """A clip with its bucket and its task.

    Attributes:
        record: the file.
        bucket: the size and length it is encoded at.
        frame_times: presentation times in seconds of the frames to take; one per frame of the bucket.
        num_cond_latents: clean leading latent frames in training: 0 text-to-video, 1 image-to-video.
    """

    record: ClipRecord
    bucket: Bucket
    frame_times: tuple[float, ...]
    num_cond_latents: int


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """A text encoder's output for one caption, without padding.

    Attributes:
        text_LD: features of the real tokens only, at most TEXT_TOKENS rows.
    """

    text_LD: Tensor

    def padded(self) -> tuple[Tensor, Tensor]:
        """Zero rows up to TEXT_TOKENS, and the mask (int64, 1 = token).

        Zeros may stand for the encoder's own output there: the model never reads features under the mask.
        """
        length, width = self.text_LD.shape
        text_LD = self.text_LD.new_zeros(TEXT_TOKENS, width)
        text_LD[:length] = self.text_LD
        mask_L = text_LD.new_zeros(TEXT_TOKENS).long()
        mask_L[:length] = 1
        return text_LD, mask_L


@dataclass(frozen=True, slots=True)
class CachedSample:
    """What the sampler needs to know of one cached clip; paths only, no tensors.

    Attributes:
        clip_id: dataset id and name, as messages show it.
        bucket: one batch holds one bucket of one dataset.
        latents_path: the clip's latents.
        cond_latents_path: latents of its conditioning image; None: the clip's own first latent frame.
        text_paths: text features, one file per caption.
        num_cond_latents: as in PlannedClip.
        dataset_id: the entry it belongs to.
        uses_per_epoch: repeats + 1.
    """

    clip_id: str
    dataset_id: str
    bucket: Bucket
    latents_path: Path
    cond_latents_path: Path | None
    text_paths: tuple[Path, ...]
    num_cond_latents: int
    uses_per_epoch: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one training step eats; clean, on the host.

    Attributes:
        latents_BCTHW: normalised latents, conditioning latents already in the first num_cond_latents frames.
        text_BLD: text features padded to TEXT_TOKENS.
        mask_BL: int64, 1 = token.
        num_cond_latents: the same for the whole batch.
        clip_ids: for messages.
    """

    latents_BCTHW: Tensor
    text_BLD: Tensor
    mask_BL: Tensor
    num_cond_latents: int
    clip_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NoisedBatch:
    """The transformer's input and what its raw output must equal.

    Attributes:
        latents_BCTHW: noised, except the clean condition frames.
        timestep_BT: 1000 sigma; 0 for condition frames.
        target_BCTHW: clean - noise.
        sigma_B: noise level, 0 to 1.
    """

    latents_BCTHW: Tensor
    timestep_BT: Tensor
    target_BCTHW: Tensor
    sigma_B: Tensor
