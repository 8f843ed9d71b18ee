"""Parts of bench_data.py that run whole commands: starts on many clips, and filling a cache."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from longcat_tune.data.cache import LatentJob
from longcat_tune.data.cache_fill import fill_latents
from longcat_tune.data.demo import demo_scenes
from longcat_tune.data.demo_drawing import render
from longcat_tune.data.sources import stamp_of
from longcat_tune.data.transforms import load_chunks
from longcat_tune.data.video import write_mp4
from longcat_tune.model.vae import VideoAutoencoder
from longcat_tune.model.weights import resolve_checkpoint
from longcat_tune.types import Bucket, FramePicks

Results = dict[str, Any]
MIB = 2**20
CAPTIONS = 1000
"""Different ones among many clips: each is encoded once before the warm starts, at 50 a second."""


def measure_starts(options: argparse.Namespace) -> Results:
    """Start check and train again and again on hard links to eight small clips, each with a caption."""
    results: Results = {}
    for count in options.clips:
        with tempfile.TemporaryDirectory() as folder:
            config = many_clips(Path(folder), count)
            cold = run_command(config, "check")
            fill = run_command(config, "cache-latents")
            results[str(count)] = {
                "check_cold": cold,
                "cache_latents_cold": fill,
                "check_warm": [run_command(config, "check") for _ in range(options.repetitions)],
                "train_warm": [train_start(config) for _ in range(options.repetitions)],
            }
    results["wanted"] = {"check_warm_seconds": 15, "train_warm_seconds": 5, "mib": 1024}
    return results


def many_clips(folder: Path, count: int) -> Path:
    """Hard links with captions, a thousand in a folder; returns the config."""
    originals = folder / "originals"
    for number, scene in enumerate(demo_scenes(8)):
        write_mp4(originals / f"{number}.mp4", render(scene, 64, 64, 9), 15.0)
    for number in range(count):
        clip = folder / "clips" / f"part-{number // 1000:03d}" / f"clip {number:06d}.mp4"
        clip.parent.mkdir(parents=True, exist_ok=True)
        os.link(originals / f"{number % 8}.mp4", clip)
        clip.with_suffix(".txt").write_text(f"caption number {number % CAPTIONS} of a red circle")
    entry = {"id": "clips", "instance_data_dir": str(folder / "clips"), "video": {"num_frames": 9}}
    (folder / "data.json").write_text(json.dumps([entry]))
    values = {
        "model_flavour": "tiny",
        "data_backend_config": "data.json",
        "output_dir": str(folder / "out"),
        "resolution": 64,
        "framerate": 15,
        "max_train_steps": 1,
        "validation_on_startup": False,
        "validation_step_interval": 0,
    }
    (folder / "config.json").write_text(json.dumps(values))
    return folder / "config.json"


def run_command(config: Path, command: str) -> Results:
    """A whole process: wall time, processor time, peak resident memory."""
    return finished(started(config, command))


def train_start(config: Path) -> Results:
    """A training process up to its first step; its checkpoint is not gone on from."""
    events = config.parent / "out" / "events.jsonl"
    events.unlink(missing_ok=True)
    begun = time.perf_counter()
    process = started(config, "train", "--resume_from_checkpoint", "latest")
    to_caches = None
    while process.poll() is None and to_caches is None:
        if events.is_file() and b"run_start" in events.read_bytes():
            to_caches = time.perf_counter() - begun
        time.sleep(0.01)
    return {"seconds_to_run_start": round(to_caches or 0.0, 2), **finished(process)}


def started(config: Path, command: str, *options: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "longcat_tune", command, "--config", str(config), *options]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finished(process: subprocess.Popen[bytes]) -> Results:
    begun = time.perf_counter()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "exit_code": process.returncode,
        "seconds": round(time.perf_counter() - begun, 2),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": round(usage.ru_maxrss * 1024 / MIB),
    }


def measure_caching(options: argparse.Namespace) -> Results:
    """Decode alone, encode alone, and both together as cache-latents does, with the miniature's VAE."""
    bucket = Bucket(options.width, options.height, 93)
    vae = VideoAutoencoder.load(
        resolve_checkpoint(None, flavour="tiny"), dtype=torch.float32, device=torch.device("cpu")
    )
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            LatentJob(
                clip_id=f"clips/{number}",
                source=(source := write_source(Path(folder), number, options.scale)),
                stamp=stamp_of(source),
                picks=FramePicks(0, bucket.num_frames, 30.0),
                bucket=bucket,
                crop=(0.5, 0.5),
                source_fps=None,
                path=Path(folder) / f"{number}.latents.safetensors",
            )
            for number in range(options.clips)
        ]
        pixels = list(chunks_of(jobs[0]))
        times: dict[str, list[float]] = {"decode": [], "encode": [], "together": []}
        for _ in range(options.repetitions):
            times["decode"].append(seconds(lambda: [sum(1 for _ in chunks_of(job)) for job in jobs]))
            times["encode"].append(seconds(lambda: [vae.encode(iter(pixels)) for _ in jobs]))
            times["together"].append(seconds(lambda: fill(jobs, vae)))
            for job in jobs:
                job.path.unlink()
    ratios = [
        together / max(decode, encode)
        for decode, encode, together in zip(times["decode"], times["encode"], times["together"], strict=True)
    ]
    return {
        "clips": options.clips,
        "source": [bucket.width * options.scale, bucket.height * options.scale],
        "bucket": bucket.name,
        "seconds": {name: [round(value, 2) for value in values] for name, values in times.items()},
        "together_over_the_slower": [round(ratio, 3) for ratio in ratios],
        "wanted": 1.15,
    }


def write_source(folder: Path, number: int, scale: int) -> Path:
    path = folder / f"{number}.mp4"
    write_mp4(path, render(demo_scenes(8)[number % 8], 128 * scale, 96 * scale, 93), 30.0)
    return path


def chunks_of(job: LatentJob) -> Iterator[torch.Tensor]:
    return load_chunks(job.source, job.picks.times, job.bucket, crop=job.crop, source_fps=job.source_fps)


def fill(jobs: list[LatentJob], vae: VideoAutoencoder) -> None:
    fill_latents(
        jobs, load_chunks=chunks_of, encode=vae.encode, on_done=lambda _: None, least_bytes=lambda _: 1
    )


def seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun
