"""The command `cache decode`: cached latents as a video that people can look at."""

from __future__ import annotations

import difflib
import logging
import re
from pathlib import Path

from longcat_tune.config.run import RunConfig
from longcat_tune.data.cache import LATENTS_SUFFIX, read_latents
from longcat_tune.data.video import write_mp4
from longcat_tune.errors import ConfigError, DataError
from longcat_tune.log import output
from longcat_tune.model.vae import VideoAutoencoder
from longcat_tune.runs.build import find_checkpoint, pick_device
from longcat_tune.runs.cache_jobs import CachedRun, wanted_by
from longcat_tune.runs.precision import DTYPES
from longcat_tune.sampling.pictures import to_frames
from longcat_tune.training.trouble import explained_out_of_memory

logger = logging.getLogger(__name__)

LISTED_AT_MOST = 20


def decode(config: RunConfig, *, config_dir: Path, clip: str | None, out: Path | None) -> None:
    """Show cached latents as an mp4, or list the clips when none is named.

    Args:
        config: what was asked; its VAE decodes, and the video has its framerate.
        config_dir: where relative paths of the config start.
        clip: id of a clip, or path of a file with latents.
        out: the mp4; None: `output_dir/decoded/<name>.mp4`.

    Raises:
        ConfigError: no clip has this id.
        DataError: it is not encoded yet, or its file is damaged.
        UserError: the plan cannot be made, the device has no room, or the mp4 cannot be written.
    """
    if clip is not None and clip.endswith(LATENTS_SUFFIX):
        path, name = Path(clip), Path(clip).name.removesuffix(LATENTS_SUFFIX)
    else:
        _, cached = wanted_by(config, config_dir)
        if clip is None:
            _list_clips(cached)
            return
        path, name = _latents_of(clip, cached), clip
    latents_CTHW = read_latents(path)
    checkpoint, device = find_checkpoint(config.model), pick_device()
    with explained_out_of_memory("decoding"):
        vae = VideoAutoencoder.load(checkpoint.vae, dtype=DTYPES[config.model.vae_dtype], device=device)
        frames_FHW3 = to_frames(vae.decode(latents_CTHW))
    safe_name = re.sub(r"[^\w-]+", "-", name).strip("-")
    target = out or config.output.output_dir / "decoded" / f"{safe_name}.mp4"
    write_mp4(target, frames_FHW3, config.data.framerate)
    output.print(str(target), markup=False, highlight=False)


def _latents_of(clip: str, cached: CachedRun) -> Path:
    """The latents of a clip's first window."""
    paths = {sample.clip_id: sample.latents_paths for sample in cached.samples}
    if clip not in paths:
        near = difflib.get_close_matches(clip, paths, n=3) or list(paths)[:3]
        raise ConfigError(
            f"CLIP ({clip}) must be the id of a clip or a *{LATENTS_SUFFIX} file; the nearest ids are "
            f"{', '.join(near)}"
        )
    first, *others = paths[clip]
    if not first.exists():
        raise DataError(f"{clip} is not encoded yet ({first} is missing); run `longcat-tune cache-latents`")
    if others:
        logger.info("%s has %d windows and this is the first; the others: %s", clip, len(paths[clip]),
                    ", ".join(map(str, others)))  # fmt: skip
    return first


def _list_clips(cached: CachedRun) -> None:
    ids = [sample.clip_id for sample in cached.samples]
    more = [f"... and {len(ids) - LISTED_AT_MOST:,} more"] if len(ids) > LISTED_AT_MOST else []
    lines = ["clips to decode:", *ids[:LISTED_AT_MOST], *more]
    output.print("\n".join(lines), markup=False, highlight=False)
