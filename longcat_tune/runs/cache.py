"""Fill the caches of a run: every clip, start image, caption and prompt, each encoded once in its life.

The text encoder comes first and is freed before the VAE loads; both are gone before the transformer does.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.config.run import RunConfig
from longcat_tune.data.cache import (
    LatentJob,
    SourceHashes,
    TextJob,
    fill_latents,
    fill_text,
    latent_key,
    latents_path,
    text_key,
    text_path,
    unfinished,
)
from longcat_tune.data.transforms import load_pixels
from longcat_tune.files import require_writable
from longcat_tune.log import progress
from longcat_tune.model.text_encoder import clean_prompt, load_text_encoder, text_encoder_identity
from longcat_tune.model.vae import VideoAutoencoder, vae_identity
from longcat_tune.model.weights import read_transformer_config
from longcat_tune.runs.build import DTYPES, CheckpointFolders, find_checkpoint, pick_device
from longcat_tune.runs.plan import PlannedDataset, RunPlan, make_plan
from longcat_tune.runs.requests import plan_requests
from longcat_tune.sampling.requests import RenderRequest
from longcat_tune.training.trouble import explained_out_of_memory
from longcat_tune.types import Bucket, CachedSample, FramePicks, PlannedClip, TrainingSet

logger = logging.getLogger(__name__)

EMPTY_PROMPT = ""
CENTER_CROP = "center"


@dataclass(frozen=True, slots=True)
class CachedRequest:
    """A render request with the files of its encodings.

    Attributes:
        request: what to render.
        prompt_path: features of its prompt.
        negative_path: features of its negative prompt.
        cond_path: latents of its start image, if it has one.
    """

    request: RenderRequest
    prompt_path: Path
    negative_path: Path
    cond_path: Path | None


@dataclass(frozen=True, slots=True)
class CachedRun:
    """Everything that a run needs of its caches, as paths.

    Attributes:
        training: the datasets trained on.
        empty_text: features of the empty prompt.
        requests: the renders.
    """

    training: tuple[TrainingSet, ...]
    empty_text: Path
    requests: tuple[CachedRequest, ...]

    @property
    def num_clips(self) -> int:
        """How many clips there are to train on."""
        return sum(len(one.samples) for one in self.training)


def cache_latents(config: RunConfig, *, config_dir: Path) -> None:
    """Run the command `cache-latents`.

    Raises:
        UserError: a clip, caption or folder is unusable.
    """
    plan = make_plan(config, config_dir=config_dir)
    plan.require_sound()
    requests = plan_requests(config.validation, plan.render_source)
    checkpoint = find_checkpoint(config.model)
    cached = fill_caches(config, plan, checkpoint, requests, device=pick_device())
    logger.info("The caches hold all %d clips", cached.num_clips)


def fill_caches(
    config: RunConfig,
    plan: RunPlan,
    checkpoint: CheckpointFolders,
    requests: Sequence[RenderRequest],
    *,
    device: torch.device,
) -> CachedRun:
    """Encode what is missing.

    Args:
        config: the run.
        plan: what it trains on.
        checkpoint: of the encoders, and of the transformer whose config they must fit.
        requests: what it renders.
        device: where the encoders run.

    Raises:
        UserError: a clip, an encoder or the cache folder is unusable, or an encoder does not fit the device.
    """
    jobs = _Jobs(config, plan, checkpoint)
    training = tuple(jobs.training_set(dataset) for dataset in plan.training if dataset.plan.clips)
    empty_text = jobs.text(EMPTY_PROMPT)
    cached = CachedRun(training, empty_text, tuple(jobs.request(request) for request in requests))
    jobs.remember_sources()
    with explained_out_of_memory("encoding captions"):
        _encode_texts(unfinished(jobs.texts), config, checkpoint, device)
    with explained_out_of_memory("encoding clips"):
        _encode_latents(unfinished(jobs.latents), config, checkpoint, device)
    return cached


class _Jobs:
    """Collects what has to be in the caches, and under which names."""

    def __init__(self, config: RunConfig, plan: RunPlan, checkpoint: CheckpointFolders) -> None:
        self.config = config
        self.plan = plan
        self.folder = config.output.output_dir / "cache"
        self.text_folder = plan.text_cache or self.folder / "text"
        self.vae = vae_identity(checkpoint.vae)
        self.text_encoder = text_encoder_identity(checkpoint.text_encoder)
        self.hashes: dict[Path, SourceHashes] = {}
        self.latents: list[LatentJob] = []
        self.texts: list[TextJob] = []

    def training_set(self, dataset: PlannedDataset) -> TrainingSet:
        """One dataset to train on."""
        entry = dataset.entry
        return TrainingSet(
            dataset_id=entry.id,
            samples=tuple(self.sample(entry, clip) for clip in dataset.plan.clips),
            uses_per_epoch=entry.repeats + 1,
            tasks=dataset.plan.clips[0].tasks,
        )

    def sample(self, entry: DatasetEntry, clip: PlannedClip) -> CachedSample:
        """One clip to train on, with its captions and its conditioning image."""
        record = clip.record
        clip_id = f"{record.dataset_id}/{record.name}"
        image = record.conditioning
        folder = self.clip_folder(entry)
        return CachedSample(
            clip_id=clip_id,
            bucket=clip.bucket,
            latents_paths=tuple(
                self.latent(clip_id, record.path, clip.picks(window), clip.bucket, folder=folder)
                for window in clip.windows
            ),
            cond_latents_path=None if image is None else self.image(image, clip.bucket),
            text_paths=tuple(self.text(caption) for caption in record.captions),
        )

    def request(self, request: RenderRequest) -> CachedRequest:
        """One render, with its prompts and its start image."""
        image = request.start_image
        return CachedRequest(
            request=request,
            prompt_path=self.text(request.prompt),
            negative_path=self.text(request.negative_prompt),
            cond_path=None if image is None else self.image(image, request.size, request.start_frame),
        )

    def clip_folder(self, entry: DatasetEntry) -> Path:
        """Where the latents of a dataset belong."""
        return entry.cache_dir_vae or self.folder / "vae" / entry.id

    def image(self, image: Path, size: Bucket, frame: int = 0) -> Path:
        """Ask for a start image, in the cache of the conditioning dataset that it is part of, if any."""
        entry = self.plan.conditioning_entry(image)
        folder = self.folder / "vae" / "start-images" if entry is None else self.clip_folder(entry)
        still = Bucket(size.width, size.height, 1)
        picks = FramePicks(frame, 1, self.config.data.framerate)
        return self.latent(image.name, image, picks, still, folder=folder)

    def latent(self, clip_id: str, source: Path, picks: FramePicks, bucket: Bucket, *, folder: Path) -> Path:
        """Ask for latents; returns where they will be."""
        if folder not in self.hashes:
            require_writable(folder)
            self.hashes[folder] = SourceHashes(folder)
        key = latent_key(
            self.hashes[folder].of(source),
            picks=picks,
            bucket=bucket,
            crop=CENTER_CROP,
            vae=self.vae,
            precision=self.config.model.vae_dtype,
        )
        path = latents_path(folder, key)
        self.latents.append(LatentJob(clip_id, source, picks, bucket, path))
        return path

    def text(self, caption: str) -> Path:
        """Ask for text features; returns where they will be."""
        cleaned = clean_prompt(caption)
        precision = self.config.model.text_encoder_1_precision
        path = text_path(self.text_folder, text_key(cleaned, encoder=self.text_encoder, precision=precision))
        self.texts.append(TextJob(cleaned, path))
        return path

    def remember_sources(self) -> None:
        """Keep the content hashes for the next run."""
        for hashes in self.hashes.values():
            hashes.save()


def _encode_texts(
    jobs: list[TextJob], config: RunConfig, checkpoint: CheckpointFolders, device: torch.device
) -> None:
    if not jobs:
        return
    model = config.model
    encoder = load_text_encoder(
        checkpoint.text_encoder,
        choice=model.text_encoder,
        caption_channels=read_transformer_config(checkpoint.transformer)["caption_channels"],
        zero_pad=model.text_encoder_zero_pad,
        dtype=DTYPES[model.text_encoder_1_precision],
        device=device,
    )
    with progress("Encoding captions", len(jobs)) as bar:
        fill_text(jobs, encode=encoder.encode, on_done=lambda _: bar.advance())
    del encoder
    free_memory(device)


def _encode_latents(
    jobs: list[LatentJob], config: RunConfig, checkpoint: CheckpointFolders, device: torch.device
) -> None:
    if not jobs:
        return
    vae = VideoAutoencoder.load(checkpoint.vae, dtype=DTYPES[config.model.vae_dtype], device=device)
    backend = config.data.video_backend

    def load(job: LatentJob) -> Tensor:
        return load_pixels(job.source, job.picks.times, job.bucket, backend=backend)

    with progress("Encoding clips", len(jobs)) as bar:
        fill_latents(
            jobs,
            load_pixels=load,
            encode=vae.encode,
            on_done=lambda job: bar.advance(job.bucket.name),
        )
    del vae
    free_memory(device)


def free_memory(device: torch.device) -> None:
    """Give freed weights back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
