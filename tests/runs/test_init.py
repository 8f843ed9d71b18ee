"""What `init` writes passes `check` on the same folder, fits what lies there, and says why."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longcat_tune.cli import main
from longcat_tune.config.jsonc import read_jsonc
from longcat_tune.config.load import load_run_config
from longcat_tune.data.demo import CONCEPTS
from longcat_tune.errors import ConfigError, DataError
from longcat_tune.runs.init import DEMO_CONCEPT, init
from longcat_tune.runs.plan import make_plan
from tests.builders import make_clips
from tests.media_builders import write_clip, write_image

CONFIG, DATA = Path("config/config.json"), Path("config/multidatabackend.json")
Maker = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(clips: Path, *, i2v: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Both files of `init` for the miniature, which must pass the check."""
    init(clips, i2v=i2v, demo=False, flavour="tiny")
    assert main(["check", "--config", str(CONFIG)]) == 0
    return read_jsonc(CONFIG), read_jsonc(DATA)


def comments(path: Path) -> str:
    """All comments of a file, without line breaks."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return " ".join(line.removeprefix("// ") for line in lines if line.startswith("//"))


def table_rows(clips: Path) -> list[dict[str, str]]:
    return [
        {"file_name": f"{path.stem}.mp4", "text": path.read_text()} for path in sorted(clips.glob("*.txt"))
    ]


def with_jsonl(clips: Path) -> None:
    (clips / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in table_rows(clips)))


def with_csv(clips: Path) -> None:
    with (clips / "captions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "file_name"])
        writer.writeheader()
        writer.writerows(table_rows(clips))


def with_parquet(clips: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(table_rows(clips)), clips / "captions.parquet")


def numbered_pictures(clips: Path) -> None:
    for number in range(12):
        write_image(clips / "walk" / f"{number:04d}.png", size=(96, 64))
    (clips / "walk.txt").write_text("a walk")


def images(clips: Path) -> None:
    for path in list(clips.iterdir()):
        path.unlink()
    for number in range(3):
        write_image(clips / f"{'abc'[number]}.png", size=(96, 160))
        (clips / f"{'abc'[number]}.txt").write_text("an image")


def odd_names(clips: Path) -> None:
    (clips / "clip-0.mp4").rename(clips / 'the "last"\nline \\ of.mp4')
    (clips / "clip-0.txt").rename(clips / 'the "last"\nline \\ of.txt')
    (clips / 'the "last"\nline \\ of.txt').write_text('says "no" // to c:\\windows')


KINDS: dict[str, Maker] = {
    "captioned clips": lambda clips: None,
    "a jsonl table": with_jsonl,
    "a csv table": with_csv,
    "a parquet table": with_parquet,
    "no captions": lambda clips: [path.unlink() for path in clips.glob("*.txt")],
    "some captions": lambda clips: (clips / "clip-1.txt").unlink(),
    "an empty caption": lambda clips: (clips / "clip-0.txt").write_text(""),
    "long clips": lambda clips: make_clips(clips, 3, frames=70),
    "clips of several lengths": lambda clips: make_clips(clips, 1, frames=9),
    "a clip of three frames": lambda clips: make_clips(clips, 1, frames=3),
    "portrait clips": lambda clips: make_clips(clips, 3, size=(96, 160), frames=25),
    "small clips": lambda clips: make_clips(clips, 3, size=(64, 48), frames=25),
    "wide and square clips": lambda clips: make_clips(clips, 1, size=(192, 64), frames=25),
    "24 frames a second": lambda clips: write_clip(clips / "clip-0.mp4", frames=40, rate=24),
    "a folder of pictures": numbered_pictures,
    "images": images,
    "clips and captioned images": lambda clips: (
        write_image(clips / "still.jpg"),
        (clips / "still.txt").write_text("a still"),
    ),
    "clips and images without captions": lambda clips: write_image(clips / "still.jpg"),
    "names that need quotes": odd_names,
    "a name with line breaks and no caption": lambda clips: (clips / "clip-0.mp4").rename(
        clips / "a\nb\u2028c.mp4"
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_passes_the_check(tmp_path: Path, kind: str) -> None:
    clips = make_clips(tmp_path / "clips", 3, frames=25)
    KINDS[kind](clips)
    written(clips)


@pytest.mark.parametrize("kind", ["captioned clips", "long clips", "portrait clips", "images"])
def test_what_is_written_for_the_model_itself_leaves_no_problem(tmp_path: Path, kind: str) -> None:
    clips = make_clips(tmp_path / "clips", 3, frames=25)
    KINDS[kind](clips)
    init(clips, i2v=False, demo=False, flavour="final")
    config = load_run_config(CONFIG, {})
    assert config.model.model_flavour == "final"
    make_plan(config, config_dir=CONFIG.parent).require_sound()


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("captioned clips", {"caption_strategy": "textfile"}),
        (
            "a jsonl table",
            {
                "caption_strategy": "jsonl",
                "caption_table": {
                    "path": "metadata.jsonl",
                    "filename_column": "file_name",
                    "caption_column": "text",
                },
            },
        ),
        ("a csv table", {"caption_strategy": "csv"}),
        ("a parquet table", {"caption_strategy": "parquet"}),
        ("no captions", {"caption_strategy": "filename"}),
        ("some captions", {"caption_strategy": "textfile", "empty_caption": "use"}),
    ],
)
def test_captions_are_taken_from_where_they_are(tmp_path: Path, kind: str, keys: dict[str, Any]) -> None:
    clips = make_clips(tmp_path / "clips", 3, frames=25)
    KINDS[kind](clips)
    _, [entry] = written(clips)
    assert entry.items() >= keys.items()
    assert ("empty_caption" in entry) == ("empty_caption" in keys)


def test_without_captions_the_file_says_how_to_write_them(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    KINDS["no captions"](clips)
    written(clips)
    assert "write what a clip shows into a .txt of the same name beside it" in comments(DATA)


def test_a_table_that_says_nothing_of_the_files_is_left_alone(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    (clips / "metadata.csv").write_text("file_name,text\nother.mp4,other\n")
    (clips / "captions.jsonl").write_text('{"licence": "mine"}\n')
    _, [entry] = written(clips)
    assert entry["caption_strategy"] == "textfile"


def test_a_table_whose_package_is_not_installed_is_left_alone(tmp_path: Path, monkeypatch) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    KINDS["a parquet table"](clips)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    _, [entry] = written(clips)
    assert entry["caption_strategy"] == "textfile"


def test_images_and_clips_become_two_datasets_over_one_folder(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 3, frames=25)
    KINDS["clips and captioned images"](clips)
    _, [videos, stills] = written(clips)
    assert [videos["dataset_type"], stills["dataset_type"]] == ["video", "image"]
    assert videos["instance_data_dir"] == stills["instance_data_dir"] == str(clips)


def test_images_alone_become_a_dataset_of_images(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    images(clips)
    run, [entry] = written(clips)
    assert (entry["id"], entry["dataset_type"]) == ("images", "image")
    assert "video" not in entry
    assert run["validation_num_video_frames"] == 1
    width, height = map(int, run["validation_resolution"].split("x"))
    assert width < height
    shutil.rmtree("config")
    with pytest.raises(DataError, match="image-to-video needs clips; leave --i2v out"):
        init(clips, i2v=True, demo=False, flavour="tiny")


def test_images_that_nobody_captioned_are_left_out_with_a_warning(tmp_path: Path, caplog) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    write_image(clips / "still.jpg")
    _, [entry] = written(clips)
    assert entry["dataset_type"] == "video"
    assert "1 image not used for lack of captions" in caplog.text


def test_images_beside_folders_of_frames_are_left_out_with_a_warning(tmp_path: Path, caplog) -> None:
    clips = make_clips(tmp_path / "clips", 1, frames=25)
    numbered_pictures(clips)
    write_image(clips / "still.jpg")
    (clips / "still.txt").write_text("a still")
    _, [entry] = written(clips)
    assert entry["dataset_type"] == "video"
    assert "1 image not used: a dataset of images over this folder would take the frames" in caplog.text
    assert "lack of captions" not in caplog.text


def start_images(folder: Path, count: int) -> None:
    for number in range(count):
        write_image(folder / f"clip-{number}.webp")


@pytest.mark.parametrize("place", ["clips-images", "clips_start-images", "conditioning"])
def test_a_folder_with_an_image_for_every_clip_gives_the_start_images(tmp_path: Path, place: str) -> None:
    clips = make_clips(tmp_path / "clips", 2, frames=40)
    start_images(tmp_path / place, 2)
    _, [entry, starts] = written(clips, i2v=True)
    assert (entry["is_i2v"], entry["conditioning_data"]) == (True, ["start-images"])
    assert starts["dataset_type"] == "conditioning"
    assert starts["instance_data_dir"] == str(tmp_path / place)
    assert entry["video"]["clip_selection"] == "start"


def make_inner_start_images(folder: Path) -> Path:
    """Clips without captions and start images in a folder inside, whose names without numbers are no clip."""
    clips = make_clips(folder / "clips", 2, frames=25)
    for number, name in enumerate(("one", "two")):
        (clips / f"clip-{number}.mp4").rename(clips / f"{name}.mp4")
        (clips / f"clip-{number}.txt").unlink()
        write_image(clips / "images" / f"{name}.png")
    return clips


def test_start_images_inside_the_folder_are_no_dataset_of_images(tmp_path: Path) -> None:
    _, [entry, starts] = written(make_inner_start_images(tmp_path), i2v=True)
    assert (entry["id"], starts["id"]) == ("clips", "start-images")


def test_start_images_among_other_images_are_not_taken(tmp_path: Path) -> None:
    clips = make_inner_start_images(tmp_path)
    write_image(clips / "still.png")
    _, [entry, images_entry] = written(clips, i2v=True)
    assert "conditioning_data" not in entry
    assert images_entry["dataset_type"] == "image"


@pytest.mark.parametrize("counts", [{"clips-images": 1}, {"clips-images": 2, "images": 2}, {}])
def test_otherwise_each_clip_starts_from_its_own_first_frame(tmp_path: Path, counts: dict[str, int]) -> None:
    clips = make_clips(tmp_path / "clips", 2, frames=40)
    for place, count in counts.items():
        start_images(tmp_path / place, count)
    _, [entry] = written(clips, i2v=True)
    assert entry["is_i2v"] is True
    assert "conditioning_data" not in entry
    assert ("conditioning_data could name one of" in comments(DATA)) == (len(counts) == 2)
    assert ("has images for 1 of 2 clips only" in comments(DATA)) == (len(counts) == 1)


def test_start_images_that_would_be_taken_for_a_clip_are_told(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 2, frames=25)
    start_images(clips / "first_frames", 2)
    with pytest.raises(
        DataError, match=r"clips/first_frames: holds numbered pictures .*put the folder beside"
    ):
        init(clips, i2v=True, demo=False, flavour="tiny")
    assert not CONFIG.parent.exists()


def test_clips_too_short_for_image_to_video_are_told(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 2, frames=4)
    with pytest.raises(DataError, match="the longest clip has 4 frames, and image-to-video needs at least 5"):
        init(clips, i2v=True, demo=False, flavour="tiny")
    assert not CONFIG.parent.exists()


def test_unusable_files_are_named_and_counted(tmp_path: Path, caplog, capsys) -> None:
    clips = make_clips(tmp_path / "clips", 3)
    for number in (0, 2):
        (clips / f"clip-{number}.mp4").write_bytes(b"")
    init(clips, i2v=False, demo=False, flavour="tiny")
    assert f"clips: {clips / 'clip-0.mp4'} is empty (0 bytes); replace the file" in caplog.text
    assert (
        "2 files cannot be used; `longcat-tune check` fails until all are mended or taken out" in caplog.text
    )
    assert main(["check", "--config", str(CONFIG)]) == 1
    assert "2 problems:" in capsys.readouterr().out


def test_the_first_run_opens_none_of_the_files_again(tmp_path: Path, monkeypatch) -> None:
    clips = make_clips(tmp_path / "clips", 3, frames=25)
    KINDS["clips and captioned images"](clips)
    start_images(tmp_path / "images", 3)
    init(clips, i2v=True, demo=False, flavour="tiny")

    def examine(*_: object) -> None:
        raise AssertionError("known from init")

    monkeypatch.setattr("longcat_tune.data.examine._examine", examine)
    make_plan(load_run_config(CONFIG, {}), config_dir=CONFIG.parent).require_sound()


def test_the_demo_draws_new_things_trains_on_one_and_renders_it_beside_old_ones(tmp_path: Path) -> None:
    init(Path("clips"), i2v=False, demo=True, flavour="tiny")
    for concept in CONCEPTS:
        files = sorted(path.suffix for path in Path("clips", concept).iterdir())
        assert files == [".mp4"] * 12 + [".txt"] * 12
    taught, known = read_jsonc(DATA)
    assert taught["instance_data_dir"] == str(tmp_path / "clips" / DEMO_CONCEPT)
    assert "is_regularisation_data" not in taught
    assert known["instance_data_dir"] == str(tmp_path / "clips" / "known")
    assert known["is_regularisation_data"] is True
    assert main(["check", "--config", str(CONFIG)]) == 0
    library = Path(read_jsonc(CONFIG)["user_prompt_library"])
    prompts = json.loads(library.read_text()).values()
    assert [DEMO_CONCEPT in prompt for prompt in prompts] == [True] * 4 + [False] * 2
    trained = {path.read_text().strip() for path in Path("clips", DEMO_CONCEPT).glob("*.txt")}
    assert trained.isdisjoint(prompts)


def test_the_other_concepts_of_the_demo_are_folders_like_any() -> None:
    init(Path("clips"), i2v=False, demo=True, flavour="tiny")
    shutil.rmtree(CONFIG.parent)
    config, [entry] = written(Path("clips/spiral"), i2v=True)
    assert (entry["is_i2v"], config["resolution"], config["validation_resolution"]) == (True, 64, "64x64")


def test_regularisation_data_are_an_entry_of_their_own_and_of_text_to_video_too() -> None:
    init(Path("clips"), i2v=False, demo=True, flavour="tiny")
    shutil.rmtree(CONFIG.parent)
    init(Path("clips/spiral"), i2v=True, demo=False, regularisation_dir=Path("clips/known"), flavour="tiny")
    taught, known = read_jsonc(DATA)
    assert {entry["is_i2v"] for entry in (taught, known)} == {True}
    assert known["task_mix"] == {"t2v": 0.5, "i2v": 0.5}
    assert taught["video"] == known["video"]
    assert (taught["repeats"], known.get("repeats")) == (4, None)
    steps = read_jsonc(CONFIG)["max_train_steps"]
    shutil.rmtree(CONFIG.parent)
    config, _ = written(Path("clips/spiral"), i2v=True)
    assert config["max_train_steps"] <= steps / 2


def test_what_is_learned_of_regularisation_data_is_kept_for_the_first_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    init(Path("clips"), i2v=False, demo=True, flavour="tiny")

    def examine(*_: object) -> None:
        raise AssertionError("known from init")

    monkeypatch.setattr("longcat_tune.data.examine._examine", examine)
    make_plan(load_run_config(CONFIG, {}), config_dir=CONFIG.parent).require_sound()


def test_the_demo_takes_no_other_regularisation_data() -> None:
    with pytest.raises(ConfigError, match=r"--regularisation_dir \(mine\) has no effect with --demo"):
        init(Path("clips"), i2v=False, demo=True, regularisation_dir=Path("mine"), flavour="tiny")
    assert not Path("clips").exists()


def test_regularisation_data_must_be_clips(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips")
    images = tmp_path / "pictures"
    images.mkdir()
    write_image(images / "a.png")
    with pytest.raises(DataError, match="pictures: holds no clips, and regularisation data must be clips"):
        init(clips, i2v=False, demo=False, regularisation_dir=images, flavour="tiny")


@pytest.mark.parametrize("path", [CONFIG, DATA])
def test_files_of_the_user_are_never_overwritten(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("mine")
    with pytest.raises(ConfigError, match=rf"{path} exists and is never overwritten"):
        init(Path("clips"), i2v=False, demo=True, flavour="tiny")
    assert path.read_text() == "mine"
    assert list(path.parent.iterdir()) == [path]
    assert not Path("clips").exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "cannot be read as a folder"),
        (lambda folder: folder.mkdir(), "holds no video file; put some there"),
        (
            lambda folder: (folder.mkdir(), (folder / "a.mp4").write_bytes(b"")),
            r"none of its 1 files can be used; .*a\.mp4 is empty",
        ),
    ],
)
def test_a_folder_without_clips_is_refused(tmp_path: Path, make: Maker, words: str) -> None:
    make(tmp_path / "empty")
    with pytest.raises(DataError, match=words):
        init(tmp_path / "empty", i2v=False, demo=False, flavour="tiny")
    assert not CONFIG.parent.exists()
