"""Copy the committed subset of the golden cases: the smallest of every kind, within 5 MB.

Run: python scripts/make_golden_subset.py ../shared/golden/model
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "tests" / "golden" / "data"
LIMIT_BYTES = 5_000_000
LATER_KINDS = {"bsa", "pipeline_refine"}
# Without these a plain clone would miss masked condition frames and the uneven schedule.
EXTRA_CASES = {"fwd_A_cond1_mask", "pipe_A_vc_kv_hf"}
EXTRA_FILES = {"full_config_state_dict.json"}


def choose(cases: list[dict[str, Any]], source: Path) -> list[dict[str, Any]]:
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        if case["kind"] not in LATER_KINDS:
            by_kind.setdefault(case["kind"], []).append(case)
    # Configuration A serves every kind, so that one weights file is enough.
    smallest = {
        min(
            (case for case in group if case["config"] in ("A", None)),
            key=lambda case: (source / case["file"]).stat().st_size,
        )["name"]
        for group in by_kind.values()
    }
    return [case for case in cases if case["name"] in smallest | EXTRA_CASES]


def main(source: Path) -> None:
    manifest = json.loads((source / "manifest.json").read_text(encoding="utf-8"))
    manifest["cases"] = choose(manifest["cases"], source)
    names = {case["file"] for case in manifest["cases"]} | EXTRA_FILES
    names |= {case["weights"] for case in manifest["cases"] if case["weights"]}
    for case in manifest["cases"]:
        if "lora_file" in case["call"]:
            names.add(case["call"]["lora_file"])
        names |= {name for name, *_ in case["call"].get("loras", [])}
    TARGET.mkdir(parents=True, exist_ok=True)
    for path in TARGET.iterdir():
        path.unlink()
    for name in sorted(names):
        shutil.copyfile(source / name, TARGET / name)
    (TARGET / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")
    total = sum(path.stat().st_size for path in TARGET.iterdir())
    assert total <= LIMIT_BYTES, f"{total} bytes"
    print(f"{len(manifest['cases'])} cases, {len(names) + 1} files, {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
