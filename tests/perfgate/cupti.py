"""The clock's word on some kernels, and CUPTI's on the same windows, from one process.

python -m tests.perfgate.cupti times
python -m tests.perfgate.cupti environment
"""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import layer_norm, scaled_dot_product_attention

Make = Callable[[int], tuple[Any, ...]]

DEVICE = ("kernel", "gpu_memset", "gpu_memcpy")
"""What a trace calls that which a device does."""


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> Make:
    return lambda i: tuple(torch.randn(*shape, device="cuda", dtype=dtype) for shape in shapes)


def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        return scaled_dot_product_attention(q, k, v)


def softmax(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, -1)


def increment(x: torch.Tensor) -> torch.Tensor:
    return x + 1


KERNELS: dict[str, tuple[Callable[..., object], Make]] = {
    "increment 4 kB": (increment, tensors((2048,))),
    "increment 1 MB": (increment, tensors((2**19,))),
    "product 512": (torch.mm, tensors((512, 512), (512, 512))),
    "product 1024": (torch.mm, tensors((1024, 1024), (1024, 1024))),
    "flash 1x4x32x16": (flash, tensors(*[(1, 4, 32, 16)] * 3)),
    "flash 4x16x256x64": (flash, tensors(*[(4, 16, 256, 64)] * 3)),
    "flash 8x16x512x64": (flash, tensors(*[(8, 16, 512, 64)] * 3)),
    "norm 8192x4096": (lambda x: layer_norm(x, (4096,)), tensors((8192, 4096))),
    "increment 256 MB": (increment, tensors((2**27,))),
    "product 2048": (torch.mm, tensors((2048, 2048), (2048, 2048))),
    "softmax 2048x4096": (softmax, tensors((2048, 4096))),
    "softmax 8192x4096": (softmax, tensors((8192, 4096))),
    "flash 8x16x1024x64": (flash, tensors(*[(8, 16, 1024, 64)] * 3)),
    "flash 16x32x512x64": (flash, tensors(*[(16, 32, 512, 64)] * 3)),
    "flash 4x16x4096x128": (flash, tensors(*[(4, 16, 4096, 128)] * 3)),
}


def played(rounds: Any, runs: int = 8) -> list[float]:
    """Seconds a call of the windows that so many runs play."""
    return [seconds for _ in range(runs) for seconds in rounds.run()]


def watched(play: Callable[[], Any]) -> tuple[Any, list[dict[str, Any]]]:
    """What it returns with CUPTI at work, and what the device did meanwhile, in order."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        result = play()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return result, sorted((e for e in events if e.get("cat") in DEVICE), key=lambda e: e["ts"])


def durations(events: Sequence[dict[str, Any]], flushing: Sequence[str], windows: int, calls: int) -> list[float]:
    """Seconds of the kernel by CUPTI, the mean of each window's calls.

    Raises:
        RuntimeError: If there are not so many kernels.
    """
    n = len(flushing) + calls
    by_window = [events[i : i + n] for i in range(0, len(events), n)]
    if len(events) != n * windows or any([e["name"] for e in one[: len(flushing)]] != flushing for one in by_window):
        raise RuntimeError(f"{len(events)} kernels in {windows} windows of {calls} calls: a call must be one kernel")
    return [statistics.fmean(e["dur"] for e in one[len(flushing) :]) / 1e6 for one in by_window]


def times() -> dict[str, dict[str, float]]:
    """Median seconds of each kernel: by the clock, and by clock and CUPTI while both watch the very same windows.

    CUPTI makes windows longer: by its own work around each kernel, which is in no kernel's duration, and because some
    kernels take longer while it watches, which is. The first is known from a kernel of a megabyte, in windows of as
    many calls, with CUPTI and without, and is taken off what the clock says while CUPTI watches.
    """
    from perfgate.clock import Budget
    from perfgate.cuda import DUTY, CudaClock
    from perfgate.gpu import use_one_stream
    from perfgate.windows import GraphRounds, Pace, Plan

    use_one_stream()
    clock = CudaClock(Budget(max_seconds=0.3))
    small = [tensors((2**19,))(i) for i in range(64)]
    found: dict[str, dict[str, float]] = {}
    with contextlib.ExitStack() as stack:
        prepared, paid_for = {}, {}
        for name, (call, make) in KERNELS.items():
            prepared[name] = stack.enter_context(clock.prepare(call, functools.cache(make)))
            calls = int(prepared[name].plan["calls_per_window"])
            if calls not in paid_for:
                windows = tuple(tuple(small[(i + j) % len(small)] for j in range(calls)) for i in range(8))
                plan = Plan(windows, 1, "cold", clock.flush, 1e-6)
                paid_for[calls] = GraphRounds(increment, plan, Pace(DUTY))
        for name, one in prepared.items():  # none has been watched yet
            samples = one.time()
            found[name] = {"clock": samples.median, **samples.counters}
        alone = {calls: statistics.median(played(rounds)) for calls, rounds in paid_for.items()}
        flushing = [e["name"] for e in watched(clock.flush)[1]]
        price = {calls: statistics.median(watched(partial(played, rounds))[0]) - alone[calls]
                 for calls, rounds in paid_for.items()}  # fmt: skip
        for name, one in prepared.items():
            calls = int(one.plan["calls_per_window"])
            seconds, events = watched(partial(played, one._rounds))
            found[name]["clock watched"] = statistics.median(seconds) - price[calls]
            found[name]["CUPTI"] = statistics.median(durations(events, flushing, len(seconds), calls))
    return found


def environment() -> dict[str, Any]:
    """Where they are timed."""
    from perfgate import gpu

    return dict(gpu.environment().to_json())


if __name__ == "__main__":
    steps = {"times": times, "environment": environment}
    print(json.dumps(steps[sys.argv[1]]()))
