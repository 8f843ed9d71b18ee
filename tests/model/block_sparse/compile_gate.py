"""Compiles the kernels for devices that are not here and prints what they would use, a line of JSON each.

Runs in its own process, because Triton compiles nothing once its interpreter is on.
Arguments: kernel/capability/head_dim/dtype/partial, for example dq/90/128/bf16/1; optionally a launch to try
in place of the table's, dq/90/128/bf16/1/64x64/4w/2s. The kernels of the selection, means and best, take a
capability, head width and dtype, and no more.
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

from longcat_tune.model.block_sparse import kernels, selection_kernels
from longcat_tune.model.block_sparse.launch_table import Launch, launch_of
from longcat_tune.model.block_sparse.partition import SPAN_BASE

BLOCK_TOKENS = 64
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HEADS = re.compile(r"(q|k|v|x|out|dout|dq|dk|dv)_ptr")
FLOAT32 = {"lse_ptr", "delta_ptr", "scores_ptr", "means_ptr"}
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def signature_of(names: list[str], constants: dict[str, Any], dtype: str) -> dict[str, str]:
    types = {}
    for name in names:
        if name in constants:
            types[name] = "constexpr"
        elif name.endswith("_ptr"):
            kept = f"*{dtype}" if HEADS.fullmatch(name) else "*i32"
            types[name] = "*fp32" if name in FLOAT32 else kept
        else:
            types[name] = "fp32" if name.startswith("scale") else "i32"
    return types


def compile_attention(
    name: str, capability: int, head_dim: int, dtype: str, partial: bool, launch: Launch
) -> dict[str, Any]:
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
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    kernel = getattr(kernels, f"{name}_kernel")
    about = {"partial": partial, "launch": f"{block_m}x{block_n} {launch.num_warps}w {launch.num_stages}s"}
    return about | compile_kernel(kernel, capability, constants, dtype, options)


def compile_selection(name: str, capability: int, head_dim: int, dtype: str) -> dict[str, Any]:
    every = {
        "SPAN_BASE": SPAN_BASE,
        "BLOCK": BLOCK_TOKENS,
        "HEAD_DIM": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim),
        "BLOCK_K": 4096,
    }
    kernel = getattr(selection_kernels, f"{name}_kernel")
    constants = {key: value for key, value in every.items() if key in kernel.arg_names}
    return compile_kernel(kernel, capability, constants, dtype, {"num_warps": 4})


def compile_kernel(
    kernel: Any, capability: int, constants: dict[str, Any], dtype: str, options: dict[str, int]
) -> dict[str, Any]:
    names = kernel.arg_names
    signature = signature_of(names, constants, dtype)
    # What Triton sees of real tensors: aligned pointers, strides that are multiples of 16.
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") or "stride_" in name]
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned}),
        target=GPUTarget("cuda", capability, 32),
        options=options | {"enable_fp_fusion": True},
    )
    return {
        "kernel": kernel.__name__,
        "capability": capability,
        "dtype": dtype,
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
        name, capability, head_dim, dtype, *rest = argument.split("/")
        if name in {"means", "best"}:
            result = compile_selection(name, int(capability), int(head_dim), dtype)
        else:
            major, minor = divmod(int(capability), 10)
            launch = launch_of(name, capability=(major, minor), head_dim=int(head_dim), dtype=DTYPES[dtype])
            if rest[1:]:
                launch = Launch(*(int(number) for number in re.findall(r"\d+", " ".join(rest[1:]))))
            result = compile_attention(name, int(capability), int(head_dim), dtype, rest[0] == "1", launch)
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
