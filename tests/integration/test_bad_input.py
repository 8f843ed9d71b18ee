"""What a user's mistake looks like at the command line: message, exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from torch import cuda, zeros

from longcat_tune.cli import main
from longcat_tune.data.video import write_mp4
from longcat_tune.model.weights import INDEX_NAME, resolve_checkpoint
from tests.builders import make_clips, stills_entry, video_entry

REPLACE = "replace the file or take it out of the folder"


def run(
    folder: Path, datasets: list[dict[str, Any]], command: str = "cache-latents", **keys: Any
) -> tuple[int, Path]:
    (folder / "data.json").write_text(json.dumps(datasets))
    values = {
        "model_flavour": "tiny",
        "data_backend_config": "data.json",
        "output_dir": str(folder / "out"),
        "resolution": 64,
        "framerate": 15,
        "max_train_steps": 1,
    }
    path = folder / "config.json"
    path.write_text(json.dumps(values | keys))
    return main([command, "--config", str(path)]), path


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The error alone: the log stands on the same stream."""
    _, mark, message = capsys.readouterr().err.partition("error: ")
    assert mark
    return message.strip()


def test_a_size_off_the_grid(tmp_path: Path, capsys) -> None:
    code, path = run(tmp_path, [], validation_resolution="480x830")
    assert code == 2
    assert error_of(capsys) == (
        f"{path}: validation_resolution (480x830) must have a width and a height divisible by 16; "
        "use 480x816 or 480x832"
    )


def test_frames_that_are_not_4k_plus_1(tmp_path: Path, capsys) -> None:
    code, path = run(tmp_path, [], validation_num_video_frames=50)
    assert code == 2
    assert error_of(capsys) == f"{path}: validation_num_video_frames (50) must be 4k + 1; use 49 or 53"


def test_two_entries_with_one_id(tmp_path: Path, capsys) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    code, _ = run(tmp_path, [video_entry(clips), video_entry(clips)])
    assert code == 2
    assert error_of(capsys) == f"{tmp_path / 'data.json'}: id (clips) is used by 2 entries; give each its own"


def one_problem(message: str) -> str:
    """The line of the only problem."""
    head, line = message.splitlines()
    assert head == "1 problem; `longcat-tune check` shows the whole picture:"
    return line.strip()


@pytest.mark.parametrize("command", ["train", "cache-latents"])
def test_a_caption_that_is_missing(tmp_path: Path, capsys, command: str) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    (clips / "clip-1.txt").unlink()
    code, _ = run(tmp_path, [video_entry(clips)], command)
    assert code == 1
    assert one_problem(error_of(capsys)) == (
        f"clips: {clips / 'clip-1.mp4'} has no caption: {clips / 'clip-1.txt'} does not exist; write its "
        'caption there, set empty_caption to "use" for the empty prompt, or caption_strategy to "filename", '
        '"instanceprompt" or null'
    )
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_caption_that_is_empty(tmp_path: Path, capsys) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    (clips / "clip-0.txt").write_text(" \n")
    code, _ = run(tmp_path, [video_entry(clips)])
    assert code == 1
    trouble = f"clips: {clips / 'clip-0.mp4'} has no caption: {clips / 'clip-0.txt'} is empty"
    assert one_problem(error_of(capsys)).startswith(f"{trouble}; write its caption there")


def test_a_start_image_that_is_missing_names_the_clip_and_every_path_tried(tmp_path: Path, capsys) -> None:
    clips, stills, more = make_clips(tmp_path / "clips", 2), tmp_path / "stills", tmp_path / "more"
    for folder in (stills, more):
        folder.mkdir()
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "clip-2.webp")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(stills / "clip-0.webp")
    datasets = [
        video_entry(clips, is_i2v=True, conditioning_data=["stills", "more"]),
        stills_entry(stills),
        stills_entry(more, id="more"),
    ]
    code, _ = run(tmp_path, datasets)
    assert code == 1
    assert one_problem(error_of(capsys)) == (
        f"clips: {clips / 'clip-1.mp4'} has no conditioning image; tried "
        f"{stills / 'clip-1'}.{{png,jpg,jpeg,webp,bmp,tif,tiff}} and "
        f"{more / 'clip-1'}.{{png,jpg,jpeg,webp,bmp,tif,tiff}}; add it, or leave conditioning_data out to "
        "start from the clip's own first frame"
    )


def test_two_datasets_that_are_broken_are_told_together(tmp_path: Path, capsys) -> None:
    clips, gone, table = make_clips(tmp_path / "clips", 2), tmp_path / "gone", tmp_path / "captions.jsonl"
    (clips / "clip-0.mp4").write_bytes(b"")
    table.write_text('{"name": "clip-0.mp4"}\n')
    in_table = {"caption_strategy": "jsonl", "caption_table": {"path": str(table)}}
    datasets = [video_entry(clips), video_entry(gone, id="gone"), video_entry(clips, id="table", **in_table)]
    code, _ = run(tmp_path, datasets)
    assert code == 1
    head, *lines = error_of(capsys).splitlines()
    assert head.startswith("4 problems;")
    assert sorted(line.split()[:2] for line in lines) == [
        ["clips:", str(clips / "clip-0.mp4")],
        ["gone:", str(gone)],
        ["table:", str(table)],
        ["table:", str(clips / "clip-0.mp4")],
    ]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("empty", f"is empty (0 bytes); {REPLACE}"),
        ("truncated", "is damaged or cut off 0.40 s after its start; copy or export it again"),
        ("text", f"cannot be read as a video (Invalid data found when processing input); {REPLACE}"),
    ],
)
def test_a_video_that_cannot_be_read(tmp_path: Path, capsys, damage: str, words: str) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    path = clips / "clip-0.mp4"
    content = {"empty": b"", "truncated": path.read_bytes()[:-400], "text": b"not a video\n" * 50}
    path.write_bytes(content[damage])
    code, _ = run(tmp_path, [video_entry(clips)])
    assert code == 1
    assert one_problem(error_of(capsys)) == f"clips: {path} {words}"


def test_a_clip_shorter_than_num_frames(tmp_path: Path, capsys) -> None:
    clips = make_clips(tmp_path / "clips", 1, frames=7)
    code, _ = run(tmp_path, [video_entry(clips)], "check")
    assert code == 1
    shown = capsys.readouterr()
    assert shown.err.endswith("error: 1 problem; each is listed above with its remedy\n")
    head, line = shown.out.splitlines()[-2:]
    assert head == "1 problem:"
    assert line == (
        f"  clips: {clips / 'clip-0.mp4'} has 7 frames at 15 fps, fewer than video.num_frames (9); "
        "lower video.num_frames to 5, set allow_short to true, or set video.bucket_strategy to "
        '"resolution_frames"'
    )


def test_a_check_on_a_disk_that_cannot_be_written_to(tmp_path: Path, capsys) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    (tmp_path / "out").write_text("in the way")
    code, _ = run(tmp_path, [video_entry(clips)], "check")
    shown = capsys.readouterr()
    assert code == 0
    assert shown.out.splitlines()[-1] == "No problems."
    assert shown.err.count("every file is examined again") == 1


def test_a_cache_folder_that_is_not_writable(tmp_path: Path, capsys) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):
        # The superuser may write anywhere; a file in the folder's place stops everybody.
        locked.rmdir()
        locked.write_text("")
    code, _ = run(tmp_path, [video_entry(clips, cache_dir_vae=str(locked / "cache"))])
    assert code == 1
    assert str(locked) in error_of(capsys)


def test_a_checkpoint_folder_that_is_incomplete_names_the_file(tmp_path: Path, capsys) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(resolve_checkpoint(None, flavour="tiny"), checkpoint)
    shard = checkpoint / "dit" / "diffusion_pytorch_model-00002-of-00002.safetensors"
    shard.unlink()
    assert (checkpoint / "dit" / INDEX_NAME).is_file()
    code, _ = run(
        tmp_path,
        [video_entry(make_clips(tmp_path / "clips", 1))],
        "train",
        pretrained_model_name_or_path=str(checkpoint),
    )
    assert code == 1
    assert error_of(capsys) == f"{shard}: this shard is missing; fetch the checkpoint again"


@pytest.mark.skipif(cuda.is_available(), reason="tells what a machine without CUDA is told")
@pytest.mark.parametrize("kernel", ["flash", "sage"])
def test_an_attention_kernel_that_cannot_train_here_is_refused_first(tmp_path, capsys, kernel) -> None:
    entries = [video_entry(make_clips(tmp_path / "clips", 1))]
    code, _ = run(tmp_path, entries, "train", attention_implementation=kernel)
    rule = "needs a CUDA device" if kernel == "flash" else "has no backward pass"
    assert code == (1 if kernel == "flash" else 2)
    assert error_of(capsys).startswith(f"attention_implementation ({kernel}): {rule}")
    assert not list((tmp_path / "out").glob("**/*.safetensors"))


def test_nothing_to_render(tmp_path: Path, capsys) -> None:
    code, _ = run(tmp_path, [], "validate", data_backend_config=None)
    assert code == 2
    assert error_of(capsys) == (
        "nothing to render: give --prompt TEXT, or set validation_prompt, validation_prompt_library or "
        "user_prompt_library, or set validation_using_datasets with eval_dataset_id"
    )


def test_a_lora_that_does_not_exist(tmp_path: Path, capsys) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_flavour": "tiny", "output_dir": str(tmp_path / "out")}))
    missing = tmp_path / "no.safetensors"
    assert main(["validate", "--config", str(config), "--lora", str(missing), "--prompt", "a cat"]) == 1
    assert error_of(capsys) == f"LoRA file {missing} does not exist; give a complete safetensors file"


def test_a_lora_of_another_model_is_named(tmp_path: Path, capsys) -> None:
    lora = tmp_path / "other.safetensors"
    name = "transformer.blocks.0.attn.qkv"
    save_file({f"{name}.lora_A.weight": zeros(2, 8), f"{name}.lora_B.weight": zeros(24, 2)}, lora)
    config = tmp_path / "config.json"
    values = {"model_flavour": "tiny", "output_dir": str(tmp_path / "out")}
    config.write_text(json.dumps(values))
    assert main(["validate", "--config", str(config), "--lora", str(lora), "--prompt", "a cat"]) == 1
    message = error_of(capsys)
    assert message.startswith(f"--lora ({lora}): the LoRA's blocks.0.attn.qkv takes 8 and gives 24 values")
    assert "give a LoRA that was trained on the model of this config" in message


def test_a_training_without_a_length(tmp_path: Path, capsys) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    code, _ = run(tmp_path, [video_entry(clips)], "train", max_train_steps=None)
    assert code == 2
    assert error_of(capsys).startswith("max_train_steps and num_train_epochs (both null): one must be given")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_frames_of_an_odd_size_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="even"):
        write_mp4(tmp_path / "odd.mp4", np.zeros((5, 33, 64, 3), np.uint8), 15.0)
    assert not list(tmp_path.iterdir())
