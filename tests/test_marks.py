"""Tests that time a GPU can be told from the others, which may use it at the same time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def collected(marks: str) -> set[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", marks]
    paths = ["tests/perfgate/test_cuda.py", "tests/perfgate/test_kernels.py", "tests/perfgate/test_stats.py"]
    done = subprocess.run([*command, *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {Path(line.partition("::")[0]).name for line in done.stdout.splitlines() if "::" in line}


def test_what_times_a_gpu_is_marked() -> None:
    assert collected("times_gpu") | {"test_cuda.py"} == {"test_cuda.py", "test_kernels.py"}  # the one needs a GPU
    assert collected("not times_gpu") == {"test_stats.py"}
