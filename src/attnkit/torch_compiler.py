"""How variants and products use torch.compile: for exact sizes, strides and dtypes, as often as there are new ones."""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

__all__ = ["absent_on_cpu", "compiled"]

MAX_COMPILATIONS = 4096
"""Kinds of input in one process; torch's own limit is 8, and beyond it calls fail."""

Given = ParamSpec("Given")
Result = TypeVar("Result")


def compiled(function: Callable[Given, Result], *, mode: str | None = None) -> Callable[Given, Result]:
    """Return a function compiled, in a mode of torch.compile's, which keeps what it compiled for each kind of input."""
    with warnings.catch_warnings():
        # the compiler's own modules use, while they are imported, what torch has deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._inductor.compile_fx")
        # not before it is wanted: it takes as long to import as the rest of torch
        dynamo: Any = importlib.import_module("torch._dynamo.config")
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(dynamo, limit, max(getattr(dynamo, limit), MAX_COMPILATIONS))
    return torch.compile(function, dynamic=False, fullgraph=True, mode=mode)


def absent_on_cpu() -> str | None:
    """Say that there is no compiler for the CPU; None if there is."""
    if any(map(shutil.which, ("g++", "clang++"))):
        return None
    return "needs a C++ compiler on the CPU, found neither g++ nor clang++: install one"
