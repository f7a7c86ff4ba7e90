"""Builds C++ text for the host, once for all processes of tests and of mutants."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["build"]

BUILT = Path(tempfile.gettempdir(), f"attnkit-on-host-{os.getuid()}")


def build(code: str, headers: Iterable[str], flags: Sequence[str], *, include: Path | None = None) -> Path:
    """What g++ makes of the code, which is there already if somebody built the same.

    Args:
        code: C++.
        headers: The text of what it includes from the tests.
        flags: For the compiler.
        include: Where headers are.

    Raises:
        RuntimeError: If it does not compile.
    """
    built = BUILT / hashlib.sha256("\0".join((code, *headers, *flags)).encode()).hexdigest()
    if built.exists():
        return built
    BUILT.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILT) as folder:
        source, made = Path(folder, "kernel.cpp"), Path(folder, "kernel")
        source.write_text(code)
        command = ["g++", *flags, *([f"-I{include}"] if include else []), str(source), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[:3000])
        made.replace(built)
    return built
