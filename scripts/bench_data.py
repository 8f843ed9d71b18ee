"""Measure the way of the data, one part at a time; each part gives one JSON object with its machine.

    OMP_NUM_THREADS=1 python scripts/bench_data.py batches --save

A new part is a function from its options to its results, and a subcommand in `parse`. Memory is read from
/proc, so Linux is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from bench_data_parts import measure_caching, measure_starts

from longcat_tune.config.load import load_run_config
from longcat_tune.data.batches import step_batches
from longcat_tune.data.epochs import Cursor
from longcat_tune.data.sampler import BucketSampler
from longcat_tune.files import write_json_atomically, write_tensors_atomically
from longcat_tune.runs.resume import fingerprint
from longcat_tune.types import Bucket, CachedSample, Task, TrainingSet

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
PACKAGES = ("torch", "safetensors")
CLIP = Bucket(832, 480, 93)
BUCKETS = (CLIP, Bucket(480, 832, 93), Bucket(640, 512, 93))
LATENT_CHANNELS, TEXT_SHAPE = 16, (512, 4096)
MIB = 2**20

Results = dict[str, Any]


def measure_batches(options: argparse.Namespace) -> Results:
    """Read cached clips from the page cache: speed, what a step waits for, and memory over many batches."""
    with tempfile.TemporaryDirectory() as folder:
        sampler = sampler_on_disk(Path(folder), options.clips)
        rates = [rate(sampler, options, seconds=options.seconds) for _ in range(options.repetitions)]
        waits = [waiting(sampler, options, step_seconds=0.05) for _ in range(options.repetitions)]
        memory = resident_memory(sampler, options)
    return {
        "batch": {
            "latents": [LATENT_CHANNELS, *CLIP.latent_shape],
            "text": TEXT_SHAPE,
            "dtype": "bfloat16",
            "mib": round(
                (LATENT_CHANNELS * CLIP.num_tokens * 4 + TEXT_SHAPE[0] * TEXT_SHAPE[1]) * 2 / MIB, 1
            ),
        },
        "batches_per_second": spread(rates),
        "wanted_batches_per_second": 20,
        "milliseconds_waited_in_steps_of_50": {
            "median": spread([statistics.median(wait) for wait in waits]),
            "95th_percentile": spread([statistics.quantiles(wait, n=20)[-1] for wait in waits]),
            "max": spread([max(wait) for wait in waits]),
        },
        "resident_memory_mib": memory,
    }


def sampler_on_disk(folder: Path, clips: int) -> BucketSampler:
    """Write random clips and captions of the real size, which also puts them into the page cache."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for number in range(clips):
        latents_path = folder / f"{number}.latents.safetensors"
        text_path = folder / f"{number}.text.safetensors"
        latents_CTHW = torch.randn(LATENT_CHANNELS, *CLIP.latent_shape, generator=generator)
        write_tensors_atomically(latents_path, {"latents": latents_CTHW.bfloat16()}, {})
        text_LD = torch.randn(TEXT_SHAPE, generator=generator)
        write_tensors_atomically(text_path, {"text": text_LD.bfloat16()}, {})
        samples.append(CachedSample(f"clips/{number}", CLIP, (latents_path,), None, (text_path,)))
    training = TrainingSet("clips", tuple(samples))
    return BucketSampler((training,), samples[0].text_paths[0], 1, 42, 0.1, accumulation=1)


def steps_of(sampler: BucketSampler, options: argparse.Namespace) -> Any:
    return closing(step_batches(sampler, start=Cursor(0, 0), pin_memory=False, workers=options.workers))


def rate(sampler: BucketSampler, options: argparse.Namespace, *, seconds: float) -> float:
    """Batches per second, for a consumer that does nothing else."""
    with steps_of(sampler, options) as steps:
        for _ in islice(steps, 20):
            pass
        begun, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - begun) < seconds:
            next(steps)
            count += 1
    return count / passed


def waiting(sampler: BucketSampler, options: argparse.Namespace, *, step_seconds: float) -> list[float]:
    """Milliseconds that each step waits for its batch; the step itself leaves the processor free."""
    waits = []
    with steps_of(sampler, options) as steps:
        for _ in range(int(options.seconds / step_seconds)):
            begun = time.perf_counter()
            fresh = next(steps)
            waits.append((time.perf_counter() - begun) * 1000)
            step = fresh  # As in the loop, the step before is freed only now.
            time.sleep(step_seconds)
        del step
    return waits[3:]


def resident_memory(sampler: BucketSampler, options: argparse.Namespace) -> Results:
    """Resident memory every 100 batches, after a tenth of them as warm-up."""
    found = []
    with steps_of(sampler, options) as steps:
        for number, _ in enumerate(islice(steps, options.batches), start=1):
            if number >= options.batches // 10 and number % 100 == 0:
                found.append(resident_mib())
    tenth = max(1, len(found) // 10)
    return {
        "batches": options.batches,
        "first": found[0],
        "last": found[-1],
        "min": min(found),
        "max": max(found),
        "median_of_first_tenth": round(statistics.median(found[:tenth]), 1),
        "median_of_last_tenth": round(statistics.median(found[-tenth:]), 1),
    }


def measure_order(options: argparse.Namespace) -> Results:
    """Plan an epoch of many clips, and hash what its order follows from; no file is opened but a config."""
    samples = tuple(
        CachedSample(
            f"clips/folder/clip number {number:06d}.mp4",
            BUCKETS[number % len(BUCKETS)],
            (Path(f"{number}.0"), Path(f"{number}.1")),
            None,
            (Path(f"{number}.text"),),
        )
        for number in range(options.clips)
    )
    training = TrainingSet("clips", samples, tasks=(Task(0, 0.5), Task(1, 0.5)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps({"model_flavour": "tiny", "output_dir": folder, "max_train_steps": 1}))
        config = load_run_config(path, {})

    def construct() -> BucketSampler:
        return BucketSampler((training,), Path("empty"), 1, 42, 0.1, accumulation=1)

    sampler = construct()
    return {
        "clips": options.clips,
        "construct_seconds": spread(timed(construct, options.repetitions)),
        "epoch_seconds": spread(timed(lambda: sampler.epoch(0), options.repetitions)),
        "fingerprint_seconds": spread(timed(lambda: fingerprint(config, (training,)), options.repetitions)),
        "wanted_seconds": {"construct": 0.3, "epoch": 1, "fingerprint": 0.5},
    }


def timed(action: Callable[[], object], repetitions: int) -> list[float]:
    """Seconds of each repetition."""
    seconds = []
    for _ in range(repetitions):
        begun = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begun)
    return seconds


def spread(values: Sequence[float]) -> Results:
    """All values beside their median."""
    return {"median": round(statistics.median(values), 3), "all": [round(value, 3) for value in values]}


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / MIB, 1)


def machine() -> Results:
    """What the figures were taken on."""
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return {
        "processor": models[0].split(":")[1].strip() if models else platform.machine(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--save", action="store_true", help="write benchmarks/results/data_<part>.json too")
    common.add_argument("--repetitions", type=int, default=3)
    parts = parser.add_subparsers(dest="part", required=True)

    batches = parts.add_parser("batches", parents=[common], help=measure_batches.__doc__)
    batches.add_argument("--clips", type=int, default=64, help="9 MB of disk each")
    batches.add_argument("--workers", type=int, default=2)
    batches.add_argument("--seconds", type=float, default=10.0, help="of each repetition")
    batches.add_argument("--batches", type=int, default=10_000, help="read for the memory figures")
    batches.set_defaults(measure=measure_batches)

    order = parts.add_parser("order", parents=[common], help=measure_order.__doc__)
    order.add_argument("--clips", type=int, default=100_000)
    order.set_defaults(measure=measure_order)

    starts = parts.add_parser("starts", parents=[common], help=measure_starts.__doc__)
    starts.add_argument("--clips", type=int, nargs="+", default=[8, 1_000, 10_000, 100_000])
    starts.set_defaults(measure=measure_starts)

    caching = parts.add_parser("caching", parents=[common], help=measure_caching.__doc__)
    caching.add_argument("--clips", type=int, default=12)
    caching.add_argument("--width", type=int, default=128)
    caching.add_argument("--height", type=int, default=96)
    caching.add_argument("--scale", type=int, default=10, help="of the source's sides to the bucket's")
    caching.set_defaults(measure=measure_caching)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    report = {
        "part": options.part,
        "command": " ".join(["python scripts/bench_data.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "results": options.measure(options),
    }
    print(json.dumps(report, indent=2))
    if options.save:
        write_json_atomically(RESULTS / f"data_{options.part}.json", report)


if __name__ == "__main__":
    main()
