"""Kernels of a graph before and after work on the same and on another stream: ``python -m tests.perfgate.streams``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

from perfgate.clock import Budget
from perfgate.cuda import CudaClock
from perfgate.gpu import use_one_stream


def main() -> None:
    """Print how long the shortest kernel takes, and what the clock says of it."""
    description = (__doc__ or "").split(": ")[0]
    argparse.ArgumentParser(prog="python -m tests.perfgate.streams", description=description).parse_args()
    if not torch.cuda.is_available():
        sys.exit("needs a GPU: torch finds none")
    use_one_stream()
    clock = CudaClock(Budget(max_seconds=0.1))
    x = torch.zeros(1024, device="cuda")

    def measure() -> dict[str, Any]:
        samples = clock.measure(lambda: x + 1)
        said = [note for note in samples.notes if "kernels start later" in note]
        return {"shortest": samples.counters["shortest_kernel_seconds"], "said": said}

    def work() -> None:
        for _ in range(1000):
            torch.zeros(1024, device="cuda").add_(1)
        torch.cuda.synchronize()

    found = {"before": measure()}
    work()
    found["after work on the same"] = measure()
    with torch.cuda.stream(torch.cuda.Stream()):
        work()
    found["after work on another"] = measure()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
