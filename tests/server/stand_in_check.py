"""In place of `check --json --config FILE`: reports at once, or what the config's tracker_run_name says.

Every call is written down in calls.jsonl of the working folder: its process, its words, its config.
"""
# ruff: noqa: T201  # what it prints is the report

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

LIFE = 240.0
"""Seconds after which it ends in any case: a test that failed leaves it alone."""

REPORT = {
    "datasets": [
        {
            "id": "clips",
            "trained": True,
            "found": 9,
            "used": 8,
            "refused": 1,
            "left_out": 0,
            "clips": 8,
            "buckets": [
                {"bucket": "64x64@17", "clips": 6, "steps_per_epoch": [6.0]},
                {"bucket": "64x128@17", "clips": 2, "steps_per_epoch": [2.0]},
            ],
        }
    ],
    "steps_per_epoch": 8,
    "max_steps": 120,
    "notices": [{"dataset": "clips", "fact": "a <b>fact</b>", "remedy": "a remedy"}],
    "memory": {
        "device": "Card 9000",
        "device_free": 8 * 2**30,
        "host_free": 16 * 2**30,
        "placement": {"streamed_blocks": 3, "boundaries_on_host": True, "ffn_chunk_tokens": 1024},
        "doubts": [],
        "parts": [
            {
                "name": "training 64x64@17",
                "device": {"bytes": 2**31},
                "host": {"bytes": 2**30},
                "seconds": 1.0,
            },
            {
                "name": "training 64x128@17",
                "device": {"bytes": 2**30},
                "host": {"bytes": 2**30},
                "seconds": 5.0,
            },
        ],
    },
    "problems": [],
}
PROBLEMS = [
    {
        "dataset": "clips",
        "file": "/secret/a.mp4",
        "reason": "has no caption",
        "remedy": "write /secret/a.txt",
    },
    {"dataset": None, "file": None, "reason": "lora_rank (4) is wrong", "remedy": "change it"},
]


def main(words: list[str]) -> int:
    assert words[:3] == ["check", "--json", "--config"], words
    config = json.loads(Path(words[3]).read_text(encoding="utf-8"))
    call = {
        "pid": os.getpid(),
        "words": words,
        "card": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "config": config,
    }
    with Path("calls.jsonl").open("a") as file:
        file.write(json.dumps(call) + "\n")
    match config.get("tracker_run_name"):
        case "waits":
            time.sleep(LIFE)
        case "breaks":
            print(f"no good: {words[3]}", file=sys.stderr)
            return 3
        case "refuses":
            print(json.dumps({**REPORT, "problems": PROBLEMS}))
            return 1
    print(json.dumps(REPORT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
