"""The house keeps its shape: imports go one way, heavy libraries have one door, files stay small.

`faults` reads a package by its syntax trees; the real one must have none, and each kind is planted once in a
small tree to see it found.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

import longcat_tune

PACKAGE = "longcat_tune"
REAL = Path(longcat_tune.__file__).parent

GROUND = {"types", "errors", "log", "files"}
SHARED = GROUND | {"flow", "config"}
BENCH = {"data", "model", "memory", "sampling", "training", "checkpoint"}
ALLOWED = {
    "types": set(),
    "errors": set(),
    "log": {"errors"},
    "files": {"errors"},
    "flow": GROUND,
    "config": GROUND,
    **dict.fromkeys(BENCH, SHARED),
    "runs": BENCH | SHARED,
    # The tool is reached by its commands as subprocesses, so that what it loads never burdens the pages.
    "server": GROUND | {"config"},
    "commands": {"runs", "server"} | SHARED,
    "cli": {"commands"} | SHARED,
    "__main__": {"cli"},
}
"""What each room or module may import of ours, beside itself."""

WHOLE_CONFIG = {f"{PACKAGE}.config.run", f"{PACKAGE}.config.load"}
"""Below `runs` a room sees its own section at most, never the whole."""

DOORS = {
    "av": ["data/video*.py"],
    "decord": ["data/video*.py"],
    "diffusers": ["model/vae.py"],
    "transformers": ["model/text_encoder.py"],
    "peft": ["model/lora.py"],
    "optimum": ["memory/quantize.py"],
    "torchao": ["memory/quantize.py"],
    "triton": ["model/block_sparse/*.py"],
    "accelerate": ["runs/*.py", "training/parts.py"],
    "bitsandbytes": ["training/optimizers.py"],
    "prodigyopt": ["training/optimizers.py"],
    "schedulefree": ["training/optimizers.py"],
    "tensorboard": ["training/trackers.py"],
    "wandb": ["training/trackers.py"],
    "fastapi": ["server/*.py"],
    "starlette": ["server/*.py"],
    "uvicorn": ["server/*.py"],
    "sse_starlette": ["server/*.py"],
    "jinja2": ["server/*.py"],
}
"""The only files that may import each heavy library."""

NO_TORCH = {"types", "errors", "log", "files", "config", "commands", "cli"}
"""What `longcat-tune --help` reads; it may name torch's types, and load torch inside a function."""

LIGHT = {"server"}
TOO_HEAVY_FOR_THEM = {"torch", "numpy", "huggingface_hub"}
"""Not even inside a function: the web UI starts at once and leaves the memory to the runs."""

MAX_LINES = 400


def faults(package: Path) -> list[str]:
    """Every breach of the house rules under a package folder, as `file:line: what`."""
    return [fault for path in sorted(package.rglob("*.py")) for fault in file_faults(path, package)]


def file_faults(path: Path, package: Path) -> Iterator[str]:
    name = path.relative_to(package).as_posix()
    room = name.split("/")[0].removesuffix(".py")
    if room == "__init__":
        return
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    if lines > MAX_LINES:
        yield f"{name}:{lines}: longer than {MAX_LINES} lines"
    if room not in ALLOWED:
        yield f"{name}:1: {room} is no room of the house"
        return
    tree = ast.parse(text)
    for line, module in imported_modules(tree, [PACKAGE, *name.removesuffix(".py").split("/")]):
        yield from (f"{name}:{line}: {what}" for what in import_faults(name, room, module))
    if room in NO_TORCH:
        yield from (f"{name}:{line}: loads torch at import" for line in torch_at_import(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"{name}:{node.lineno}: print; use logging"


def import_faults(name: str, room: str, module: str) -> Iterator[str]:
    top, *rest = module.split(".")
    if top in DOORS and not any(fnmatch(name, door) for door in DOORS[top]):
        yield f"{top} is imported outside {', '.join(DOORS[top])}"
    if room in LIGHT and top in TOO_HEAVY_FOR_THEM:
        yield f"{room} may not import {top}"
    if top != PACKAGE or not rest or rest[0] in {room, "__version__"}:
        return
    if rest[0] not in ALLOWED[room]:
        yield f"{room} may not import {rest[0]}"
    elif room in BENCH and module in WHOLE_CONFIG:
        yield f"{room} may not import {module}, only its own section"


def imported_modules(tree: ast.Module, here: list[str]) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import, wherever it stands; here is the importing module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            if source in {PACKAGE, f"{PACKAGE}.config"}:
                yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, source


def torch_at_import(tree: ast.Module) -> Iterator[int]:
    """Lines of torch imports that run when the module is imported: not in a function, not for types only."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.split(".")[0] == "torch" for name in names):
            yield node.lineno
        waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def planted(tmp_path: Path, name: str, text: str) -> list[str]:
    path = tmp_path / PACKAGE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return faults(tmp_path / PACKAGE)


def test_the_house_has_no_faults():
    assert faults(REAL) == []


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("data/x.py", "from longcat_tune.model.dit import Model", "data may not import model"),
        ("training/x.py", "\nimport longcat_tune.data.cache", "training may not import data"),
        ("training/x.py", "from longcat_tune import checkpoint", "training may not import checkpoint"),
        ("training/x.py", "from ..data.cache import read_text", "training may not import data"),
        ("model/deep/x.py", "from ... import runs", "model may not import runs"),
        ("flow/x.py", "from longcat_tune.config.flow import FlowSection", "flow may not import config"),
        ("config/x.py", "from longcat_tune.runs.check import check", "config may not import runs"),
        ("runs/x.py", "from longcat_tune.cli import main", "runs may not import cli"),
        ("cli.py", "from longcat_tune.data.cache import read_text", "cli may not import data"),
        ("files.py", "import longcat_tune.types", "files may not import types"),
        ("memory/x.py", "def f():\n    from longcat_tune.model import dit", "memory may not import model"),
        (
            "data/x.py",
            "import typing\nif typing.TYPE_CHECKING:\n    from longcat_tune.model.dit import Model",
            "data may not import model",
        ),
        (
            "data/x.py",
            "from longcat_tune.config.run import RunConfig",
            "data may not import longcat_tune.config.run, only its own section",
        ),
        (
            "sampling/x.py",
            "from longcat_tune.config import load",
            "sampling may not import longcat_tune.config.load, only its own section",
        ),
        ("helpers/x.py", "", "helpers is no room of the house"),
        ("data/x.py", "import av", "av is imported outside data/video*.py"),
        ("sampling/x.py", "from decord import VideoReader", "decord is imported outside data/video*.py"),
        ("model/dit.py", "import diffusers.models", "diffusers is imported outside model/vae.py"),
        (
            "runs/x.py",
            "def f():\n    import transformers",
            "transformers is imported outside model/text_encoder.py",
        ),
        ("checkpoint/x.py", "import peft.utils", "peft is imported outside model/lora.py"),
        ("model/x.py", "from optimum import quanto", "optimum is imported outside memory/quantize.py"),
        ("runs/x.py", "import torchao", "torchao is imported outside memory/quantize.py"),
        ("model/attention.py", "import triton", "triton is imported outside model/block_sparse/*.py"),
        (
            "training/step.py",
            "import accelerate",
            "accelerate is imported outside runs/*.py, training/parts.py",
        ),
        ("server/x.py", "def f():\n    import torch", "server may not import torch"),
        ("server/x.py", "from longcat_tune.runs.check import check", "server may not import runs"),
        ("runs/x.py", "from longcat_tune.server.settings import Settings", "runs may not import server"),
        ("cli.py", "def f():\n    from fastapi import FastAPI", "fastapi is imported outside server/*.py"),
        ("config/x.py", "import torch", "loads torch at import"),
        ("cli.py", "try:\n    from torch.nn import Module\nfinally:\n    pass", "loads torch at import"),
        ("log.py", "class Bar:\n    import torch.nn", "loads torch at import"),
        ("data/x.py", "def f():\n    print(1)", "print; use logging"),
        ("data/x.py", "\n" * 401, "longer than 400 lines"),
    ],
)
def test_a_planted_fault_is_found(tmp_path, name, text, what):
    [fault] = planted(tmp_path, name, text)
    assert fault.startswith(f"{name}:")
    assert fault.endswith(f": {what}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "data/x.py",
            "from longcat_tune.config.datasets import DatasetEntry\nfrom longcat_tune.data import y",
        ),
        (
            "runs/x.py",
            "from longcat_tune.config import run\nfrom longcat_tune.model import vae\nimport accelerate",
        ),
        ("server/x.py", "from fastapi import FastAPI\nfrom longcat_tune.config.run import RunConfig"),
        ("training/x.py", "from . import step\nfrom longcat_tune.flow.loss import flow_loss\nimport torch"),
        ("data/video_packets.py", "import av\nimport decord"),
        ("model/block_sparse/kernels.py", "import triton.language as tl\nfrom ..attention import sdpa"),
        ("files.py", "def f():\n    import torch\n"),
        ("commands.py", "from longcat_tune import __version__\nfrom longcat_tune import errors, runs"),
        ("__main__.py", "from longcat_tune.cli import main"),
        ("types.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor"),
        ("data/x.py", "\n" * 400),
    ],
)
def test_what_is_allowed_is_let_through(tmp_path, name, text):
    assert planted(tmp_path, name, text) == []


def test_the_command_line_starts_without_heavy_libraries():
    heavy = sorted(DOORS.keys() | {"torch", "numpy", "huggingface_hub"})
    code = f"import sys, longcat_tune.cli; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.stdout.strip() == "[]"
