"""What must be settled before any test module is imported."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    # Triton decides at its import, which diffusers causes, whether kernels run in its interpreter.
    os.environ["TRITON_INTERPRET"] = "1"
