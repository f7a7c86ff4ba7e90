"""Every mutant, and the controls: what has no bug in it passes every law that a mutant is put to."""

from __future__ import annotations

from tests.mutants import append, flash, gpu, ladder, products, splitkv, varlen
from tests.mutants.mutant import Mutant

__all__ = ["CONTROLS", "TABLE"]

TABLE = (
    *flash.MUTANTS,
    *varlen.MUTANTS,
    *splitkv.MUTANTS,
    *append.MUTANTS,
    *ladder.MUTANTS,
    *products.MUTANTS,
    *gpu.MUTANTS,
)

CONTROLS = tuple(
    Mutant(f"control/{check.replace(' ', '-')}{'-gpu' if device == 'cuda' else ''}", "none", (check,), (), device)
    for device in ("cpu", "cuda")
    for check in dict.fromkeys(check for mutant in TABLE if mutant.device == device for check in mutant.checks)
)
