"""Bugs that no interpreter can show: what only the hardware does."""

from __future__ import annotations

from tests.mutants.flash import CHECKS as FLASH
from tests.mutants.mutant import planter

__all__ = ["MUTANTS"]

flash = planter("gpu-flash", "variants/triton_flash_tiles.py", *FLASH, device="cuda")
splitkv = planter(
    "gpu-splitkv", "variants/triton_splitkv_kernel.py", "parity triton_splitkv fwd", "splits", device="cuda"
)
unfused = planter("gpu-unfused", "variants/triton_unfused_kernel.py", "parity triton_unfused fwd", device="cuda")
fa1 = planter("gpu-fa1", "variants/triton_fa1_kernel.py", "parity triton_fa1 fwd", device="cuda")

MUTANTS = (
    flash("one-tf32-product", "lost precision", 'return "tf32x3" if', 'return "tf32" if'),
    splitkv("one-tf32-product", "lost precision", 'PRECISION="tf32x3" if', 'PRECISION="tf32" if'),
    unfused("one-tf32-product", "lost precision", 'PRECISION="tf32x3" if', 'PRECISION="tf32" if'),
    fa1("one-tf32-product", "lost precision", 'PRECISION="tf32x3" if', 'PRECISION="tf32" if'),
)
