"""What has to be in the caches of a run, and under which names; encodes nothing and reads no cached file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.config.model import ModelSection
from longcat_tune.config.run import RunConfig
from longcat_tune.data.buckets import cover_size
from longcat_tune.data.cache import (
    LatentJob,
    TextJob,
    latent_key,
    latents_path,
    text_key,
    text_path,
)
from longcat_tune.data.captions import EMPTY_PROMPT
from longcat_tune.data.collecting import uncollected
from longcat_tune.data.framing import CENTER
from longcat_tune.data.planning import clip_id
from longcat_tune.data.sources import stamp_of
from longcat_tune.data.tasks import tasks_of
from longcat_tune.log import Bar, progress
from longcat_tune.model.text_encoder import features_width, text_encoder_identity
from longcat_tune.model.vae import latent_channels, vae_identity
from longcat_tune.model.weights import read_transformer_config
from longcat_tune.runs.build import CheckpointFolders, find_checkpoint
from longcat_tune.runs.plan import PlannedDataset, RunPlan, make_plan
from longcat_tune.runs.requests import plan_requests
from longcat_tune.runs.weight_hashes import WeightHashes
from longcat_tune.sampling.requests import RenderRequest
from longcat_tune.types import Bucket, CachedSample, ClipRecord, FramePicks, PlannedClip, Stamp, TrainingSet

SECONDS_BETWEEN_SAVES = 60.0


@dataclass(frozen=True, slots=True)
class CachedRequest:
    """A render request with the files of its encodings.

    Attributes:
        request: what to render.
        prompt_path: features of its prompt.
        negative_path: features of its negative prompt.
        start: latents of what it starts from, and where that comes from; None: from text alone.
    """

    request: RenderRequest
    prompt_path: Path
    negative_path: Path
    start: LatentJob | None


@dataclass(frozen=True, slots=True)
class CachedRun:
    """Everything that a run needs of its caches, as paths.

    Attributes:
        training: the datasets trained on.
        held_out: the clips that the loss is measured on, each with one window and one caption.
        empty_text: features of the empty prompt.
        requests: the renders.
    """

    training: tuple[TrainingSet, ...]
    held_out: tuple[TrainingSet, ...]
    empty_text: Path
    requests: tuple[CachedRequest, ...]

    @property
    def samples(self) -> tuple[CachedSample, ...]:
        """All clips, those trained on first."""
        return tuple(sample for one in (*self.training, *self.held_out) for sample in one.samples)

    @property
    def num_clips(self) -> int:
        """How many clips there are to train on."""
        return sum(len(one.samples) for one in self.training)


class _Source(NamedTuple):
    """What is encoded: a file or folder as it was when it was looked at.

    Attributes:
        path: where it is.
        stamp: of the look.
        fps: pictures per second of a folder of them; None for any other kind.
    """

    path: Path
    stamp: Stamp
    fps: float | None = None


class CacheJobs:
    """Collects jobs: whoever asks for a clip's cached files gets their paths, and the jobs are noted here.

    Attributes:
        folder: the run's own cache folder.
        channels: of the latents.
        text_width: of the text features, zero padding included.
        latents: clips, conditioning images and start images, in the order of asking.
        texts: captions and prompts, each once.

    Args:
        config: the run.
        plan: what it trains on.
        checkpoint: of the encoders, and of the transformer whose config they must fit.

    Raises:
        CheckpointError: an encoder's folder or one of its files is missing.
    """

    def __init__(self, config: RunConfig, plan: RunPlan, checkpoint: CheckpointFolders) -> None:
        self.config = config
        self.plan = plan
        self.folder = config.output.output_dir / "cache"
        self.text_folder = plan.text_cache or self.folder / "text"
        self.channels = latent_channels(checkpoint.vae)
        self.latents: list[LatentJob] = []
        hashes = WeightHashes(self.folder)
        self._vae = f"{vae_identity(checkpoint.vae, hash_of=hashes.of)} {config.model.vae_dtype}"
        self.text_width = _text_width(config.model, checkpoint)
        identity = text_encoder_identity(checkpoint.text_encoder, hash_of=hashes.of)
        self._text_encoder = f"{identity} {config.model.text_encoder_1_precision} {self.text_width}"
        hashes.keep()
        self._texts: dict[str, TextJob] = {}
        self._partners = {entry.id: entry for entry in plan.conditioning}
        self._sequence_fps = {
            clip.record.path: clip.record.fps
            for dataset in plan.held_out
            for clip in dataset.plan.clips
            if clip.record.kind == "sequence"
        }

    @property
    def texts(self) -> list[TextJob]:
        """Captions and prompts, each once."""
        return list(self._texts.values())

    @uncollected()
    def of_run(self, requests: Sequence[RenderRequest]) -> CachedRun:
        """Ask for everything that the run needs.

        Args:
            requests: what it renders.

        Raises:
            DataError: a clip or image can no longer be read.
        """
        datasets = [(dataset, dataset.plan.clips) for dataset in self.plan.training if dataset.plan.clips]
        held_out = self._held_out()
        count = sum(len(clips) for _, clips in (*datasets, *held_out))
        with progress("Looking at the content of clips", count, only_long=True) as bar:
            cached = CachedRun(
                training=tuple(self._set(dataset.entry, clips, bar) for dataset, clips in datasets),
                held_out=tuple(self._set(dataset.entry, clips, bar) for dataset, clips in held_out),
                empty_text=self.text(EMPTY_PROMPT),
                requests=tuple(self.request(request) for request in requests),
            )
        self.plan.indexes.keep()
        return cached

    def sample(self, entry: DatasetEntry, clip: PlannedClip) -> CachedSample:
        """One clip to train on, with its captions and its conditioning image.

        Raises:
            DataError: the clip or the image can no longer be read.
        """
        record, image, name = clip.record, clip.record.conditioning, clip_id(clip)
        return CachedSample(
            clip_id=name,
            bucket=clip.bucket,
            latents_paths=self._latents(
                self.clip_folder(entry),
                _Source(record.path, record.stamp, record.fps if record.kind == "sequence" else None),
                [clip.picks(window) for window in clip.windows],
                clip.bucket,
                name=name,
                crop=_effective_crop(clip),
            ),
            cond_latents_path=None if image is None else self._partner(image, clip),
            text_paths=tuple([self.text(caption) for caption in record.captions]),
        )

    def request(self, request: RenderRequest) -> CachedRequest:
        """One render, with its prompts and its start image.

        Raises:
            DataError: the start image cannot be read.
        """
        image = request.start_image
        return CachedRequest(
            request=request,
            prompt_path=self.text(request.prompt),
            negative_path=self.text(request.negative_prompt),
            start=None if image is None else self.start(image, request),
        )

    def folders(self) -> set[Path]:
        """The folders that hold this run's caches, and what is left of earlier ones in its output_dir."""
        datasets = (*self.plan.training, *self.plan.held_out)
        entries = [*(dataset.entry for dataset in datasets), *self.plan.conditioning]
        own = (self.folder / "vae").glob("*/")
        return {self.text_folder, *map(self.clip_folder, entries), *own}

    def clip_folder(self, entry: DatasetEntry) -> Path:
        """Where the latents of a dataset belong."""
        assert entry.cache_dir_vae is not None  # the loader fills it in
        return entry.cache_dir_vae

    def start(self, image: Path, request: RenderRequest) -> LatentJob:
        """Ask for a render's given frames, in the cache of the conditioning dataset that holds them, if any.

        Args:
            image: an image or a clip.
            request: which frames of it, and what they are brought to.

        Raises:
            DataError: it cannot be read.
        """
        entry = self.plan.conditioning_entry(image)
        folder = self.folder / "vae" / "start-images" if entry is None else self.clip_folder(entry)
        source = _Source(image, stamp_of(image), self._sequence_fps.get(image))
        picks = FramePicks(request.start_frame, request.num_start_frames, self.config.data.framerate)
        return self._pictures(folder, source, picks, request.size, crop=CENTER)

    def text(self, caption: str) -> Path:
        """Ask for text features; returns where they will be."""
        job = self._texts.get(caption)
        if job is None:
            path = text_path(self.text_folder, text_key(caption, encoder=self._text_encoder))
            job = self._texts[caption] = TextJob(caption, path)
        return job.path

    def _held_out(self) -> list[tuple[PlannedDataset, list[PlannedClip]]]:
        """What the loss is measured on; renders alone need nothing of it."""
        if not self.plan.training:
            return []
        count = self.config.validation.num_eval_images
        return [
            (dataset, [_only_first(clip) for clip in dataset.plan.clips[:count]])
            for dataset in self.plan.held_out
            if dataset.plan.clips
        ]

    def _set(self, entry: DatasetEntry, clips: Sequence[PlannedClip], bar: Bar) -> TrainingSet:
        """Clips of one dataset."""
        samples = []
        for clip in clips:
            samples.append(self.sample(entry, clip))
            bar.advance()
        return TrainingSet(
            dataset_id=entry.id,
            samples=tuple(samples),
            uses_per_epoch=entry.repeats + 1,
            probability=entry.probability,
            start_step=entry.start_step,
            end_step=entry.end_step,
            tasks=tasks_of(entry),
            keeps_base=entry.is_regularisation_data,
        )

    def _partner(self, image: ClipRecord, clip: PlannedClip) -> Path:
        """Ask for a clip's start image, cut out where the clip is."""
        folder = self.clip_folder(self._partners[image.dataset_id])
        source = _Source(image.path, image.stamp)
        picks = FramePicks(0, 1, self.config.data.framerate)
        return self._pictures(folder, source, picks, clip.bucket, crop=clip.crop).path

    def _pictures(
        self, folder: Path, source: _Source, picks: FramePicks, size: Bucket, *, crop: tuple[float, float]
    ) -> LatentJob:
        self._latents(
            folder,
            source,
            [picks],
            Bucket(size.width, size.height, picks.count),
            name=source.path.name,
            crop=crop,
        )
        return self.latents[-1]

    def _latents(
        self,
        folder: Path,
        source: _Source,
        windows: Sequence[FramePicks],
        bucket: Bucket,
        *,
        name: str,
        crop: tuple[float, float],
    ) -> tuple[Path, ...]:
        """Ask for the latents of one or more windows of a clip; returns where they will be."""
        index = self.plan.source_index(folder)
        content = index.content(source.path, source.stamp)
        # A new dataset is read once from end to end; what was read is not read again after a stop.
        index.keep(after=SECONDS_BETWEEN_SAVES)
        paths = []
        for picks in windows:
            key = latent_key(
                content, picks=picks, bucket=bucket, crop=crop, source_fps=source.fps, encoder=self._vae
            )
            path = latents_path(folder, key)
            self.latents.append(
                LatentJob(name, source.path, source.stamp, picks, bucket, crop, source.fps, path)
            )
            paths.append(path)
        return tuple(paths)


def _only_first(clip: PlannedClip) -> PlannedClip:
    """The clip with its first window and its first caption."""
    record = replace(clip.record, captions=clip.record.captions[:1])
    return replace(clip, record=record, windows=clip.windows[:1])


def wanted_by(config: RunConfig, config_dir: Path) -> tuple[CacheJobs, CachedRun]:
    """Plan a run as far as the names of all that it has in its caches, or will have.

    Args:
        config: what was asked.
        config_dir: where relative paths of the config start.

    Raises:
        UserError: the plan cannot be made, or an encoder is missing.
    """
    plan = make_plan(config, config_dir=config_dir)
    jobs = CacheJobs(config, plan, find_checkpoint(config.model))
    return jobs, jobs.of_run(plan_requests(config, plan.render_source, config_dir=config_dir))


def _effective_crop(clip: PlannedClip) -> tuple[float, float]:
    """The crop, centred where nothing is cut: any other place would give the same pixels another name."""
    bucket, record = clip.bucket, clip.record
    width, height = cover_size(record.width, record.height, bucket.width, bucket.height)
    return (
        CENTER[0] if width == bucket.width else clip.crop[0],
        CENTER[1] if height == bucket.height else clip.crop[1],
    )


def _text_width(model: ModelSection, checkpoint: CheckpointFolders) -> int:
    """How wide the text features are; only padding makes them as wide as the transformer wants."""
    if model.text_encoder_zero_pad:
        return int(read_transformer_config(checkpoint.transformer)["caption_channels"])
    return features_width(checkpoint.text_encoder, choice=model.text_encoder)
