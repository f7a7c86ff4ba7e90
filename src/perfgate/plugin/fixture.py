"""The fixture `gpu_benchmark`: what a test calls to time one case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from perfgate import price
from perfgate.case import Case, Work
from perfgate.clock import Inputs
from perfgate.replay import ReplayClock, hand_over

if TYPE_CHECKING:
    from perfgate.plugin.session import Session

__all__ = ["TIMER", "GpuBenchmark", "WithoutBenchmark", "errors_of"]

T = TypeVar("T")

TIMER = pytest.StashKey[ReplayClock]()
"""A test's timer, which its ``benchmark`` marker gives to pytest-benchmark."""


class GpuBenchmark:
    """Times one case of one test.

    Args:
        session: The run's hooks.
        item: The test.
        benchmark: pytest-benchmark's fixture for the same test.
    """

    def __init__(self, session: Session, item: pytest.Item, benchmark: Any) -> None:
        self._session, self._item, self._benchmark = session, item, benchmark
        self._used = False

    def __call__(
        self,
        call: Callable[..., T],
        *,
        inputs: Inputs | None = None,
        work: Work | None = None,
        name: str | None = None,
        group: str | None = None,
        reference: bool = False,
        l2: str = "cold",
        check: Callable[[T], object] | None = None,
    ) -> T:
        """Time a call and return its result. With ``--benchmark-disable`` it runs once and is not timed.

        Args:
            call: What to time.
            inputs: Argument tuples, taken in turn, best each in memory of its own; or a function that makes the i-th.
                None for a call without arguments.
            work: What one call does at least: for rates, and for shares of what the device can do.
            name: The case's name, by which its baseline is found; None for the test's node id.
            group: Cases of one group are alternatives, and compared with the group's reference.
            reference: Whether this is the reference of its group.
            l2: ``"cold"`` or ``"warm"``: what the device's last cache holds before a call.
            check: Gets a result before anything is timed, and raises if it is wrong. It may return how wrong: a mapping
                of names to errors, such as the mean absolute error of each tensor, which are kept and judged too.

        Raises:
            TypeError: If `inputs` is neither a sequence of tuples nor a function.
            ValueError: For a name that another test of this run has, no input set, or an unknown `l2`.
        """
        node = self._item.nodeid
        if self._used:
            pytest.fail(f"{node} used gpu_benchmark twice: a test times one case, parametrize it", pytrace=False)
        self._used = True
        sets = input_sets(inputs, l2)
        case = Case(name=name or node, group=group, reference=reference, work=work)

        def once() -> T:
            return call(*(sets(0) if callable(sets) else sets[0]))

        if self._benchmark.disabled:
            result: T = self._benchmark.pedantic(once)
            if check is not None:
                errors_of(case, check(result))
            return result
        self._session.run.claim(case.name, node)
        errors = self._session.check(case, check, once()) if check is not None else {}
        record = price.with_errors(self._session.measure(case, call, sets, l2), errors)
        if group is not None:
            self._benchmark.group = group
        self._benchmark.extra_info["perfgate"] = record.to_json()
        self._session.run.measure(record, node)
        return hand_over(self._benchmark, self._item.stash[TIMER], record.processes[0].seconds, once)


class WithoutBenchmark:
    """Stands in where pytest-benchmark is switched off (``-p no:benchmark``): calls run once and are not timed."""

    @pytest.fixture
    def gpu_benchmark(self) -> Callable[..., object]:
        """Run the call once, untimed."""

        def run(
            call: Callable[..., T],
            *,
            inputs: Inputs | None = None,
            l2: str = "cold",
            check: Callable[[T], object] | None = None,
            **case: object,
        ) -> T:
            sets = input_sets(inputs, l2)
            result = call(*(sets(0) if callable(sets) else sets[0]))
            if check is not None:
                price.checked(check(result))
            return result

        return run


def errors_of(case: Case, returned: object) -> dict[str, float]:
    """The errors that a check returned; one that is no finite number fails the test."""
    try:
        return price.checked(returned)
    except ValueError as error:
        sentence = f"{case.name}: {error}"
    pytest.fail(sentence, pytrace=False)


def input_sets(inputs: Inputs | None, l2: str) -> Inputs:
    """The input sets as a clock takes them."""
    if l2 not in ("cold", "warm"):
        raise ValueError(f"l2 must be 'cold' or 'warm', got {l2!r}")
    if inputs is None:
        return ((),)
    if callable(inputs):
        return inputs
    if isinstance(inputs, str) or not isinstance(inputs, Sequence):
        raise TypeError(f"inputs must be a sequence of argument tuples or a function, got {type(inputs).__name__}")
    if not inputs:
        raise ValueError("inputs must hold at least one tuple of arguments, got none")
    wrong = [args for args in inputs if not isinstance(args, tuple)]
    if wrong:
        raise TypeError(f"inputs must hold tuples of arguments, got {type(wrong[0]).__name__}: write [(x,)] for f(x)")
    return inputs
