"""What torch.compile leaves behind for every Triton kernel that is compiled after it.

From its first compilation on, torch.compile has Triton take torch's ptxas and another folder of compiled kernels, by
two variables of the environment. So a kernel gets other code, with other speed and other bugs, once anything was
compiled before it in the process: on an H200 with torch 2.11 and Triton 3.6, of ptxas 13.0 and not 12.8. What a suite
times would depend on the order of its tests, and on which of them were chosen.

    environment      before a test | torch.compile: TRITON_PTXAS_PATH, TRITON_CACHE_DIR | after it as before

Nothing of torch or Triton is imported here; what they remember is forgotten where they are loaded.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

__all__ = ["as_before"]

VARIABLES = ("TRITON_PTXAS_PATH", "TRITON_CACHE_DIR")
REMEMBERED = (
    ("torch._inductor.runtime.compile_tasks", "_set_triton_ptxas_path"),
    ("triton.backends.nvidia.compiler", "get_ptxas_version"),
)
"""Functions that answer once: that the first variable is set, so that the next compilation would not set it again, and
the assembler's version, which is all that compiled kernels are kept by."""


@contextlib.contextmanager
def as_before() -> Iterator[None]:
    """Let what is compiled inside have no part in how Triton compiles afterwards."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    try:
        yield
    finally:
        changed = {name: value for name, value in before.items() if os.environ.get(name) != value}
        for name, value in changed.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        for module, function in REMEMBERED if changed else ():
            forget = getattr(getattr(sys.modules.get(module), function, None), "cache_clear", None)
            if forget is not None:
                forget()
