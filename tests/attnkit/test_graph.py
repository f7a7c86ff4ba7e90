"""Capture and replay: with a backend that records calls on the CPU, and on a GPU with CUDA's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from attnkit.graph import CaptureError, Graphed
from attnkit.problem import Cache, Problem, Varlen
from attnkit.variant import Variant
from attnkit.variants import TABLE

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Recorder:
    """As CUDA does: a capture gives a result that nothing has been written to, and a replay writes it in place."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def capture(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.captures += 1
        result = call()
        places = result if isinstance(result, tuple) else (result,)
        for place in places:
            if isinstance(place, torch.Tensor):
                place.fill_(torch.nan)

        @torch.no_grad()  # a graph knows nothing of autograd
        def replay() -> None:
            self.replays += 1
            again = call()
            for place, fresh in zip(places, again if isinstance(again, tuple) else (again,), strict=True):
                place.copy_(fresh)

        return replay, result


def graphed(call: Callable[..., Any], **options: Any) -> tuple[Graphed, Recorder]:
    recorder = Recorder()
    return Graphed(call, backend=recorder, **options), recorder


def double(x: torch.Tensor, times: float = 2.0) -> torch.Tensor:
    return x * times


def test_a_shape_is_captured_once_and_replayed_with_new_numbers() -> None:
    step, recorder = graphed(double)
    for i in range(3):
        assert torch.equal(step(torch.full((2, 3), float(i))), torch.full((2, 3), 2.0 * i))
    assert (recorder.captures, recorder.replays) == (1, 3)


def test_the_callers_tensors_are_not_held() -> None:
    step, _ = graphed(double)
    first = torch.ones(3)
    step(first)
    step(torch.zeros(3))
    assert torch.equal(first, torch.ones(3))


def test_a_result_is_overwritten_by_the_next_call() -> None:
    step, _ = graphed(double)
    first = step(torch.ones(3))
    step(torch.zeros(3))
    assert torch.equal(first, torch.zeros(3))


@pytest.mark.parametrize(
    ("one", "another"),
    [
        ((torch.ones(2, 3),), (torch.ones(3, 2),)),
        ((torch.ones(2, 2),), (torch.ones(2, 2, dtype=torch.float64),)),
        ((torch.ones(2, 3),), (torch.ones(3, 2).T,)),
        ((torch.ones(2), 2.0), (torch.ones(2), 3.0)),
        ((torch.ones(2), 1), (torch.ones(2), True)),
    ],
    ids=["shape", "dtype", "strides", "another argument", "type of another argument"],
)
def test_what_differs_has_a_graph_of_its_own(one: tuple[Any, ...], another: tuple[Any, ...]) -> None:
    step, recorder = graphed(double)
    for args in (one, another, one):
        torch.testing.assert_close(step(*args), double(*args))
    assert recorder.captures == 2


def test_names_of_arguments_matter() -> None:
    step, recorder = graphed(lambda **named: named["a"] - named["b"])
    assert float(step(a=torch.tensor(3.0), b=torch.tensor(1.0))) == 2.0
    assert float(step(b=torch.tensor(1.0), a=torch.tensor(5.0))) == 4.0
    assert float(step(a=torch.tensor(5.0), b=torch.tensor(1.0))) == 4.0
    assert recorder.captures == 2


def test_training_mode_matters() -> None:
    torch.manual_seed(0)
    module = nn.Dropout(0.5)
    step, recorder = graphed(module)
    step(torch.ones(100))
    module.eval()
    assert torch.equal(step(torch.ones(100)), torch.ones(100))
    assert recorder.captures == 2


def test_the_graph_unused_for_longest_goes_first() -> None:
    step, recorder = graphed(double, most=2)
    for n in (1, 2, 1, 3):
        step(torch.ones(n))
    assert step.graphs == 2
    step(torch.ones(1))
    assert recorder.captures == 3
    step(torch.ones(2))
    assert recorder.captures == 4
    step.forget()
    assert step.graphs == 0


def test_strided_and_broadcast_arguments() -> None:
    step, _ = graphed(double)
    for x in (torch.arange(12.0).view(3, 4).T, torch.arange(3.0).expand(4, 3), torch.arange(20.0)[::3]):
        assert torch.equal(step(x), 2 * x)
        assert torch.equal(step(x + 1), 2 * (x + 1))


def test_nothing_keeps_a_backward() -> None:
    linear = nn.Linear(3, 3)
    step, _ = graphed(linear)
    assert not step(torch.ones(2, 3)).requires_grad
    with pytest.raises(ValueError, match="argument 0 requires a gradient, and a replay has no backward"):
        step(torch.ones(2, 3, requires_grad=True))


def test_inference_mode_makes_no_difference() -> None:
    linear = nn.Linear(3, 3)
    step, recorder = graphed(linear)
    with torch.inference_mode():
        for i in range(2):
            x = torch.full((2, 3), float(i))
            torch.testing.assert_close(step(x), linear(x))
            torch.testing.assert_close(step(x[:1].expand(4, 3)), linear(x[:1].expand(4, 3)))
    x = torch.ones(2, 3)
    torch.testing.assert_close(step(x), linear(x).detach())
    assert recorder.captures == 2


def test_what_cannot_be_replayed_truly_is_refused() -> None:
    with pytest.raises(CaptureError, match="returns a float, which a replay cannot renew"):
        graphed(lambda x: (x, float(x.sum())))[0](torch.ones(2))
    with pytest.raises(CaptureError, match="writes into its tensor argument number 1"):
        graphed(lambda x, cache: cache.add_(x))[0](torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="argument states holds tensors"):
        graphed(lambda x, states: x)[0](torch.ones(2), states=[torch.ones(2)])
    with pytest.raises(ValueError, match=r"argument 1 must be a tensor or hashable.*got list"):
        graphed(double)[0](torch.ones(2), [1])
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        Graphed(double, most=0)


def test_a_capture_that_fails_leaves_no_graph() -> None:
    step, recorder = graphed(lambda x: float(x.sum()))
    for _ in range(2):
        with pytest.raises(CaptureError):
            step(torch.ones(2))
    assert step.graphs == 0
    assert recorder.captures == 2


def test_a_graph_reads_no_memory_of_the_host() -> None:
    with pytest.raises(ValueError, match="argument 0 must be on the current CUDA device, got cpu"):
        Graphed(double)(torch.ones(2))


@on_gpu
def test_a_module_on_a_gpu() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)).cuda()
    step = Graphed(module, most=2)
    for _ in range(2):
        for n in (1, 5, 9):
            x = torch.randn(n, 64, device="cuda")
            torch.testing.assert_close(step(x), module(x).detach())
    assert step.graphs == 2


@on_gpu
def test_a_cache_that_the_callable_holds_is_written_in_place() -> None:
    cache, position = torch.zeros(8, device="cuda"), torch.zeros((), dtype=torch.long, device="cuda")

    def append(x: torch.Tensor) -> torch.Tensor:
        cache.index_copy_(0, position[None], x)
        position.add_(1)
        return cache.sum()

    step = Graphed(append)
    step(torch.ones(1, device="cuda"))
    cache.zero_()
    position.zero_()
    for i in range(8):
        assert float(step(torch.ones(1, device="cuda"))) == i + 1


@on_gpu
def test_on_a_stream_of_its_own_and_inside_another_capture() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        inner = Graphed(double)
        outer = Graphed(lambda x: inner(x) + 1)
        for i in range(3):
            assert torch.equal(outer(torch.full((4,), float(i), device="cuda")), torch.full((4,), 2.0 * i + 1).cuda())
        stream.synchronize()


@on_gpu
def test_random_numbers_are_new_at_each_replay() -> None:
    step = Graphed(lambda x: nn.functional.dropout(x, 0.5))
    x = torch.ones(1000, device="cuda")
    first = step(x).clone()
    assert not torch.equal(first, step(x))


@on_gpu
def test_work_on_the_cpu_alone_cannot_be_captured() -> None:
    here = torch.ones(2)
    with pytest.raises(CaptureError, match="does nothing on the current CUDA stream"):
        Graphed(lambda x: here * 2)(torch.ones(2, device="cuda"))


@on_gpu
def test_results_are_right_in_whatever_order_graphs_run() -> None:
    def halves(x: torch.Tensor) -> torch.Tensor:
        return (x * 2 + 1) * 0.5

    step = Graphed(halves)
    sizes = (1 << 20, 1 << 10, 1 << 18)
    for size in (*sizes, *reversed(sizes), *sizes):
        x = torch.full((size,), float(size), device="cuda")
        assert torch.equal(step(x), halves(x))
    assert step.graphs == len(sizes)


@on_gpu
def test_a_capture_after_all_graphs_were_forgotten_leaves_a_held_result_alone() -> None:
    step = Graphed(double)
    held = step(torch.ones(1 << 20, device="cuda"))
    step.forget()
    assert torch.equal(step(torch.zeros(1 << 20, device="cuda")), torch.zeros(1 << 20, device="cuda"))
    assert torch.equal(held, torch.full((1 << 20,), 2.0, device="cuda"))


OF_VARIANTS = (
    Problem(b=2, hq=4, hkv=2, sq=64, d=64, mask="causal"),
    Problem(b=2, hq=4, hkv=2, sq=4, skv=96, d=64, mask="causal", cache=Cache((96, 50), page=16)),
    Problem(b=1, hq=4, hkv=2, sq=64, d=64, mask="causal", varlen=Varlen((40, 24), (40, 24))),
)


@on_gpu
@pytest.mark.parametrize("way", TABLE, ids=lambda way: way.name)
def test_a_replay_of_a_variant_is_its_eager_call_to_the_bit(way: Variant, device: torch.device) -> None:
    taken = [problem for problem in OF_VARIANTS if way.why_not(problem, device, "fwd") is None]
    if not taken:
        pytest.skip(f"{way.name} cannot: {way.why_not(OF_VARIANTS[0], device, 'fwd')}")
    for problem in taken:
        call = functools.partial(way.attention, **problem.options(device))
        step = Graphed(call)
        for seed in range(3):
            q, k, v, _ = problem.inputs(device, seed=seed)
            assert torch.equal(step(q, k, v), call(q, k, v))
