"""The clock's word on some kernels, and CUPTI's on the same calls with the same tensors, from one process.

python -m tests.perfgate.cupti times
python -m tests.perfgate.cupti environment

Where tensors came to lie moves a kernel's time from one process to the next, so both are asked in one; the clock comes
first, while nothing has been profiled yet.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import layer_norm, scaled_dot_product_attention

Make = Callable[[int], tuple[Any, ...]]


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
    "softmax 2048x4096": (softmax, tensors((2048, 4096))),
    "softmax 8192x4096": (softmax, tensors((8192, 4096))),
    "flash 16x32x512x64": (flash, tensors(*[(16, 32, 512, 64)] * 3)),
    "flash 4x16x4096x128": (flash, tensors(*[(4, 16, 4096, 128)] * 3)),
}


def durations(
    flush: Callable[[], object],
    call: Callable[..., object],
    inputs: Sequence[tuple[Any, ...]],
    calls: int,
    rough: float,
) -> list[float]:
    """Seconds of the kernel, the mean of as many calls on other inputs as the clock's windows have, after a flush of
    the L2 as before those.

    As many windows as the clock plays follow each other at once, and then the device rests as long: at its power limit
    it would be slower, and after a rest it is slower for some hundred microseconds. A call takes `rough` seconds.
    """
    from torch.profiler import ProfilerActivity, profile

    from perfgate.cuda import DUTY
    from perfgate.windows import PIECE, Pace

    pace = Pace(DUTY)
    windows = [inputs[i : i + calls] for i in range(0, len(inputs) - calls + 1, calls)]
    together = max(1, int(PIECE / (calls * rough)))
    rounds = together * max(1, round(max(50, -(-200 // calls)) / together))

    def play() -> None:
        for i in range(0, rounds, together):
            with pace.piece():
                for j in range(i, i + together):
                    flush()
                    # each writes to memory of its own, as in the clock's graph
                    kept = [call(*args) for args in windows[j % len(windows)]]
                    del kept
                torch.cuda.synchronize()

    play()  # as warm as the clock's own
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiler:
        play()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("cat") == "kernel"]
    events.sort(key=lambda e: e["ts"])
    flushing = len(events) // rounds - calls
    if len(events) != rounds * (flushing + calls):
        raise RuntimeError(f"{len(events)} kernels in {rounds} rounds of {calls} calls: a call must be one kernel")
    played = (events[i : i + flushing + calls] for i in range(0, len(events), flushing + calls))
    return [statistics.fmean(e["dur"] for e in one[flushing:]) / 1e6 for one in played]


def times() -> dict[str, dict[str, float]]:
    """Median seconds of each kernel by the clock and by CUPTI."""
    from perfgate.clock import Budget
    from perfgate.cuda import CudaClock
    from perfgate.gpu import use_one_stream

    use_one_stream()
    clock = CudaClock(Budget(max_seconds=0.3))
    found, inputs = {}, {}
    for name, (call, make) in KERNELS.items():
        inputs[name] = functools.cache(make)
        samples = clock.measure(call, inputs[name])
        found[name] = {"clock": samples.median, **samples.counters}
    for name, one in found.items():
        sets = [inputs[name](i) for i in range(int(one["input_sets"]))]
        kernel = durations(clock.flush, KERNELS[name][0], sets, int(one["calls_per_window"]), one["clock"])
        one["CUPTI"] = statistics.median(kernel)
    return found


def environment() -> dict[str, Any]:
    """Where they are timed."""
    from perfgate import gpu

    return dict(gpu.environment().to_json())


if __name__ == "__main__":
    steps = {"times": times, "environment": environment}
    print(json.dumps(steps[sys.argv[1]]()))
