"""Make the miniature checkpoint from nothing: the released layout, seeded, in resumable stages.

Stages go on where the files in --work-dir end: the text encoder (make_tiny_text.py, two minutes), the VAE
(make_tiny_vae.py, three hours on two cores) and the transformer (make_tiny_dit.py, an hour and a half).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from make_tiny_dit import save_dit, train_dit
from make_tiny_text import make_tokenizer, train_text_encoder
from make_tiny_vae import make_vae


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("longcat_tune/assets/tiny"))
    parser.add_argument(
        "--work-dir", type=Path, default=Path("build/tiny"), help="where training state is kept"
    )
    parser.add_argument("--start-vae", type=Path, help="a finished VAE: only its last stage is run")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work_dir.mkdir(parents=True, exist_ok=True)

    if not (options.work_dir / "text_encoder").exists():
        words, vocabulary = make_tokenizer(options.work_dir / "tokenizer")
        train_text_encoder(
            options.work_dir / "text_encoder", options.work_dir / "tokenizer", words, vocabulary
        )
    if not (options.work_dir / "vae").exists():
        make_vae(options.work_dir / "vae", options.work_dir, options.start_vae)
    model = train_dit(options.work_dir, options.work_dir)
    shutil.rmtree(options.work_dir / "dit", ignore_errors=True)
    save_dit(options.work_dir / "dit", model)
    FlowMatchEulerDiscreteScheduler(shift=12.0).save_pretrained(options.work_dir / "scheduler")
    for name in ("tokenizer", "text_encoder", "scheduler", "vae", "dit"):
        shutil.rmtree(options.out / name, ignore_errors=True)
        shutil.copytree(options.work_dir / name, options.out / name)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
