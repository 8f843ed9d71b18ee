"""The frozen dataclasses that cross rooms; imports nothing of ours and no torch at run time.

Letters: B batch, C latent channels, T/H/W latent frames, rows and columns, F pixel frames, L text tokens, D
text width.
Sizes in pixels are always written width first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

TEMPORAL_STRIDE = 4
"""Pixel frames per latent frame after the first (Wan VAE)."""
SPATIAL_STRIDE = 8
"""Pixels per latent row or column (Wan VAE)."""
TEXT_TOKENS = 512
"""Every caption and prompt is padded or cut to this many tokens; the count itself changes the result."""


def latent_frames(num_frames: int) -> int:
    """Latent frames of so many pixel frames: one for the first, then one for every four."""
    return (num_frames - 1) // TEMPORAL_STRIDE + 1 if num_frames else 0


def pixel_frames(num_latents: int) -> int:
    """Pixel frames that so many leading latent frames stand for."""
    return (num_latents - 1) * TEMPORAL_STRIDE + 1 if num_latents else 0


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
            latent_frames(self.num_frames),
            self.height // SPATIAL_STRIDE,
            self.width // SPATIAL_STRIDE,
        )

    @property
    def num_tokens(self) -> int:
        """Video tokens in the transformer, whose patches are 1 x 2 x 2 latents."""
        frames, rows, columns = self.latent_shape
        return frames * (rows // 2) * (columns // 2)


@dataclass(frozen=True, slots=True)
class FramePicks:
    """Which frames are taken: so many, one after the other at a frame rate, from a certain one on.

    Attributes:
        first: index of the first one, from 0, counted at that rate.
        count: how many.
        framerate: frames per second that the clip is resampled to.
    """

    first: int
    count: int
    framerate: float

    @property
    def times(self) -> tuple[float, ...]:
        """Presentation time of each in seconds; the source's nearest frame is the one meant."""
        return tuple((self.first + index) / self.framerate for index in range(self.count))


class Stamp(NamedTuple):
    """What must be the same for a file to count as the same.

    Attributes:
        size: in bytes; of a folder of pictures, of all of them.
        version: modification time in nanoseconds; of a folder of pictures, a hash over the names, sizes and
            modification times.
    """

    size: int
    version: int


@dataclass(frozen=True, slots=True)
class ClipRecord:
    """One usable file of a dataset as found on disk, before its frames are decoded.

    Attributes:
        dataset_id: the entry it belongs to.
        path: the file; a folder of numbered pictures is one too.
        name: its path inside the dataset folder, with forward slashes.
        kind: how it is read; `sequence` is a folder of numbered pictures.
        captions: one or more; empty for a conditioning image.
        width: in pixels as shown, rotation applied.
        height: in pixels as shown, rotation applied.
        source_frames: frames in the file; 1 for an image.
        seconds: duration by presentation time; 0 for an image.
        stamp: by which a later change of the file shows.
        conditioning: the image paired with it; None when there is none or its own first frame is meant.
    """

    dataset_id: str
    path: Path
    name: str
    kind: Literal["video", "image", "sequence"]
    captions: tuple[str, ...]
    width: int
    height: int
    source_frames: int
    seconds: float
    stamp: Stamp
    conditioning: ClipRecord | None = None

    @property
    def fps(self) -> float:
        """Frames per second on average; 0 for an image."""
        return self.source_frames / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """One file that will not be trained on: which, why, and what to do about it."""

    dataset_id: str
    path: Path
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something about a dataset that is allowed and that its owner should know.

    Attributes:
        dataset_id: the entry it is about.
        fact: what was found, in how many files; names a few of them.
        remedy: what to do if it is not meant.
    """

    dataset_id: str
    fact: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Task:
    """What part of a clip is given, and how often.

    Attributes:
        num_cond_latents: clean leading latent frames: 0 text-to-video, 1 image-to-video, 4 continuation from
            13 frames.
        share: of the dataset's batches, 0 to 1.
    """

    num_cond_latents: int
    share: float = 1.0


TEXT_TO_VIDEO = (Task(num_cond_latents=0),)
IMAGE_TO_VIDEO = (Task(num_cond_latents=1),)


@dataclass(frozen=True, slots=True)
class PlannedClip:
    """A clip with its bucket, its frames and its tasks.

    Attributes:
        record: the file.
        bucket: the size and length it is encoded at.
        framerate: frames per second that it is resampled to.
        windows: index of the first frame of each window, counted at framerate; they take turns, use by use.
        crop: where the crop lies, as the share of the spare width and height on its left and above it; (0.5,
            0.5) is the centre.
        tasks: what it is trained for; shares add up to 1.
        number: which of the clips cut from one file it is, from 1; None when files are not cut into several.
    """

    record: ClipRecord
    bucket: Bucket
    framerate: float
    windows: tuple[int, ...] = (0,)
    crop: tuple[float, float] = (0.5, 0.5)
    tasks: tuple[Task, ...] = TEXT_TO_VIDEO
    number: int | None = None

    def picks(self, window: int) -> FramePicks:
        """The frames of the window that starts at this frame."""
        return FramePicks(window, self.bucket.num_frames, self.framerate)


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
        latents_paths: latents of each window; they take turns, use by use.
        cond_latents_path: latents of its conditioning image; None: the clip's own leading latent frames.
        text_paths: text features, one file per caption.
    """

    clip_id: str
    bucket: Bucket
    latents_paths: tuple[Path, ...]
    cond_latents_path: Path | None
    text_paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The cached clips of one dataset, and how often, when and for what they are used.

    Attributes:
        dataset_id: the entry.
        samples: in the plan's order.
        uses_per_epoch: repeats + 1.
        probability: share of its batches that an epoch takes, above 0 and at most 1.
        start_step: first optimizer step that uses it, counted from 1; 0 means from the beginning too.
        end_step: last one; None: to the end.
        tasks: of every batch one is drawn; shares add up to 1.
        keeps_base: regularisation data; see Batch.
    """

    dataset_id: str
    samples: tuple[CachedSample, ...]
    uses_per_epoch: int = 1
    probability: float = 1.0
    start_step: int = 0
    end_step: int | None = None
    tasks: tuple[Task, ...] = TEXT_TO_VIDEO
    keeps_base: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """What one training step eats; clean, on the host.

    Attributes:
        latents_BCTHW: normalised latents, conditioning latents already in the first num_cond_latents frames.
        text_BLD: text features padded to TEXT_TOKENS.
        mask_BL: int64, 1 = token.
        num_cond_latents: the same for the whole batch.
        clip_ids: for messages.
        keeps_base: the prediction of the model without the LoRA is what must be met, not the clip.
    """

    latents_BCTHW: Tensor
    text_BLD: Tensor
    mask_BL: Tensor
    num_cond_latents: int
    clip_ids: tuple[str, ...]
    keeps_base: bool = False


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


@dataclass(frozen=True, slots=True)
class BestEvaluation:
    """The lowest loss on held-out clips so far, and what it can be compared with.

    Attributes:
        step: that it was reached at; pruning leaves this step's checkpoint.
        loss: pooled over noise levels.
        base_loss: the one at step 0; None: not measured then.
        last_step: the latest one that was measured.
        identity: of what was measured; losses of other clips or noise levels cannot be compared with these.
    """

    step: int
    loss: float
    base_loss: float | None = None
    last_step: int = 0
    identity: str = ""
