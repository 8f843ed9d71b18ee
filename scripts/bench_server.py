"""Measure the web UI: how soon it answers, how large its pages are, how it bears a long run.

    python scripts/bench_server.py --save

Starts `longcat-tune server` on a workspace of its own, as a user would, and asks as a browser would. With a
Chromium on the PATH, a run of 10,000 events is also opened in it: the longest task is how long the page could
not react. Exit code 1 where a figure misses what is wanted. The machine's own noise is in every figure.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import psutil

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("fastapi", "starlette", "uvicorn", "jinja2")
EVENTS = 10_000
WANTED = {"start_seconds": 1.5, "page_kilobytes": 200, "longest_stall_seconds": 0.2}
"""The last is ours: below it, people take a page for instant."""
PAGES = ("/", "/runs/new", "/datasets", "/preview", "/runs/long", "/runs/long/gallery", "/nowhere")
LINKED = re.compile(r"""<(?:script|link|img)\b[^>]*?\b(?:src|href)="([^"]+)\"""")
IMPORTED = re.compile(r"""(?:\bfrom|^import)\s*["']([./][^"']+)["']""", re.MULTILINE)
PATIENCE = 120.0

RUN_SERVER = """
import json, sys
from longcat_tune.cli import main
main(["server", "--port", "0", "--workspace", sys.argv[1]])
print(json.dumps(sorted({"torch", "numpy", "av", "transformers", "diffusers"} & sys.modules.keys())))
"""

WATCH_TASKS = """
window.tasks = [];
new PerformanceObserver((list) => tasks.push(...list.getEntries().map((one) => one.duration)))
  .observe({type: "longtask", buffered: true});
"""
DRAWN = """new Promise((done) => {
  const look = () => document.querySelector("canvas") ? requestAnimationFrame(() => done(performance.now()))
    : setTimeout(look, 20);
  look();
})"""
LATER = "new Promise((done) => setTimeout(() => done(Math.max(0, ...tasks)), 3000))"


class Server:
    """A running server, and how to ask it."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def get(self, path: str, *, accept: str = "text/html") -> bytes:
        """The body of a reply, whatever its status."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", path, headers={"Accept": accept})
        body = connection.getresponse().read()
        connection.close()
        return body


@contextmanager
def server(workspace: Path) -> Iterator[Server]:
    """Run one while the block runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_SERVER, str(workspace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = re.search(r"localhost:(\d+)/", process.stdout.readline())
        assert told is not None, process.communicate()
        yield Server(process, int(told[1]))
    finally:
        process.kill()
        process.wait()


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def started(workspace: Path) -> tuple[float, float]:
    """Seconds from the command to the first page, and of the processor: other work disturbs those less."""
    begun = time.perf_counter()
    with server(workspace) as one:
        one.get("/")
        seconds = time.perf_counter() - begun
        times = psutil.Process(one.process.pid).cpu_times()
    return seconds, times.user + times.system


def heavy_modules(workspace: Path) -> list[str]:
    """What a server has loaded, after every page, that it must not."""
    with server(workspace) as one:
        for path in PAGES:
            one.get(path)
        one.process.send_signal(signal.SIGINT)
        output, _ = one.process.communicate(timeout=PATIENCE)
    return list(json.loads(output.splitlines()[-1]))


def page_bytes(one: Server, path: str) -> int:
    """Of a page with all that it links and imports, as they are on the wire: nothing is compressed."""
    sizes: dict[str, int] = {}
    waiting = [path]
    while waiting:
        address = waiting.pop()
        if address in sizes:
            continue
        body = one.get(address)
        sizes[address] = len(body)
        if address == path:
            waiting += [urljoin(address, found) for found in LINKED.findall(body.decode())]
        elif address.endswith(".js") and "/vendor/" not in address:
            waiting += [urljoin(address, found) for found in IMPORTED.findall(body.decode())]
    return sum(sizes.values())


def write_long_run(workspace: Path) -> None:
    """A run of `EVENTS` events, as training writes them."""
    folder = workspace / "runs" / "long"
    (folder / "results").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"name": "A long run", "created": time.time()}))
    (folder / "config.json").write_text(json.dumps({"output_dir": "results", "max_train_steps": EVENTS}))
    with (folder / "results" / "events.jsonl").open("w") as file:
        file.write(json.dumps({"event": "run_start", "time": 0.0, "max_steps": EVENTS}) + "\n")
        for step in range(1, EVENTS):
            file.write(json.dumps(step_event(step)) + "\n")


def step_event(step: int) -> dict[str, Any]:
    loss = 0.02 + 0.2 * math.exp(-step / 2000) * (1 + 0.3 * math.sin(step))
    return {
        "event": "step",
        "time": 1.8e9 + step,
        "step": step,
        "epoch": step // 100,
        "loss": loss,
        "learning_rate": 1e-4,
        "grad_norm": 0.5 + 0.2 * math.cos(step),
        "sigma_mean": 0.5,
        "samples": 1,
        "seconds": 1.0,
        "memory_gib": 18.5,
    }


def longest_wait_while(one: Server, path: str) -> tuple[float, float, int]:
    """Seconds that a long reply takes, the longest that others wait meanwhile, and the long one's bytes."""
    over = threading.Event()
    waits = [0.0]

    def ask_others() -> None:
        while not over.is_set():
            waits.append(timed(lambda: one.get("/static/icon.svg")))

    others = threading.Thread(target=ask_others)
    others.start()
    begun = time.perf_counter()
    size = len(one.get(path, accept="application/json"))
    seconds = time.perf_counter() - begun
    over.set()
    others.join()
    return seconds, max(waits), size


def in_browser(one: Server, workspace: Path) -> dict[str, float] | None:
    """Seconds until the run's curves are drawn, and the longest task; None without a browser."""
    sys.path.insert(0, str(ROOT))
    from tests.browser import browser, find_chromium

    if find_chromium() is None:
        return None
    events = workspace / "runs" / "long" / "results" / "events.jsonl"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, browser(Path(profile)) as page:
        page.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH_TASKS)
        page.call("Page.navigate", url=f"http://127.0.0.1:{one.port}/runs/long")
        drawn = page.evaluate(DRAWN) / 1000
        at_first = page.evaluate(LATER) / 1000
        with events.open("a") as file:
            file.writelines(json.dumps(step_event(step)) + "\n" for step in range(EVENTS, EVENTS + 500))
        later = page.evaluate(f"tasks.length = 0, {LATER}") / 1000
    return {
        "drawn_after_seconds": round(drawn, 3),
        "longest_task_seconds": round(at_first, 3),
        "longest_task_when_500_more_come_at_once_seconds": round(later, 3),
    }


def measure(times: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        starts = [started(workspace) for _ in range(times)]
        write_long_run(workspace)
        with server(workspace) as one:
            one.get("/static/icon.svg")
            first = longest_wait_while(one, "/runs/long/history.json")
            again = timed(lambda: one.get("/runs/long/history.json"))
            sizes = {path: round(page_bytes(one, path) / 1000, 1) for path in PAGES}
            shown = in_browser(one, workspace)
        heavy = heavy_modules(workspace)
    return {
        "start_seconds": {
            "median": round(statistics.median(wall for wall, _ in starts), 3),
            "worst": round(max(wall for wall, _ in starts), 3),
            "processor_median": round(statistics.median(processor for _, processor in starts), 3),
            "times": times,
        },
        "page_kilobytes": sizes,
        "events": {
            "count": EVENTS,
            "history_seconds": round(first[0], 3),
            "history_again_seconds": round(again, 3),
            "history_kilobytes": round(first[2] / 1000, 1),
            "others_waited_at_most_seconds": round(first[1], 3),
            "in_chromium": shown,
        },
        "heavy_modules": heavy,
        "wanted": WANTED,
    }


def misses(results: dict[str, Any]) -> list[str]:
    """Which figures are not as wanted."""
    events = results["events"]
    stalls = [events["others_waited_at_most_seconds"]]
    stalls += [value for key, value in (events["in_chromium"] or {}).items() if key.startswith("longest")]
    found = {
        "start_seconds": results["start_seconds"]["median"],
        "page_kilobytes": max(results["page_kilobytes"].values()),
        "longest_stall_seconds": max(stalls),
    }
    too_much = [f"{name}: {value} > {WANTED[name]}" for name, value in found.items() if value > WANTED[name]]
    return [*too_much, *(f"{name} is loaded" for name in results["heavy_modules"])]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=5, help="starts to measure")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/server.json too")
    options = parser.parse_args()
    load = round(os.getloadavg()[0], 2)
    results = measure(options.times)
    report = {
        "part": "server",
        "command": " ".join(["python scripts/bench_server.py", *sys.argv[1:]]),
        "machine": {"cores": os.cpu_count(), "load_before": load, "system": platform.system()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "results": results,
    }
    print(json.dumps(report, indent=2))
    if options.save:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "server.json").write_text(json.dumps(report, indent=2) + "\n")
    if missed := misses(results):
        sys.exit("\n".join(missed))


if __name__ == "__main__":
    main()
