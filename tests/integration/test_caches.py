"""Caches filled by the real command: what a change encodes again, by whom, and what a kill leaves."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from longcat_tune.cli import main
from longcat_tune.config.run import RunConfig
from longcat_tune.data import cache
from longcat_tune.data.cache import ORIGIN
from longcat_tune.data.demo import demo_scenes
from longcat_tune.data.demo_drawing import render
from longcat_tune.model.text_encoder import TextEncoder
from longcat_tune.model.vae import VideoAutoencoder
from longcat_tune.model.weights import resolve_checkpoint
from longcat_tune.runs import cache as cache_run
from longcat_tune.runs.cache import cache_latents
from tests.builders import make_clips, make_run, video_entry
from tests.media_builders import write_clip

CLIPS = ["clips/clip-0.mp4", "clips/clip-1.mp4", "clips/clip-2.mp4"]
STILLS = ["stills/a.png", "stills/b.png"]


def make_world(folder: Path) -> list[dict[str, Any]]:
    """Three clips that are cropped and two pictures that are not, as dataset entries."""
    make_clips(folder / "clips", 3, size=(96, 64), frames=21)
    (folder / "stills").mkdir()
    for number, name in enumerate("ab"):
        picture = np.full((64, 64, 3), 40 * number, np.uint8)
        Image.fromarray(picture).save(folder / "stills" / f"{name}.png")
        (folder / "stills" / f"{name}.txt").write_text(f"a picture {name}")
    stills = {"id": "stills", "dataset_type": "image", "instance_data_dir": str(folder / "stills")}
    return [video_entry(folder / "clips"), stills]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world with its caches filled, to be copied."""
    folder = tmp_path_factory.mktemp("filled")
    config = make_run(folder, make_world(folder))
    cache_latents(config, config_dir=folder)
    assert sorted(clips_and_captions(cached_files(config))[0]) == CLIPS + STILLS
    return folder


def world_like(filled: Path, folder: Path) -> list[dict[str, Any]]:
    """A copy of it, whose files are found again by content alone; returns the dataset entries."""
    shutil.copytree(filled, folder, dirs_exist_ok=True)
    entries = json.loads((folder / "data.json").read_text().replace(str(filled), str(folder)))
    make_run(folder, entries)
    return entries


def clips_and_captions(files: Iterable[Path]) -> tuple[list[str], list[str]]:
    """What cached files were made from."""
    origins = [origin(path) for path in files]
    clips = sorted(one["clip"] for one in origins if "clip" in one)
    return clips, sorted(one["caption"] for one in origins if "caption" in one)


class Encodings:
    """Fills caches and tells what that encoded, by counting calls and by looking at the new files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = {"latents": 0, "text": 0}
        for kind, owner in (("latents", VideoAutoencoder), ("text", TextEncoder)):
            monkeypatch.setattr(owner, "encode", self._counted(kind, owner.encode))

    def _counted(self, kind: str, encode: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.calls[kind] += 1
            return encode(*args)

        return counted

    def of(self, config: RunConfig) -> tuple[list[str], list[str]]:
        """Clip ids and captions that a run encoded."""
        before = set(cached_files(config))
        self.calls |= {"latents": 0, "text": 0}
        cache_latents(config, config_dir=config.output.output_dir.parent)
        clips, captions = clips_and_captions(set(cached_files(config)) - before)
        assert self.calls == {"latents": len(clips), "text": len(captions)}
        return clips, captions


def cached_files(config: RunConfig) -> list[Path]:
    return sorted((config.output.output_dir / "cache").rglob("*.safetensors"))


def origin(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        about: dict[str, Any] = json.loads(file.metadata()[ORIGIN])
    return about


def digests(config: RunConfig) -> dict[str, str]:
    """The content of every cached file by its path inside the cache."""
    root = config.output.output_dir / "cache"
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in cached_files(config)
    }


def copied_vae(folder: Path, name: str, change: Callable[[bytes], bytes]) -> str:
    """A checkpoint with the miniature's VAE, one of its files changed."""
    shutil.copytree(resolve_checkpoint(None, flavour="tiny") / "vae", folder / "checkpoint" / "vae")
    path = folder / "checkpoint" / "vae" / name
    path.write_bytes(change(path.read_bytes()))
    return str(folder / "checkpoint")


def with_last_byte_changed(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def edit_caption(folder: Path) -> dict[str, Any]:
    (folder / "clips" / "clip-1.txt").write_text("an edited caption")
    return {}


def change_a_byte_of_a_clip(folder: Path) -> dict[str, Any]:
    path = folder / "clips" / "clip-1.mp4"
    # The encoder's name in the stream: the pictures stay what they are.
    assert path.read_bytes().count(b"x264 - core") == 1
    path.write_bytes(path.read_bytes().replace(b"x264 - core", b"x264 - Core"))
    return {}


def touch_everything(folder: Path) -> dict[str, Any]:
    for path in folder.rglob("*.*"):
        if path.suffix in {".mp4", ".png", ".txt"}:
            os.utime(path, (1, 1))
    return {}


def rename_a_clip(folder: Path) -> dict[str, Any]:
    for suffix in (".mp4", ".txt"):
        (folder / "clips" / f"clip-2{suffix}").rename(folder / "clips" / f"renamed{suffix}")
    return {}


@pytest.mark.parametrize(
    ("change", "clips", "captions"),
    [
        (edit_caption, [], ["an edited caption"]),
        (lambda _: {"resolution": 128}, CLIPS + STILLS, []),
        (lambda _: {"video": {"num_frames": 13}}, CLIPS, []),
        (lambda _: {"framerate": 12}, CLIPS, []),
        (lambda _: {"crop_style": "corner"}, CLIPS, []),
        (lambda _: {"video": {"num_frames": 9, "clip_selection": "middle"}}, CLIPS, []),
        (
            lambda folder: {
                "pretrained_vae_model_name_or_path": copied_vae(
                    folder, "config.json", lambda data: data + b" "
                )
            },
            CLIPS + STILLS,
            [],
        ),
        (
            lambda folder: {
                "pretrained_vae_model_name_or_path": copied_vae(
                    folder, "diffusion_pytorch_model.safetensors", with_last_byte_changed
                )
            },
            CLIPS + STILLS,
            [],
        ),
        (lambda _: {"vae_dtype": "fp32"}, CLIPS + STILLS, []),
        (lambda _: {"text_encoder_1_precision": "fp32"}, [], "all"),
        (change_a_byte_of_a_clip, ["clips/clip-1.mp4"], []),
        (touch_everything, [], []),
        (rename_a_clip, [], []),
        (lambda _: {"lora_rank": 4, "train_batch_size": 2, "seed": 7}, [], []),
    ],
)
def test_a_change_encodes_exactly_what_it_changes(filled, tmp_path, monkeypatch, change, clips, captions):
    of_datasets = ("video", "crop_style")
    datasets = world_like(filled, tmp_path)
    all_captions = clips_and_captions(cached_files(make_run(tmp_path, datasets)))[1]
    encodings = Encodings(monkeypatch)
    assert encodings.of(make_run(tmp_path, datasets)) == ([], [])
    changes = change(tmp_path)
    for dataset in datasets:
        dataset.update({key: changes[key] for key in of_datasets if key in changes})
    keys = {key: value for key, value in changes.items() if key not in of_datasets}
    expected = (clips, all_captions if captions == "all" else captions)
    assert encodings.of(make_run(tmp_path, datasets, **keys)) == expected
    assert encodings.of(make_run(tmp_path, datasets, **keys)) == ([], [])


def test_going_back_to_what_was_encodes_nothing(filled, tmp_path, monkeypatch):
    datasets, encodings = world_like(filled, tmp_path), Encodings(monkeypatch)
    assert encodings.of(make_run(tmp_path, datasets, framerate=12)) == (CLIPS, [])
    assert encodings.of(make_run(tmp_path, datasets)) == ([], [])


def test_windows_crops_start_images_and_folders_of_pictures_are_encoded_each_for_itself(
    tmp_path, monkeypatch
):
    folder = tmp_path / "sequences" / "walk"
    folder.mkdir(parents=True)
    for number, picture in enumerate(render(demo_scenes(1)[0], 96, 64, 21)):
        Image.fromarray(picture).save(folder / f"{number:04}.png")
    folder.with_suffix(".txt").write_text("a walk")
    make_clips(tmp_path / "clips", 2, size=(96, 64), frames=21)
    make_clips(tmp_path / "given", 1, size=(96, 64), frames=21)
    (tmp_path / "starts").mkdir()
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "starts" / "clip-0.png")
    datasets = [
        video_entry(tmp_path / "clips", video={"num_frames": 9, "clip_selection": "all"}),
        video_entry(tmp_path / "sequences", id="sequences", video={"num_frames": 9, "frames_fps": 15}),
        video_entry(
            tmp_path / "given", id="given", is_i2v=True, conditioning_data=["starts"], crop_style="random"
        ),
        {"id": "starts", "dataset_type": "conditioning", "instance_data_dir": str(tmp_path / "starts")},
    ]
    encodings = Encodings(monkeypatch)
    clips, _ = encodings.of(make_run(tmp_path, datasets))
    windows = [f"clips/clip-{clip}.mp4#{number}" for clip in (0, 1) for number in (1, 2)]
    assert clips == sorted([*windows, "sequences/walk", "given/clip-0.mp4", "clip-0.png"])
    datasets[1]["video"]["frames_fps"] = 30
    datasets[1]["video"]["num_frames"] = 5
    assert encodings.of(make_run(tmp_path, datasets)) == (["sequences/walk"], [])
    # Another seed crops the clip and its start image elsewhere, and nothing else.
    assert encodings.of(make_run(tmp_path, datasets, seed=7)) == (["clip-0.png", "given/clip-0.mp4"], [])


def test_a_warm_run_opens_no_clip_and_loads_no_encoder(filled, tmp_path, monkeypatch):
    config = make_run(tmp_path, world_like(filled, tmp_path))
    cache_latents(config, config_dir=tmp_path)
    for name in (
        "av.open",
        "PIL.Image.open",
        "hashlib.file_digest",
        "longcat_tune.runs.weight_hashes.file_hash",
        "longcat_tune.runs.cache.load_text_encoder",
        "longcat_tune.runs.cache.VideoAutoencoder.load",
        "longcat_tune.data.cache.safe_open",
    ):
        monkeypatch.setattr(name, None)
    made = {path: path.stat().st_mtime_ns for path in config.output.output_dir.rglob("*")}
    cache_latents(config, config_dir=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in config.output.output_dir.rglob("*")} == made


def test_a_warm_run_imports_neither_diffusers_nor_transformers(filled, tmp_path):
    world_like(filled, tmp_path)
    code = (
        "import sys; from longcat_tune.cli import main; code = main(sys.argv[1:]); "
        "print(code, sorted({'diffusers', 'transformers', 'peft', 'accelerate'} & sys.modules.keys()))"
    )
    words = ["cache-latents", "--config", str(tmp_path / "config.json")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_an_unusable_clip_stops_the_filling_and_a_restored_one_goes_on(tmp_path, monkeypatch, capsys):
    make_run(tmp_path, make_world(tmp_path))
    broken = tmp_path / "clips" / "clip-1.mp4"
    whole = broken.read_bytes()
    words = ["cache-latents", "--config", str(tmp_path / "config.json")]

    def cut(*_: object, **__: object) -> None:
        broken.write_bytes(whole[: len(whole) // 2])

    with monkeypatch.context() as patch:
        patch.setattr("longcat_tune.runs.cache._encode_texts", cut)
        assert main(words) == 1
    assert str(broken) in capsys.readouterr().err
    broken.write_bytes(whole)
    assert main(words) == 0


def test_a_clip_that_is_replaced_while_it_is_encoded_is_not_stored_under_its_old_name(
    tmp_path, monkeypatch, capsys
):
    config = make_run(tmp_path, make_world(tmp_path))
    words = ["cache-latents", "--config", str(tmp_path / "config.json")]
    replaced, other = (tmp_path / "clips" / f"clip-{number}.mp4" for number in (1, 2))
    encode_texts = cache_run._encode_texts

    def encode_and_replace(*args: Any) -> None:
        encode_texts(*args)
        # As many frames of the same size, so that decoding sees no change.
        replaced.write_bytes(other.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(cache_run, "_encode_texts", encode_and_replace)
        assert main(words) == 1
    told = (
        f"{replaced} is no longer the file that was looked at; it changed after it was planned: start again"
    )
    assert told in capsys.readouterr().err
    clips, _ = clips_and_captions(cached_files(config))
    assert clips == ["clips/clip-0.mp4", "clips/clip-2.mp4", *STILLS]
    # Planned anew, it is a copy of a clip whose latents are there.
    assert main(words) == 0
    assert clips_and_captions(cached_files(config))[0] == clips


def warm_processes() -> ForkServerContext:
    """Processes that start with everything imported, so that killing them kills work and not imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "longcat_tune.runs.cache",
            "diffusers.models.autoencoders.autoencoder_kl_wan",
            "transformers.models.umt5.modeling_umt5",
            "transformers.models.auto.tokenization_auto",
        ]
    )
    return context


SHARED_ROUNDS = 6
"""So many files each of two processes makes at the same time as the other, however the machine is loaded."""


def fill_and_tell(config: Path, told: Path, together: Barrier) -> None:
    """Run the command and write down which files this process made."""
    made = []
    write = cache.write_tensors_atomically

    def noted(path: Path, *rest: Any) -> None:
        if len(made) < SHARED_ROUNDS:
            together.wait(120)
        write(path, *rest)
        made.append(path.name)

    cache.write_tensors_atomically = noted
    assert main(["cache-latents", "--config", str(config)]) == 0
    told.write_text("\n".join(made))


def test_two_processes_share_one_cache_and_encode_every_item_once(tmp_path):
    make_clips(tmp_path / "clips", 30)
    for name in ("alone", "shared"):
        (tmp_path / name).mkdir()
    alone, shared = (
        make_run(tmp_path / name, [video_entry(tmp_path / "clips")]) for name in ("alone", "shared")
    )
    cache_latents(alone, config_dir=tmp_path)

    context, told = warm_processes(), [tmp_path / "one.txt", tmp_path / "other.txt"]
    config = tmp_path / "shared" / "config.json"
    together = context.Barrier(2)
    processes = [context.Process(target=fill_and_tell, args=(config, path, together)) for path in told]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    one, other = (path.read_text().splitlines() for path in told)
    assert digests(shared) == digests(alone)
    assert sorted(one + other) == sorted(path.name for path in cached_files(alone))
    assert min(len(one), len(other)) >= SHARED_ROUNDS, (len(one), len(other))


PEAKS = """
import sys
from functools import partial
from pathlib import Path

import torch

from longcat_tune.data import cache_fill
from longcat_tune.data.cache import LatentJob
from longcat_tune.data.transforms import load_chunks
from longcat_tune.training.process_memory import host_peak_bytes
from longcat_tune.types import Bucket, FramePicks, Stamp

cache_fill.decode_ahead = partial(cache_fill.decode_ahead, max_bytes=12 << 20)
for num_frames in (93, 933):
    bucket = Bucket(256, 256, num_frames)
    job = LatentJob(
        "clip", Path(sys.argv[1]), Stamp(1, 1), FramePicks(0, num_frames, 30.0), bucket, (0.5, 0.5), None,
        Path(sys.argv[2]) / f"{num_frames}.latents.safetensors",
    )
    cache_fill.fill_latents(
        [job],
        load_chunks=lambda job: load_chunks(job.source, job.picks.times, job.bucket),
        encode=lambda chunks: torch.tensor([chunk.float().mean().item() for chunk in chunks]),
        on_done=lambda job: None,
        least_bytes=lambda job: 1,
    )
    print(host_peak_bytes())
"""
"""Decodes 93 and then 933 frames of a clip into the cache, and prints the most memory so far in bytes."""


def test_memory_does_not_grow_with_the_clip(tmp_path):
    clip = write_clip(tmp_path / "long.mp4", frames=933)
    words = [sys.executable, "-c", PEAKS, str(clip), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    short, long = map(int, done.stdout.split())
    # As bytes the long clip is 183 MB, as numbers 734 MB; the queue of a clip holds 4 MB here.
    assert long - short < 20_000_000, f"{short} bytes for 93 frames, {long} for 933"


@pytest.mark.slow
def test_filling_that_is_killed_20_times_ends_like_one_that_is_not(tmp_path):
    make_clips(tmp_path / "clips", 100)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, killed = (
        make_run(tmp_path / name, [video_entry(tmp_path / "clips")]) for name in ("whole", "killed")
    )
    cache_latents(whole, config_dir=tmp_path)
    expected = digests(whole)

    context, draw = warm_processes(), random.Random(20)
    words = ["cache-latents", "--config", str(tmp_path / "killed" / "config.json")]
    kills = midway = 0
    while kills < 20:
        process = context.Process(target=main, args=(words,))
        count = len(cached_files(killed))
        process.start()
        # Every fourth at any time from the start on, the others while a file is being made.
        if kills % 4:
            wanted = count + draw.randint(1, 3)
            while process.is_alive() and len(cached_files(killed)) < wanted:
                time.sleep(0.003)
        time.sleep(draw.uniform(0, 0.03 if kills % 4 else 0.6))
        if not process.is_alive():
            assert process.exitcode == 0
            shutil.rmtree(killed.output.output_dir)  # it was faster than we are: start again
            continue
        process.kill()
        process.join()
        kills += 1
        midway += count < len(cached_files(killed)) < len(expected)
        assert digests(killed).items() <= expected.items()
    assert midway > 10, "most kills came before or after the work"
    cache_latents(killed, config_dir=tmp_path)
    assert digests(killed) == expected
