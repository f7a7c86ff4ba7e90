"""The CUDA clock against CUPTI, and its refusals: on a GPU only."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402 - after the check for a device
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from perfgate import cuda  # noqa: E402
from perfgate.clock import Budget, MeasureError  # noqa: E402

Make = Callable[[int], tuple[Any, ...]]


@pytest.fixture(scope="module")
def clock() -> cuda.CudaClock:
    return cuda.CudaClock(Budget(max_seconds=0.3))


def _tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> Make:
    return lambda i: tuple(torch.randn(*shape, device="cuda", dtype=dtype) for shape in shapes)


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        return scaled_dot_product_attention(q, k, v)


def _copy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y.copy_(x)


def _sleep(cycles: int) -> Callable[[torch.Tensor], None]:
    return lambda x: torch.cuda._sleep(cycles)


KERNELS: dict[str, tuple[Callable[..., object], Make]] = {
    "sleep 1.1 us": (_sleep(1000), _tensors((1,))),
    "sleep 3 us": (_sleep(5000), _tensors((1,))),
    "sleep 11 us": (_sleep(20000), _tensors((1,))),
    "sleep 26 us": (_sleep(50000), _tensors((1,))),
    "sleep 102 us": (_sleep(200000), _tensors((1,))),
    "copy 4 kB": (_copy, _tensors((1024,), (1024,), dtype=torch.float32)),
    "copy 1 MB": (_copy, _tensors((2**18,), (2**18,), dtype=torch.float32)),
    "copy 128 MB": (_copy, _tensors((2**25,), (2**25,), dtype=torch.float32)),
    "softmax 8192 x 4096": (lambda x: torch.softmax(x, -1), _tensors((8192, 4096))),
    "product 512": (torch.mm, _tensors((512, 512), (512, 512))),
    "product 1024": (torch.mm, _tensors((1024, 1024), (1024, 1024))),
    "flash 1x4x32x16": (_flash, _tensors(*[(1, 4, 32, 16)] * 3)),
    "flash 4x16x256x64": (_flash, _tensors(*[(4, 16, 256, 64)] * 3)),
    "flash 16x32x512x64": (_flash, _tensors(*[(16, 32, 512, 64)] * 3)),
}


def _cupti(clock: cuda.CudaClock, call: Callable[..., object], make: Make, sets: int, folder: Path) -> float:
    """Median over calls of the kernel's duration in seconds, on cold input sets, by CUPTI."""
    inputs = [make(i) for i in range(sets)]
    for args in inputs:
        call(*args)
    names = []
    for flush_only in (True, False):
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiler:
            for _ in range(-(-60 // sets)):
                clock.flush()
                for args in [] if flush_only else inputs:
                    call(*args)
            torch.cuda.synchronize()
        trace = folder / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("cat") in ("kernel", "gpu_memcpy")]
        if flush_only:
            names = [e["name"] for e in events]
    return statistics.median(e["dur"] for e in events if e["name"] not in names) / 1e6


@pytest.mark.parametrize("name", KERNELS)
def test_durations_agree_with_cupti(
    name: str, clock: cuda.CudaClock, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Within 1 % for kernels of 20 us and more, within 0.3 us below: medians, taken before and after CUPTI's turn."""
    call, make = KERNELS[name]
    first = clock.measure(call, make)
    truth = _cupti(clock, call, make, int(first.counters["input_sets"]), tmp_path)
    ours = (first.median + clock.measure(call, make).median) / 2
    record_property("seconds", ours)
    record_property("cupti_seconds", truth)
    print(f"{name}: {ours * 1e6:.3f} us, CUPTI {truth * 1e6:.3f} us, {ours / truth - 1:+.2%}")
    allowed = 0.01 * truth if truth >= 20e-6 else 0.3e-6
    assert abs(ours - truth) <= allowed, f"{ours * 1e6:.3f} us against CUPTI's {truth * 1e6:.3f} us"


def test_a_cold_call_is_slower_than_a_warm_one(clock: cuda.CudaClock) -> None:
    make = _tensors((2**22,), (2**22,), dtype=torch.float32)
    cold, warm = clock.measure(_copy, make), clock.measure(_copy, make, l2="warm")
    assert cold.median > 1.2 * warm.median
    assert (cold.method.l2, warm.method.l2) == ("cold", "warm")


def test_the_time_of_a_fixed_input_set_agrees_with_many(clock: cuda.CudaClock) -> None:
    make = _tensors((2**22,), dtype=torch.float32)
    fixed, many = clock.measure(torch.sum, [make(0)]), clock.measure(torch.sum, make)
    assert fixed.median == pytest.approx(many.median, abs=1e-6)


def test_a_call_that_can_be_captured_is_replayed_from_a_graph(clock: cuda.CudaClock) -> None:
    samples = clock.measure(torch.softmax, [(torch.randn(256, 256, device="cuda"), -1)])
    assert samples.method.launch == "graph"


def test_a_call_that_waits_for_the_device_is_timed_as_it_is(clock: cuda.CudaClock) -> None:
    x = torch.randn(2**20, device="cuda")
    assert clock.measure(lambda: x.sum().item()).method.launch == "direct"


def test_a_call_that_cannot_be_captured_is_queued(clock: cuda.CudaClock) -> None:
    x, y = torch.randn(2**24, device="cuda"), torch.empty(2**24, device="cuda")

    def call() -> None:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("refuses to be captured")
        y.copy_(x)

    queued, replayed = clock.measure(call), clock.measure(_copy, [(x, y)])
    assert (queued.method.launch, replayed.method.launch) == ("queue", "graph")
    assert queued.median == pytest.approx(replayed.median, rel=0.05, abs=2e-6)


def test_taking_device_memory_inside_a_timed_window_names_the_culprit(clock: cuda.CudaClock) -> None:
    kept: list[torch.Tensor] = []

    def hoarder() -> None:
        kept.append(torch.empty(2**26, device="cuda"))
        kept[-1][:1024].sum().item()
        if len(kept) > 200:
            kept.clear()
            torch.cuda.empty_cache()

    with pytest.raises(MeasureError, match="hoarder.*device memory"):
        clock.measure(hoarder)


def test_compiling_inside_a_timed_window_names_the_culprit(clock: cuda.CudaClock) -> None:
    triton = pytest.importorskip("triton")
    from tests.perfgate.gpu_kernel import fill

    out, width = torch.empty(2**16, device="cuda"), [0]

    def restless() -> None:
        width[0] += 1
        fill[(1,)](out, width[0] % 3000 + 1, BLOCK=triton.next_power_of_2(64), STEP=width[0])
        out[0].item()

    with pytest.raises(MeasureError, match="restless.*triton compiled.*fill"):
        clock.measure(restless)


def test_running_out_of_memory_is_reported_as_such(clock: cuda.CudaClock) -> None:
    with pytest.raises(cuda.OUT_OF_MEMORY):
        clock.measure(lambda: torch.empty(2**42, device="cuda"))
    assert clock.measure(torch.sum, [(torch.ones(2**20, device="cuda"),)]).median > 0


def test_peak_memory_is_what_the_call_needs_beyond_its_inputs(clock: cuda.CudaClock) -> None:
    samples = clock.measure(lambda x: (x + 1) * 2, [(torch.ones(2**22, device="cuda"),)])
    assert samples.counters["peak_bytes"] == 2 * 4 * 2**22


def test_a_backward_pass_alone_can_be_timed(clock: cuda.CudaClock) -> None:
    x = torch.randn(512, 512, device="cuda", requires_grad=True)
    saved: list[torch.Tensor] = []

    def backward() -> object:
        if not saved:
            saved.append(torch.softmax(x @ x, -1))
        return torch.autograd.grad(saved[0], x, torch.ones_like(saved[0]), retain_graph=True)

    assert clock.measure(backward).method.launch == "graph"


def test_the_driver_reports_clock_power_and_temperature(clock: cuda.CudaClock) -> None:
    pytest.importorskip("pynvml")
    counters = clock.measure(torch.sum, [(torch.ones(2**26, device="cuda"),)]).counters
    assert 1e8 < counters["sm_hz"] < 4e9
    assert 10 < counters["watts"] < 2000
    assert 0 < counters["celsius"] < 120


def test_the_environment_names_the_device_and_its_software() -> None:
    environment = cuda.environment()
    assert environment.key.endswith("_torch" + ".".join(torch.__version__.split(".")[:2]))
    assert f"_cu{torch.version.cuda.replace('.', '')}_" in environment.key


def test_the_ceilings_are_those_of_a_gpu(clock: cuda.CudaClock) -> None:
    found = cuda.ceilings(clock)
    assert found["copy_bytes_per_second"] > 1e11
    assert found["read_bytes_per_second"] > 1e11
    assert found["flops_per_second.bf16"] > 2 * found["flops_per_second.fp32"]
