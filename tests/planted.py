"""A pytest plugin that slows a variant's forward pass on the device: ``-p tests.planted --planted triton_flash:10``.

It shows that the gate sees a slowdown, and only that one: the work is real, a kernel that keeps the device waiting for
a share of what the call took before.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import pytest
import torch

from attnkit.variant import Attention
from attnkit.variants import variant

CYCLES = "cycles of a second"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--planted", metavar="VARIANT:PERCENT", type=_share, help="slow this variant's forward pass")


def pytest_configure(config: pytest.Config) -> None:
    if planted := config.getoption("planted"):
        name, share = planted
        victim = variant(name)
        object.__setattr__(victim, "attention", slowed(victim.attention, share))  # frozen for everybody else


def slowed(attention: Attention, share: float) -> Attention:
    """Return attention that takes longer by a share of its own time, known from the first call of its sizes."""
    known: dict[Hashable, float] = {}

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: object) -> torch.Tensor:
        sizes = (q.shape, k.shape, q.dtype, tuple(options.items()))
        if CYCLES not in known:
            known[CYCLES] = 10**6 / seconds(lambda: torch.cuda._sleep(10**6))
        if sizes not in known:
            known[sizes] = seconds(lambda: attention(q, k, v, **options))  # type: ignore[arg-type]
        out = attention(q, k, v, **options)  # type: ignore[arg-type]
        torch.cuda._sleep(int(share * known[sizes] * known[CYCLES]))
        return out

    return call


def seconds(call: Callable[[], object], repeats: int = 20) -> float:
    """Device seconds of a call, back to back."""
    call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(10**7)  # the host is ahead when the first call starts
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / repeats


def _share(text: str) -> tuple[str, float]:
    name, _, percent = text.partition(":")
    return name, float(percent) / 100
