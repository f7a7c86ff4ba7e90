"""Is it slower? Two records of a case in, a verdict with its evidence out.

Knows nothing of files, devices or exit codes. The unit of replication is the process (Kalibera and Jones, ISMM 2013):
what is compared are the logarithms of the processes' medians,

    y = log median of a process        d = mean y(new) - mean y(old)        ratio = exp d
    interval of the ratio = exp(d ± t · sqrt(v(new) / n(new) + v(old) / n(old)))

where v is the variance between processes, estimated from all processes of the case and drawn towards what the other
cases of the baseline show (`Noise`), and t is Student's at the rule's confidence. The floor is a band around one:

    ratio = new / old      1/(1 + floor)      1      1 + floor
    improved       |-----|       |            |          |
    unchanged                    |      |--------|       |
    regressed                    |            |          |    |-----|
    unresolved                   |            |     |---------|

The floor is the largest of what matters (2 %), what a clock resolves (0.2 us), and three standard deviations of what
one session of the machine (a boot, a day) differs from another, and one device from another of its kind if the baseline
is of another, by more where a call copies or fills memory: no number of samples makes that smaller.

What the default rule gives (simulated; the tests hold it to this) where 150 cases have 5 processes in the baseline and
one now, the sd between a case's processes is log-normal around 0.4 % (factor 2), and a session moves all cases by an sd
of 1 % and each by another 0.5 %: unchanged code has a case called regressed in 0.6 % of suites, and a case slowed by
10 % is called in 99.8 % of runs if its process sd is 0.5 %, in 90 % at 1 %, 62 % at 1.5 %, 40 % at 2 % (76 % with
three processes now); otherwise it is unresolved, never unchanged. No rule could do much better at 2 %: with the sd
known exactly, a threshold that keeps 150 such cases quiet is still passed by only every other slowdown of 10 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from perfgate import kernels, stats
from perfgate.clock import Samples
from perfgate.record import Record

__all__ = ["Noise", "Quantity", "Rule", "State", "Verdict", "explained", "fills", "judge", "visible"]

ASSUMED = 0.021
"""Relative sd between processes where nothing was measured: the largest of ten kernels on an H200 (0.13 to 2.1 %)."""


class State(StrEnum):
    """What can be said of a case."""

    REGRESSED = "regressed"
    IMPROVED = "improved"
    UNCHANGED = "unchanged"
    UNRESOLVED = "unresolved"
    NEW = "new"
    MISSING = "missing"
    REFUSED = "refused"
    ACCEPTED = "accepted"
    """Regressed, and somebody said that it may be (`perfgate.accept`)."""


class Quantity(StrEnum):
    """What a verdict is about; that of time is this module's, the others are those of `perfgate.price`."""

    TIME = "time"
    MEMORY = "memory"
    ACCURACY = "accuracy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How much slower is a regression, and how sure one must be.

    Attributes:
        floor: Relative change that matters.
        floor_seconds: Absolute change that matters, in seconds: about what launches and event timers are good for.
        confidence: Of the interval, two-sided.
        session: Relative sd of what two sessions differ by; zero if both sides were measured in one. The default stands
            for 1 % that all cases share (large kernels drift by as much with power and clocks) and 0.75 % of a case's
            own.
        device: Absolute sd between devices of one kind, in seconds, which shows in short calls; zero if both sides were
            measured on the same device. The default is assumed from short kernels of a few H200 at equal clocks, until
            a pool of them is measured; what large kernels differ by, `session` stands for.
        fill: The same of a call that copies or fills memory apart from its kernels, as cuDNN's attention does: at some
            starts of machines with an H200 such a call took 0.7 us more than at others (docs/trust.md), which three of
            these cover.

    Raises:
        ValueError: For a number that is not finite, negative, or no confidence: it would switch the gate off.
    """

    floor: float = 0.02
    floor_seconds: float = 0.2e-6
    confidence: float = 0.99
    session: float = 0.0125
    device: float = 0.1e-6
    fill: float = 0.3e-6

    def __post_init__(self) -> None:
        for name in ("floor", "floor_seconds", "session", "device", "fill"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative, got {value!r}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence!r}")

    def band(self, seconds: float, *, fills: bool = False) -> float:
        """The floor of a case that takes this long, and may copy or fill memory apart from its kernels."""
        apart = math.hypot(self.session, self.device / seconds, fills * self.fill / seconds)
        return max(self.floor, self.floor_seconds / seconds, 3 * apart)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What a baseline's cases together say of the variance between processes, so that no lucky case cries wolf.

    Attributes:
        prior: Of the variance of log process medians; None if no case has two processes.
    """

    prior: stats.Prior | None = None

    @classmethod
    def of(cls, records: Iterable[Record]) -> Noise:
        """Share the variances of all records that hold at least two processes."""
        found = [_logs(record) for record in records if len(record.processes) > 1]
        if not found:
            return cls()
        return cls(prior=stats.fit_prior([stats.variance(ys) for ys in found], [len(ys) - 1.0 for ys in found]))

    def variance(self, *sides: Record) -> tuple[float, float]:
        """Variance between a case's processes, and its degrees of freedom.

        The sides' means differ by what is being judged, so each side counts around its own.
        """
        several = [_logs(side) for side in sides if len(side.processes) > 1]
        df = sum(len(ys) - 1.0 for ys in several)
        own = math.fsum(stats.variance(ys) * (len(ys) - 1) for ys in several) / df if df else 0.0
        if self.prior is not None and self.prior.df + df >= 1:
            return stats.moderate(own, df, self.prior)
        return (own, df) if df else (ASSUMED**2, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is said of one case, and why.

    Attributes:
        case: The case's name.
        state: What can be said.
        quantity: Of what it is said. A case has one verdict of its time, and others only where they say something.
        ratio: Duration (or bytes, or error) now over that in the baseline; None, as the next four, without a
            comparison.
        low: Lower end of the interval.
        high: Upper end of the interval.
        floor: Relative change below which nothing is called.
        visible: Smallest slowdown that could have been seen, relative: the one called in every other run.
        reason: One sentence.
        why: What became of its kernels, a sentence each, of a case that got slower or faster and whose kernels are
            known.
    """

    case: str
    state: State
    quantity: Quantity = Quantity.TIME
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    visible: float | None = None
    reason: str
    why: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """The state, and of what: ``regressed``, ``regressed in memory``."""
        return str(self.state) if self.quantity is Quantity.TIME else f"{self.state} in {self.quantity}"

    def __str__(self) -> str:
        return f"{self.case} {self.what}: {self.reason}"


def judge(new: Record, old: Record, rule: Rule, noise: Noise) -> Verdict:
    """Compare a case's record with its baseline's by the rule drawn above.

    Args:
        new: What was measured now, in one or several processes.
        old: What the baseline holds.
        rule: Floor, confidence and session.
        noise: ``Noise.of`` all records of the baseline.
    """
    name = old.case.name
    if new.method != old.method:
        reason = f"timed by another method: {new.method} now, {old.method} in the baseline; measure the baseline anew"
        return Verdict(case=name, state=State.REFUSED, reason=reason)
    if new.case.work and old.case.work and new.case.work != old.case.work:
        reason = "does other work than in the baseline, which is another case: name it anew, or measure the baseline"
        return Verdict(case=name, state=State.REFUSED, reason=reason)
    ratio = math.exp(_mean(_logs(new)) - _mean(_logs(old)))
    floor = _floor(old, rule)
    margin = _margin(new, old, rule, noise)
    if math.isinf(margin):
        fewest = min(len(s.seconds) for side in (new, old) for s in side.processes)
        reason = f"{fewest} samples are too few to know a median: take at least 6 in each process"
        return Verdict(case=name, state=State.UNRESOLVED, ratio=ratio, floor=floor, reason=reason)
    low, high = ratio * math.exp(-margin), ratio * math.exp(margin)
    least = (1 + floor) * math.exp(margin) - 1
    reason = f"new/old in [{low:.3f}, {high:.3f}], floor {floor:.1%}"
    if low > 1 + floor:
        state = State.REGRESSED
    elif high * (1 + floor) < 1:
        state = State.IMPROVED
    elif low * (1 + floor) >= 1 and high <= 1 + floor:
        state = State.UNCHANGED
    else:
        state = State.UNRESOLVED
        reason += f"; slowdowns below {least:.1%} could not be seen"
        if noise.prior is None and max(len(new.processes), len(old.processes)) == 1:
            reason += f", for no case has several processes: an sd of {ASSUMED:.1%} between them is assumed"
    verdict = Verdict(
        case=name, state=state, ratio=ratio, low=low, high=high, floor=floor, visible=least, reason=reason
    )
    return explained(verdict, new, old)


def explained(verdict: Verdict, new: Record, old: Record) -> Verdict:
    """The verdict on a case that got slower or faster, with what became of its kernels; any other as it is.

    Of an unresolved one it is said if they are others in each process.
    """
    ways = {State.REGRESSED: kernels.why, State.IMPROVED: kernels.why, State.UNRESOLVED: kernels.varying}
    if verdict.state not in ways:
        return verdict
    return replace(verdict, why=ways[verdict.state](*([s.kernels for s in side.processes] for side in (old, new))))


def visible(old: Record, rule: Rule, noise: Noise) -> float:
    """Smallest slowdown that one new process, as steady as the baseline's, would show in every other run."""
    one = Record(case=old.case, processes=old.processes[:1])
    return (1 + _floor(old, rule)) * math.exp(_margin(one, old, rule, noise)) - 1


def fills(record: Record) -> bool:
    """Whether a case's calls copy or fill memory apart from their kernels, as far as that is known."""
    return any(samples.kernels is not None and samples.kernels.fills for samples in record.processes)


def _floor(old: Record, rule: Rule) -> float:
    return rule.band(math.exp(_mean(_logs(old))), fills=fills(old))


def _margin(new: Record, old: Record, rule: Rule, noise: Noise) -> float:
    """Half width of the interval of the log-ratio."""
    between, df = noise.variance(new, old)
    # a process's own error of the median is part of the variance between processes, unless it is worse here than there
    inside = [[_error(s) ** 2 for s in side.processes] for side in (new, old)]
    seen = [w for ws in inside if len(ws) > 1 for w in ws] or [w for ws in inside for w in ws]
    usual = _mean(seen)
    if math.isinf(max(map(max, inside))):
        return math.inf
    error = math.sqrt(math.fsum((between + max(0.0, _mean(ws) - usual)) / len(ws) for ws in inside))
    return stats.t_quantile((1 + rule.confidence) / 2, df) * error


def _logs(record: Record) -> list[float]:
    return [math.log(samples.median) for samples in record.processes]


def _mean(xs: list[float]) -> float:
    return math.fsum(xs) / len(xs)


def _error(samples: Samples) -> float:
    """Standard error of the logarithm of the median."""
    return stats.median_half_width(samples.seconds) / 1.96
