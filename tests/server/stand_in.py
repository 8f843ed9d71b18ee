"""In place of the command line: writes the events of a run, and ends on SIGINT as a training does.

`train --config FILE` takes steps up to max_train_steps, from the last one in events.jsonl on, and honours
`fails`, `ignores_sigterm` and `spawns`. Anything else is printed.
"""
# ruff: noqa: T201  # what it prints is the job's log

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

LIFE = 240.0
"""Seconds after which it ends in any case: a test that failed leaves it alone."""
PAUSE = 0.01


def main(words: list[str]) -> int:
    print("asked for", *words, "on", os.environ.get("CUDA_VISIBLE_DEVICES", "any"), flush=True)
    if words[:1] != ["train"]:
        return 0
    config = json.loads(Path(words[words.index("--config") + 1]).read_text())
    if "fails" in config:
        print(f"error: {config['fails']}", file=sys.stderr)
        return 2
    if config.get("ignores_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stopped: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: stopped.append(number))
    output = Path(config["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    if config.get("spawns"):
        helper = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({LIFE})"])
        (output / "helper.txt").write_text(str(helper.pid))
    with (output / "events.jsonl").open("a", buffering=1) as file:
        return train(config, output, file, stopped)


def train(config, output, file, stopped) -> int:
    def tell(event, **fields):
        file.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")

    last, begun = config["max_train_steps"], time.monotonic()
    step = last_step(output / "events.jsonl")
    tell("run_start", max_steps=last, clips=3, device="cpu", versions={})
    if step:
        tell("resume", step=step, folder=f"checkpoint-{step:06d}")
    while step < last and not stopped and time.monotonic() - begun < LIFE:
        time.sleep(PAUSE)
        step += 1
        numbers = {"learning_rate": 1e-4, "grad_norm": 1.0, "sigma_mean": 0.9, "memory_gib": 0.5}
        tell("step", step=step, epoch=0, loss=1 / step, samples=1, seconds=PAUSE, **numbers)
        print("step", step, flush=True)
    tell("checkpoint", step=step, folder=f"checkpoint-{step:06d}")
    tell("run_end", how="interrupted" if stopped else "finished")
    print("stopped, which is saved" if stopped else "done", flush=True)
    return 130 if stopped else 0


def last_step(path: Path) -> int:
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return max((event["step"] for event in events if event["event"] == "checkpoint"), default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
