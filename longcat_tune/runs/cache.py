"""Fill the caches of a run: every clip, start image, caption and prompt, each encoded once in its life.

The text encoder comes first and is freed before the VAE loads; both are gone before the transformer does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from longcat_tune.config.run import RunConfig
from longcat_tune.data.cache import (
    LatentJob,
    TextJob,
    latents_sizes,
    text_bytes,
    unfinished,
)
from longcat_tune.data.cache_files import remove_leftovers
from longcat_tune.data.cache_fill import fill_latents, fill_text
from longcat_tune.data.sources import require_unchanged
from longcat_tune.data.transforms import load_chunks
from longcat_tune.data.video import VideoBackend
from longcat_tune.files import require_writable
from longcat_tune.log import progress
from longcat_tune.model.text_encoder import clean_prompt, load_text_encoder
from longcat_tune.model.vae import VideoAutoencoder
from longcat_tune.model.weights import read_transformer_config
from longcat_tune.runs.build import CheckpointFolders, find_checkpoint, pick_device
from longcat_tune.runs.cache_jobs import CachedRun, CacheJobs
from longcat_tune.runs.plan import RunPlan
from longcat_tune.runs.precision import DTYPES, text_encoder_weights
from longcat_tune.runs.preflight import preflight
from longcat_tune.sampling.requests import RenderRequest
from longcat_tune.training.trouble import explained_out_of_memory, free_memory
from longcat_tune.types import TextFeatures

logger = logging.getLogger(__name__)


def cache_latents(config: RunConfig, *, config_dir: Path) -> None:
    """Run the command `cache-latents`.

    Raises:
        UserError: a clip, caption or folder is unusable.
    """
    flight = preflight(config, config_dir=config_dir, trains=False)
    flight.require_sound()
    checkpoint = flight.checkpoint or find_checkpoint(config.model)
    cached = fill_caches(config, flight.plan, checkpoint, flight.requests, device=pick_device())
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
    jobs = CacheJobs(config, plan, checkpoint)
    cached = jobs.of_run(requests)
    latents_size = latents_sizes(jobs.channels)
    texts = unfinished(jobs.texts, least_bytes=text_bytes)
    latents = unfinished(jobs.latents, least_bytes=latents_size)
    for folder in {job.path.parent for job in texts} | {job.path.parent for job in latents}:
        require_writable(folder)
        remove_leftovers(folder)
    if texts:
        with explained_out_of_memory("encoding captions"):
            _encode_texts(texts, config, checkpoint, device)
        free_memory(device)
    if latents:
        with explained_out_of_memory("encoding clips"):
            _encode_latents(latents, config, checkpoint, device, latents_size)
        free_memory(device)
    return cached


def _encode_texts(
    jobs: Sequence[TextJob], config: RunConfig, checkpoint: CheckpointFolders, device: torch.device
) -> None:
    model = config.model
    weights = text_encoder_weights(model, device)
    encoder = load_text_encoder(
        checkpoint.text_encoder,
        choice=model.text_encoder,
        caption_channels=read_transformer_config(checkpoint.transformer)["caption_channels"],
        zero_pad=model.text_encoder_zero_pad,
        dtype=weights.dtype,
        device=device,
        prepare=weights.freeze if weights.quantize else None,
    )

    def encode(captions: Sequence[str]) -> Sequence[TextFeatures]:
        return encoder.encode([clean_prompt(caption) for caption in captions])

    with progress("Encoding captions", len(jobs)) as bar:
        made = fill_text(jobs, encode=encode, on_done=lambda _: bar.advance())
    _tell_share("captions", made, len(jobs))


def _encode_latents(
    jobs: Sequence[LatentJob],
    config: RunConfig,
    checkpoint: CheckpointFolders,
    device: torch.device,
    least_bytes: Callable[[LatentJob], int],
) -> None:
    vae = VideoAutoencoder.load(checkpoint.vae, dtype=DTYPES[config.model.vae_dtype], device=device)
    with progress("Encoding clips", len(jobs)) as bar:
        made = fill_latents(
            jobs,
            load_chunks=partial(load_job, backend=config.data.video_backend),
            encode=vae.encode,
            on_done=lambda job: bar.advance(job.bucket.name),
            least_bytes=least_bytes,
        )
    _tell_share("clips", made, len(jobs))


def load_job(job: LatentJob, *, backend: VideoBackend) -> Generator[Tensor, None, None]:
    """Read what is encoded, frames_CFHW uint8 in the VAE's chunks.

    The last one is followed by an error if the file is no longer the one it is named by.

    Raises:
        UnusableFileError: the file is unusable, damaged, or another one by now.
    """
    yield from load_chunks(
        job.source,
        job.picks.times,
        job.bucket,
        crop=job.crop,
        source_fps=job.source_fps,
        backend=backend,
    )
    require_unchanged(job.source, job.stamp)


def _tell_share(what: str, made: int, wanted: int) -> None:
    if made < wanted:
        logger.info("Encoded %d of %d %s here; the others came from another process", made, wanted, what)
