"""The kinds of renders that a memory plan counts, and how transformer and VAE see them; loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from longcat_tune.memory.budget_parts import Picture
from longcat_tune.memory.budget_renders import LentLora, Render
from longcat_tune.memory.budget_shape import ModelShape
from longcat_tune.memory.budget_training import BatchSize
from longcat_tune.sampling.refine import FRAMES_PER_FRAME, Layout, refined_size
from longcat_tune.sampling.requests import CONTINUED_FRAMES, RenderRequest
from longcat_tune.types import Bucket, latent_frames, pixel_frames


@dataclass(frozen=True, slots=True, order=True)
class RenderSize:
    """One kind of render.

    Attributes:
        bucket: of each segment.
        num_frames: of all segments together.
        cond_latents: latent frames that its segments are given at most; several are kept in a cache.
        from_image: whether its first frame is given, which a refinement is then given, too.
    """

    bucket: Bucket
    num_frames: int
    cond_latents: int = 0
    from_image: bool = False

    @classmethod
    def of(cls, request: RenderRequest) -> RenderSize:
        """What a request asks for."""
        given = 0 if request.start_image is None else request.num_start_frames
        most = max(given, CONTINUED_FRAMES) if request.num_segments > 1 else given
        return cls(request.size, request.num_frames, latent_frames(most), from_image=given == 1)

    @property
    def cached_latents(self) -> int:
        """Latent frames in a cache; a single one goes along with those that are made."""
        return self.cond_latents if self.cond_latents > 1 else 0


def largest_renders(rendered: Iterable[RenderSize]) -> Sequence[RenderSize]:
    """The one of most tokens without a cache, and the one with one; of equal ones the longest video."""
    kinds: dict[bool, RenderSize] = {}
    for size in rendered:
        kind = size.cached_latents > 0
        if kind not in kinds or _weight(size) > _weight(kinds[kind]):
            kinds[kind] = size
    return tuple(kinds.values())


def _weight(size: RenderSize) -> tuple[int, int, int]:
    return size.bucket.num_tokens, size.cond_latents, size.num_frames


def render_of(size: RenderSize, shape: ModelShape, lora: LentLora) -> Render:
    """A render as transformer and VAE see it."""
    bucket, cached = size.bucket, size.cached_latents
    name = bucket.name
    if cached:
        name += f" after {pixel_frames(cached)} frames"
    if size.num_frames > bucket.num_frames:
        name += f" to {size.num_frames}"
    whole = batch_of(bucket, shape)
    per_latent = whole.tokens // bucket.latent_shape[0]
    batch = replace(
        whole,
        name=name,
        tokens=whole.tokens - per_latent * cached,
        cached_tokens=per_latent * cached,
        given_tokens=per_latent * (size.cond_latents - cached),
    )
    return Render(batch, replace(picture_of(bucket), name=name), size.num_frames, lora)


def refinement_of(size: RenderSize, shape: ModelShape, lora: LentLora) -> Render:
    """The refinement of a render, whose given frame goes along."""
    bucket = refined_bucket(size)
    whole = batch_of(bucket, shape)
    given = whole.tokens // bucket.latent_shape[0] * _layout(size).num_cond_latents
    return Render(replace(whole, given_tokens=given), picture_of(bucket), bucket.num_frames, lora)


def refined_bucket(size: RenderSize) -> Bucket:
    """The size that a render is refined at, with the frames that pad it."""
    layout = _layout(size)
    latents = layout.num_cond_latents + layout.num_noise_latents
    return Bucket(*refined_size(size.bucket.width, size.bucket.height), pixel_frames(latents))


def _layout(size: RenderSize) -> Layout:
    return Layout.of(FRAMES_PER_FRAME * size.num_frames, given_frames=int(size.from_image))


def batch_of(bucket: Bucket, shape: ModelShape, *, clips: int = 1) -> BatchSize:
    """Clips of a bucket as the transformer sees them."""
    frames, rows, columns = bucket.latent_shape
    return BatchSize(
        bucket.name,
        clips,
        shape.tokens(bucket.latent_shape),
        shape.in_channels * frames * rows * columns,
    )


def picture_of(bucket: Bucket) -> Picture:
    """A clip of a bucket as the VAE sees it."""
    return Picture(bucket.name, bucket.width, bucket.height, bucket.num_frames)
