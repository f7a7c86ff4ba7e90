"""NVBench's word on the kernels of `cupti`, by its Python package: ``python -m tests.perfgate.nvbench time``.

NVBench flushes the L2 and times one call a sample, between two events behind a blocking kernel, on a stream of its own.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.perfgate.cupti import KERNELS, Make

TIMEOUT = "3"
"""Seconds at most for one kernel."""


def absent() -> str | None:
    """Why NVBench cannot be asked here, with the remedy; None if it can."""
    try:
        import cuda.bench
        from cuda.bench.results import BenchmarkResult  # noqa: F401

        cuda.bench.register  # noqa: B018 - loads the extension
    except (ImportError, AttributeError) as error:
        return f"cuda-bench cannot be used ({error}): pip install 'cuda-bench[cu13]>=0.3'"
    return None


def benchmark(call: Callable[..., object], make: Make) -> Callable[[Any], None]:
    """A benchmark as NVBench takes it: it gets a state, and has it execute launches."""

    def run(state: Any) -> None:
        args = make(0)
        stream = torch.cuda.ExternalStream(state.get_stream().addressof())
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(3):  # nothing may be allocated or loaded while the stream is blocked
                call(*args)
        torch.cuda.synchronize()

        def launch(launched: Any) -> None:
            with torch.cuda.stream(torch.cuda.ExternalStream(launched.get_stream().addressof())):
                call(*args)

        state.exec(launch, batched=False)

    return run


def by_nvbench() -> dict[str, dict[str, float]]:
    """Median seconds of each kernel."""
    import cuda.bench
    from cuda.bench.results import BenchmarkResult

    names = {f"kernel{i}": name for i, name in enumerate(KERNELS)}
    for number, name in names.items():
        cuda.bench.register(benchmark(*KERNELS[name])).set_name(number)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.json"
        cuda.bench.run_all_benchmarks(
            ["nvbench", "--quiet", "--devices", "0", "--timeout", TIMEOUT, "--jsonbin", str(path)]
        )
        found = BenchmarkResult.from_json(path).centers(statistics.median)
    return {names[number]: {"seconds": next(iter(states.values()))} for number, states in found.items()}


if __name__ == "__main__":
    print(json.dumps({"time": by_nvbench, "absent": absent}[sys.argv[1]]()))
