"""Whether a pytest process came to its end: its exit code counts if it left a receipt that says the same.

What calls `os._exit(0)` in a test, or in an exit handler after a red run, leaves a process that looks green, and nobody
in it to say otherwise. Whoever started it can: no receipt, no success. Nothing here imports pytest: it is run.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from perfgate.fresh import plugin_arguments
from perfgate.gate import Exit

__all__ = ["run"]


def run(arguments: Sequence[str]) -> tuple[int, str | None]:
    """Run pytest on this terminal; return its exit code, and what must be said if that cannot be believed.

    Args:
        arguments: pytest's.
    """
    with tempfile.TemporaryDirectory(prefix="perfgate-") as directory:
        receipt = Path(directory) / "receipt.json"
        command = [sys.executable, "-m", "pytest", *plugin_arguments(), f"--perf-receipt={receipt}", *arguments]
        with subprocess.Popen(command) as child, _passed_on(child):
            code = _wait(child)
        said = _read(receipt)
    if code < 0:
        return Exit.INCOMPLETE, f"pytest was killed by signal {-code}: what it had finished is in its journal"
    if code != Exit.OK:
        return code, None
    if said is None:
        why = (
            "pytest ended with exit code 0 before it came to its end, for something called os._exit: nothing was judged"
        )
        return Exit.INCOMPLETE, f"{why}; what it had finished is in its journal"
    if said.code != Exit.OK:
        return (
            said.code,
            f"pytest came to exit code {said.code} and ended with 0: something called os._exit at its exit",
        )
    if said.measured == 0:
        return Exit.INCOMPLETE, "nothing was measured: no test that ran has timed anything"
    return Exit.OK, None


@dataclass(frozen=True, slots=True)
class _Receipt:
    """What pytest says of itself, last of all.

    Attributes:
        code: Its exit code.
        measured: Cases that were measured; None if none was to be.
    """

    code: int
    measured: int | None


def _read(path: Path) -> _Receipt | None:
    """What was left there; None if nothing, or if it is broken, as on a full disk."""
    try:
        return _Receipt(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        return None


@contextlib.contextmanager
def _passed_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Meanwhile what would end this process interrupts the child, which else would go on timing with nobody waiting."""
    asked = [signal.SIGTERM, signal.SIGHUP]
    before = [signal.signal(number, lambda *_: child.send_signal(signal.SIGINT)) for number in asked]
    try:
        yield
    finally:
        for number, handler in zip(asked, before, strict=True):
            signal.signal(number, handler)


def _wait(child: subprocess.Popen[bytes]) -> int:
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # the terminal interrupts the child too, which then ends by itself
            return child.wait()
