"""Compiles the kernels for devices that are not here and prints what they would use, a line of JSON each.

Runs in its own process, because Triton compiles nothing once its interpreter is on.
Arguments: kernel/capability/head_dim/dtype/partial, for example dq/90/128/bf16/1; optionally a launch to try
in place of the table's, dq/90/128/bf16/1/64x64/4w/2s.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from longcat_tune.model.block_sparse import kernels
from longcat_tune.model.block_sparse.launch_table import Launch, launch_of
from longcat_tune.model.block_sparse.partition import SPAN_BASE

BLOCK_TOKENS = 64
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HEADS = re.compile(r"(q|k|v|out|dout|dq|dk|dv)_ptr")
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def signature_of(names: list[str], constants: dict[str, Any], dtype: str) -> dict[str, str]:
    types = {}
    for name in names:
        if name in constants:
            types[name] = "constexpr"
        elif name.endswith("_ptr"):
            halves = {"lse_ptr": "*fp32", "delta_ptr": "*fp32"}
            types[name] = f"*{dtype}" if HEADS.fullmatch(name) else halves.get(name, "*i32")
        else:
            types[name] = "fp32" if name.startswith("scale") else "i32"
    return types


def compile_kernel(
    name: str, capability: int, head_dim: int, dtype: str, partial: bool, launch: Launch
) -> dict[str, Any]:
    kernel = getattr(kernels, f"{name}_kernel")
    block_m, block_n = min(launch.block_m, BLOCK_TOKENS), min(launch.block_n, BLOCK_TOKENS)
    constants = {
        "SPAN_BASE": SPAN_BASE,
        "TILES_M": BLOCK_TOKENS // block_m,
        "TILES_N": BLOCK_TOKENS // block_n,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "HEAD_DIM": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim),
        "PARTIAL": partial,
        "UPCAST": False,
    }
    names = kernel.arg_names
    signature = signature_of(names, constants, dtype)
    # What Triton sees of real tensors: aligned pointers, strides that are multiples of 16.
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") or "_stride_" in name]
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned}),
        target=GPUTarget("cuda", capability, 32),
        options={
            "num_warps": launch.num_warps,
            "num_stages": launch.num_stages,
            "enable_fp_fusion": True,
        },
    )
    return {
        "kernel": name,
        "capability": capability,
        "head_dim": head_dim,
        "dtype": dtype,
        "partial": partial,
        "launch": f"{block_m}x{block_n} {launch.num_warps} warps {launch.num_stages} stages",
        "shared_kib": compiled.metadata.shared / 1024,
        "wgmma": sorted(set(re.findall(r"wgmma\S*\.(m64n\d+)k", compiled.asm["ptx"]))),
        **resources(compiled.asm["cubin"]),
    }


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of its stack: what registers spill into."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [NVIDIA_TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {"registers": found["REG"], "stack_bytes": found["STACK"] + found["LOCAL"]}


def main(arguments: list[str]) -> None:
    for argument in arguments:
        name, capability, head_dim, dtype, partial, *tried = argument.split("/")
        major, minor = divmod(int(capability), 10)
        launch = launch_of(name, capability=(major, minor), head_dim=int(head_dim), dtype=DTYPES[dtype])
        if tried:
            launch = Launch(*(int(number) for number in re.findall(r"\d+", " ".join(tried))))
        result = compile_kernel(name, int(capability), int(head_dim), dtype, partial == "1", launch)
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
