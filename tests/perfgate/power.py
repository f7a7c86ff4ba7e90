"""A matrix product that draws more power than a GPU may, with rests and without: ``python -m tests.perfgate.power``."""

from __future__ import annotations

import argparse
import json
import statistics
import sys

import torch

from perfgate.clock import Budget
from perfgate.cuda import DUTY, CudaClock
from perfgate.gpu import use_one_stream

N = 8192
LONG = Budget(half_width=1e-9, max_seconds=2.0, max_samples=5000)


def main() -> None:
    """Print median, relative width of the middle half, and telemetry of both."""
    description = (__doc__ or "").split(": ")[0]
    argparse.ArgumentParser(prog="python -m tests.perfgate.power", description=description).parse_args()
    if not torch.cuda.is_available():
        sys.exit("needs a GPU: torch finds none")
    use_one_stream()
    a, b = (torch.randn(N, N, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found = {}
    for name, duty in {"rested": DUTY, "restless": 1.0}.items():
        samples = CudaClock(LONG, duty=duty).measure(torch.mm, [(a, b)])
        quarter, _, three_quarters = statistics.quantiles(samples.seconds, n=4)
        found[name] = {
            "seconds": samples.median,
            "middle_half": (three_quarters - quarter) / samples.median,
            **{key: samples.counters.get(key, 0.0) for key in ("sm_hz", "watts", "throttle_reasons")},
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
