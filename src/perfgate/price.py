"""What was paid for speed: memory and accuracy. Two records of a case in, verdicts with both numbers out.

A case always has a verdict of its time; of these it has one only where there is something to say.

Memory is counted, not sampled. Of each side the largest count is taken, for a count errs in one direction: what is
freed behind a call's back while it runs makes it smaller. Growth counts above 1 % and above 1 MiB: torch's allocator
hands out a block whole if it is larger than asked for by up to 1 MiB, so with the same code a count moves by as much
with what happens to be free, and what is smaller comes out of memory that the process holds already.

Accuracy is the mean error that a case's check returned, for each of the tensors that it looked at. With

    ratio = mean of new / mean of old       interval = ratio · exp(± t · sqrt(v / n(new) + v / n(old)))

it has regressed if the ratio is above 1.05 and the interval above 1. v is the relative variance between the processes
of this case on either side. Mostly it is zero: the inputs are the same and most kernels deterministic, so the processes
of a side agree to the last bit, and the ratio is exact. With one process a side nobody can tell, and what has grown is
unresolved until others have checked (`doubtful`). Each case is asked at 99.9 %: a suite asks some hundred such
questions at once. What was without error and is no longer has regressed, however small it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from perfgate import stats
from perfgate.record import Record
from perfgate.verdict import Noise, Quantity, Rule, State, Verdict
from perfgate.verdict import judge as judge_time

__all__ = ["assess", "checked", "doubtful", "errors", "judge", "with_errors"]

PREFIX = "error."
"""Of the counters that hold errors."""
MEMORY_FLOOR = 0.01
MEMORY_FLOOR_BYTES = 2**20
ERROR_FLOOR = 0.05
ERROR_CONFIDENCE = 0.999
WORST = (State.REGRESSED, State.MISSING, State.UNRESOLVED, State.IMPROVED)


def assess(new: Record, old: Record, rule: Rule, noise: Noise) -> list[Verdict]:
    """All verdicts of a case: that of its time first, and if it can be compared, those of memory and accuracy."""
    time = judge_time(new, old, rule, noise)
    return [time] if time.state is State.REFUSED else [time, *judge(new, old)]


def judge(new: Record, old: Record, *, where: str = "the baseline") -> list[Verdict]:
    """The verdicts of memory and accuracy, where there is something to say.

    Args:
        new: What was measured now, in one or several processes.
        old: What it is held against; where it has no count or no error, nothing is said.
        where: What holds `old`, in a sentence's words.
    """
    return [v for v in (_memory(new, old, where), _accuracy(new, old, where)) if v is not None]


def doubtful(new: Record, old: Record) -> bool:
    """Whether the errors of more processes could tell more: what was seen of them is growth, or chance."""
    verdict = _accuracy(new, old, "")
    return verdict is not None and verdict.state is State.UNRESOLVED


def checked(returned: object) -> dict[str, float]:
    """The errors that a check returned: those of a mapping of names to numbers; of anything else, none.

    Raises:
        ValueError: For an error that is no number, not finite or negative.
    """
    if not isinstance(returned, Mapping):
        return {}
    found = {}
    for name, value in returned.items():
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"the error of {name} must be a number, got {value!r}") from None
    for name, error in found.items():
        if not (math.isfinite(error) and error >= 0):
            raise ValueError(f"the error of {name} must be finite and not negative, got {error!r}")
    return found


def with_errors(record: Record, found: Mapping[str, float]) -> Record:
    """The record with what its check found, in each of its processes."""
    counters = {f"{PREFIX}{name}": error for name, error in found.items()}
    return replace(record, processes=tuple(replace(s, counters={**s.counters, **counters}) for s in record.processes))


def errors(record: Record) -> dict[str, list[float]]:
    """The errors by name, a number a process that has it."""
    found: dict[str, list[float]] = {}
    for samples in record.processes:
        for name, value in samples.counters.items():
            if name.startswith(PREFIX):
                found.setdefault(name.removeprefix(PREFIX), []).append(value)
    return found


def _memory(new: Record, old: Record, where: str) -> Verdict | None:
    now, then = (
        max((s.counters["peak_bytes"] for s in side.processes if "peak_bytes" in s.counters), default=None)
        for side in (new, old)
    )
    if then is None:
        return None
    about = Verdict(case=old.case.name, state=State.MISSING, quantity=Quantity.MEMORY, reason="")
    if now is None:
        return replace(about, reason=f"{then:,.0f} B in {where}, not counted now")
    grown = now - then
    floor = max(MEMORY_FLOOR * min(now, then), MEMORY_FLOOR_BYTES)
    if abs(grown) <= floor:
        return None
    ratio = now / then if then > 0 else None
    change = f" ({100 * (ratio - 1):+.1f} %)" if ratio is not None else ""
    return replace(
        about,
        state=State.REGRESSED if grown > 0 else State.IMPROVED,
        ratio=ratio,
        low=ratio,
        high=ratio,
        floor=floor / min(now, then) if min(now, then) > 0 else None,
        reason=f"peak memory {now:,.0f} B now, {then:,.0f} B in {where}{change}",
    )


def _accuracy(new: Record, old: Record, where: str) -> Verdict | None:
    """One verdict a case: that of the tensor that fared worst, with all that can be said of the others."""
    now, then = errors(new), errors(old)
    judged = (_error(old.case.name, name, now.get(name, []), then[name], where) for name in then)
    found = [verdict for verdict in judged if verdict is not None]
    if not found:
        return None
    worst = min(found, key=lambda v: (WORST.index(v.state), -(v.ratio or math.inf)))
    return replace(worst, reason="; ".join([worst.reason, *(v.reason for v in found if v is not worst)]))


def _error(case: str, name: str, now: list[float], then: list[float], where: str) -> Verdict | None:
    about = Verdict(case=case, state=State.MISSING, quantity=Quantity.ACCURACY, reason="")
    old = math.fsum(then) / len(then)
    if not now:
        return replace(about, reason=f"the mean error of {name} was {old:.3g} in {where}, and is not known now")
    new = math.fsum(now) / len(now)
    if old == 0:
        reason = f"the mean error of {name} is {new:.3g} now, and was 0 in {where}"
        return replace(about, state=State.REGRESSED, reason=reason) if new > 0 else None
    ratio = new / old
    reason = f"mean error of {name} {new:.3g} now, {old:.3g} in {where} ({100 * (ratio - 1):+.1f} %)"
    margin = _margin(now, then)
    if margin is None:
        if ratio <= 1 + ERROR_FLOOR:
            return None
        reason += ", which could be chance: one process a side knows it, and none how far processes differ"
        return replace(about, state=State.UNRESOLVED, ratio=ratio, floor=ERROR_FLOOR, reason=reason)
    low, high = ratio * math.exp(-margin), ratio * math.exp(margin)
    if ratio > 1 + ERROR_FLOOR:
        state = State.REGRESSED if low > 1 else State.UNRESOLVED
    elif ratio * (1 + ERROR_FLOOR) < 1 and high < 1:
        state = State.IMPROVED
    else:
        return None
    if state is State.UNRESOLVED:
        reason += f", which could be chance: new/old in [{low:.3f}, {high:.3f}]"
    return replace(about, state=state, ratio=ratio, low=low, high=high, floor=ERROR_FLOOR, reason=reason)


def _margin(*sides: list[float]) -> float | None:
    """Half width of the interval of the logarithm of the ratio: zero where all agree, None where nobody can tell."""
    df = sum(len(side) - 1 for side in sides)
    if df == 0:
        return None
    squares = 0.0
    for side in sides:
        mean = math.fsum(side) / len(side)
        squares += math.fsum((e / mean - 1) ** 2 for e in side) if mean > 0 else 0.0
    variance = squares / df * math.fsum(1 / len(side) for side in sides)
    return stats.t_quantile((1 + ERROR_CONFIDENCE) / 2, float(df)) * math.sqrt(variance)
