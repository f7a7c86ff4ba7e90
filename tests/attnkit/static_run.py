"""Runs `perfgate static` on a module of builds that a test writes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def static(folder: Path, module: str, *arguments: str) -> tuple[int, str]:
    """Compile the builds of a module's source and hold them against what is in the folder."""
    (folder / "planted_builds.py").write_text(module)
    # a process of its own: the interpreter and the compiler cannot share one
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src")])}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "TRITON_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-m", "perfgate", "static", "planted_builds", "--storage", "base", "--jobs", "1"]
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=400
    )
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    return done.returncode, output


def builds_said(output: str) -> dict[str, str]:
    """A build's line and below it the reasons, by name."""
    return dict(re.findall(r"^(\S+) (.*(?:\n    .*)*)$", output, re.MULTILINE))
