"""What all tests share."""

from __future__ import annotations

import os

import torch

# Triton decides at its first import, whoever makes it, whether kernels are interpreted: without a GPU they are
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest_plugins = ["pytester"]
