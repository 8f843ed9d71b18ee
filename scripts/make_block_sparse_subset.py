"""Copy the committed subset of the block-sparse golden cases, within 2 MB.

Run: python scripts/make_block_sparse_subset.py ../shared/golden/block_sparse
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

TARGET = Path(__file__).parents[1] / "tests" / "golden" / "block_sparse"
LIMIT_BYTES = 2_000_000
# Small blocks, the model's head width, partial edge blocks, uneven rows, unequal chunks.
CHOSEN = {
    "chunk16_d16_s075.safetensors",
    "self_444_d128_s050.safetensors",
    "ext_partial_blocks_d32.safetensors",
    "cdf055_top2_d32.safetensors",
    "q64_k128_d64_s050.safetensors",
}


def main(source: Path) -> None:
    manifest = json.loads((source / "manifest.json").read_text(encoding="utf-8"))
    manifest["cases"] = [case for case in manifest["cases"] if case["file"] in CHOSEN]
    TARGET.mkdir(parents=True, exist_ok=True)
    for path in TARGET.iterdir():
        path.unlink()
    for case in manifest["cases"]:
        shutil.copyfile(source / case["file"], TARGET / case["file"])
    (TARGET / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")
    total = sum(path.stat().st_size for path in TARGET.iterdir())
    assert total <= LIMIT_BYTES, f"{total} bytes"
    print(f"{len(manifest['cases'])} cases, {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
