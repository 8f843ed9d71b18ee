"""The kernels compile for GPUs that are not here, with registers that do not spill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]
CAPABILITIES = (80, 89, 90)
SHARED_KIB = {80: 163, 89: 99, 90: 113}
"""What a program may have; on sm_90 half of a multiprocessor, so that two programs run on it."""

KERNELS = ("forward", "dq", "dkdv")


def compiled(arguments: list[str]) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_gate.py")
    output = subprocess.run(
        [sys.executable, script, *arguments],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.returncode == 0, output.stderr
    return [json.loads(line) for line in output.stdout.splitlines()]


def test_kernels_compile_without_spilling_for_every_device() -> None:
    wanted = [f"{kernel}/{capability}/128/bf16/1" for capability in CAPABILITIES for kernel in KERNELS]
    wanted += ["means/80/128/bf16", "best/80/128/bf16"]
    results = compiled(wanted)
    assert len(results) == len(wanted)
    for result in results:
        sys.stdout.write(f"{result}\n")
        assert result["stack_bytes"] == 0, result
        assert result["registers"] <= 255, result
        assert result["shared_kib"] <= SHARED_KIB[result["capability"]], result
        if result["capability"] == 90 and "partial" in result:
            # Hopper's own matrix instructions, as wide as the head for the accumulators.
            assert "m64n128" in result["wgmma"], result
            # Two programs of 4 warps: 65536 registers to a multiprocessor.
            assert result["registers"] * 2 * 128 <= 65536, result
