"""Look for the known bugs in what is installed, and write the page of them.

    python -m tests.known_bugs run                          runs their tests; outcomes/ has what they found
    python -m tests.known_bugs page > docs/known_bugs.md

What else follows `run` goes to pytest.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch

import perfgate.environment
import perfgate.gpu
from tests.known_bugs.page import page
from tests.known_bugs.table import BUGS

MAX_LOST = 40  # processes, of which each ends with one test
OUTCOMES = Path(__file__).parent / "outcomes"


def main(arguments: list[str]) -> int:
    """Run the tests, or print the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.known_bugs", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("--folder", type=Path, default=OUTCOMES, help="where files of outcomes are")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="for all but what needs a GPU for itself")
    chosen, rest = parser.parse_known_args(arguments)
    if chosen.what == "run":
        return run(chosen.folder, chosen.processes, rest)
    if rest:
        parser.error(f"a page takes nothing but a folder, got {' '.join(rest)}")
    print(page([json.loads(file.read_text(encoding="utf-8")) for file in sorted(chosen.folder.glob("*.json"))]))
    return 0


def run(folder: Path, processes: int, options: list[str]) -> int:
    """Run the tests of all bugs, write down what they found, and return pytest's exit code."""
    os.environ.setdefault("HYPOTHESIS_PROFILE", "few")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch takes cuBLAS for nondeterministic
    if torch.cuda.is_available():
        environment = perfgate.gpu.environment()
    else:
        os.environ.setdefault("TRITON_INTERPRET", "1")
        environment = perfgate.environment.host({"torch": torch.__version__})
    # with it comes Triton, which decides at its import whether kernels are interpreted
    from tests.known_bugs.outcomes import Collector, collect

    collector = Collector()
    nodes = dict.fromkeys(node for bug in BUGS for node in bug.nodes)
    many = ["-n", str(processes), "--dist=worksteal"] if processes > 1 else []
    # one by one, for each may need most of the memory; where one takes the GPU from its process, another goes on behind
    alone = ["-n", "1", f"--max-worker-restart={MAX_LOST}"] if importlib.util.find_spec("xdist") else []
    codes = set()
    for part in (["-m", "not times_gpu", *many], ["-m", "times_gpu", *alone]):
        codes.add(pytest.main([*nodes, "-q", *part, *options], plugins=[collector]))
    if not codes <= {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        return max(codes)
    found = {
        "device": environment.device,
        "versions": dict(environment.versions),
        "bits": "compared",
        "bugs": collect(collector),
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{environment.key}.json"
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(file)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
