"""The fixture `gpu_benchmark`: what a test calls to time one case, and what it asks for by that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import pytest

from perfgate import price
from perfgate.case import Case, Work
from perfgate.clock import Inputs

__all__ = ["Asked", "GpuBenchmark", "WithoutBenchmark", "errors_of"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked(Generic[T]):
    """What a test asks for.

    Attributes:
        node: The test.
        case: What is timed.
        call: Does it.
        inputs: Its input sets, as a clock takes them.
        l2: ``"cold"`` or ``"warm"``.
        check: Gets a result; may return errors. None if nothing checks.
    """

    node: str
    case: Case
    call: Callable[..., T]
    inputs: Inputs
    l2: str
    check: Callable[[T], object] | None

    def once(self) -> T:
        """Call on the first input set."""
        return self.call(*(self.inputs(0) if callable(self.inputs) else self.inputs[0]))


class Answer(Protocol):
    """What becomes of what is asked; returns the call's result."""

    def __call__(self, asked: Asked[T], /) -> T:
        """Time it, or not."""
        ...


class GpuBenchmark:
    """Times one case of one test.

    Args:
        node: The test's id.
        answer: Does it.
    """

    def __init__(self, node: str, answer: Answer) -> None:
        self._node, self._answer = node, answer
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
            TypeError: If `call` or `check` cannot be called, `work` is no `Work`, or `inputs` is neither a sequence of
                tuples nor a function.
            ValueError: For a name that another test of this run has, no input set, or an unknown `l2`.
        """
        node = self._node
        if self._used:
            pytest.fail(f"{node} used gpu_benchmark twice: a test times one case, parametrize it", pytrace=False)
        self._used = True
        _must_be_callable("call", call, "gpu_benchmark(lambda: f(x))")
        if check is not None:
            _must_be_callable("check", check, "check=lambda result: ...")
        if work is not None and not isinstance(work, Work):
            raise TypeError(f"work must be a perfgate.Work, such as Work(flops=2e9, bytes=1e6), got {work!r}")
        case = Case(name=name or node, group=group, reference=reference, work=work)
        sets = _input_sets(inputs, l2)
        return self._answer(Asked(node=node, case=case, call=call, inputs=sets, l2=l2, check=check))


class WithoutBenchmark:
    """Stands in where pytest-benchmark is switched off (``-p no:benchmark``): calls run once and are not timed."""

    @pytest.fixture
    def gpu_benchmark(self, request: pytest.FixtureRequest) -> GpuBenchmark:
        """Run the call once, untimed."""
        return GpuBenchmark(request.node.nodeid, untimed)


def untimed(asked: Asked[T]) -> T:
    """Run the call once, and check its result."""
    result = asked.once()
    if asked.check is not None:
        errors_of(asked.case, asked.check(result))
    return result


def errors_of(case: Case, returned: object) -> dict[str, float]:
    """The errors that a check returned; one that is no finite number fails the test."""
    try:
        return price.checked(returned)
    except ValueError as error:
        sentence = f"{case.name}: {error}"
    pytest.fail(sentence, pytrace=False)


def _must_be_callable(name: str, given: object, example: str) -> None:
    if not callable(given):
        raise TypeError(f"{name} must be a function, as in {example}, got {given!r}")


def _input_sets(inputs: Inputs | None, l2: str) -> Inputs:
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
