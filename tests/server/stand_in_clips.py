"""In place of the command line: `thumbnails` with pictures of a few bytes, `check` that knows captions only.

Every video has 93 frames; one without a text file beside it is refused. A clip called slow.mp4 makes `check`
wait until a file called go lies beside it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

LIFE = 120.0
"""Seconds after which it ends in any case: a test that failed leaves it alone."""


def main(words: list[str]) -> int:
    return {"thumbnails": thumbnails, "check": check}[words[0]](words[1:])


def thumbnails(words: list[str]) -> int:
    folder, out = Path(words[0]), Path(words[words.index("--out") + 1])
    if (folder / "nothing works").exists():
        sys.stderr.write(f"error: {folder} cannot be read; mend it\n")
        return 1
    out.mkdir(parents=True, exist_ok=True)
    clips = []
    for number, path in enumerate(media(folder)):
        name = f"{number:032x}.jpg"
        (out / name).write_bytes(b"a picture")
        kind = "image" if path.suffix == ".png" else "video"
        known = {"width": 64, "height": 48, "seconds": 3.1, "size": path.stat().st_size, "version": 7}
        told = {"thumbnail": name, "reason": None, "remedy": None}
        clips.append(
            {"name": path.relative_to(folder).as_posix(), "file": str(path), "kind": kind} | known | told
        )
    index = {"folder": str(folder), "size": 320, "complete": True, "clips": clips}
    (out / "index.json").write_text(json.dumps(index))
    return 0


def check(words: list[str]) -> int:
    config = json.loads(Path(words[words.index("--config") + 1]).read_text())
    data_file = Path(config["data_backend_config"])
    report = {"datasets": [], "start_images": [], "notices": [], "problems": [], "clips": []}
    for entry in json.loads(data_file.read_text()):
        if entry.get("dataset_type", "video") == "video":
            judge(entry, data_file.parent / entry["instance_data_dir"], report)
    sys.stdout.write(json.dumps(report))
    return 1 if report["problems"] else 0


def judge(entry, folder: Path, report) -> None:
    wait_for(folder)
    clips = [path for path in media(folder) if path.suffix != ".png"]
    used = [path for path in clips if path.with_suffix(".txt").exists()]
    for path in used:
        captions = [path.with_suffix(".txt").read_text().strip()]
        known = {"width": 64, "height": 48, "fps": 30.0, "seconds": 3.1, "kind": "video", "start_image": None}
        row = {
            "dataset": entry["id"],
            "file": str(path),
            "bucket": "64x64@93",
            "frames": 93,
            "first_frames": [0],
        }
        report["clips"].append(row | known | {"captions": captions})
    for path in set(clips) - set(used):
        reason = f"has no caption: {path.with_suffix('.txt')} does not exist"
        problem = {"dataset": entry["id"], "file": str(path), "reason": reason, "remedy": "write its caption"}
        report["problems"].append(problem)
    counts = {"found": len(clips), "used": len(used), "refused": len(clips) - len(used), "left_out": 0}
    bucket = {"bucket": "64x64@93", "frames": 93, "clips": len(used)}
    buckets = {"clips": len(used), "buckets": [bucket] if used else []}
    report["datasets"].append({"id": entry["id"], "trained": True} | counts | buckets)


def wait_for(folder: Path) -> None:
    begun = time.monotonic()
    while (folder / "slow.mp4").exists() and not (folder / "go").exists():
        if time.monotonic() - begun > LIFE:
            return
        time.sleep(0.02)


def media(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in {".mp4", ".png", ".avi"})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
