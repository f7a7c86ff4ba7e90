"""Small runs whose every number can be worked out by hand, for tests of reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from perfgate.case import Case, Work
from perfgate.clock import Method, Samples
from perfgate.environment import Environment
from perfgate.gate import Exit, Outcome
from perfgate.record import Record
from perfgate.report import Results
from perfgate.verdict import State, Verdict

COLD = Method(clock="cuda-events", l2="cold", launch="graph")
H200 = Environment(device="NVIDIA H200", versions={"cuda": "13.0", "torch": "2.11.0", "triton": "3.6.0"})
CEILINGS = {"copy_bytes_per_second": 4.0e12, "read_bytes_per_second": 4.5e12, "flops_per_second.bf16": 8.0e14}


def record(
    name: str,
    *processes: Sequence[float] | float,
    group: str | None = None,
    reference: bool = False,
    work: Work | None = None,
    peak: float | None = None,
    method: Method = COLD,
    notes: Iterable[str] = (),
) -> Record:
    """A record whose processes have these durations; a single number is a process of one sample."""
    return Record(
        case=Case(name=name, group=group, reference=reference, work=work),
        processes=tuple(
            Samples(
                seconds=(seconds,) if isinstance(seconds, float) else tuple(seconds),
                method=method,
                counters={} if peak is None else {"peak_bytes": peak},
                notes=tuple(notes),
            )
            for seconds in processes
        ),
    )


def sweep(
    speeds: Mapping[str, float],
    lengths: Sequence[int],
    *,
    suite: str = "forward",
    reference: str = "naive",
    ends: Mapping[str, int] | None = None,
) -> tuple[list[Record], dict[str, str]]:
    """Alternatives with these rates (operations a second) over lengths, and what ran out of memory beyond `ends`."""
    records, out_of_memory = [], {}
    for length in lengths:
        problem = f"b4-s{length}-d64-bf16"
        work = Work(flops=1e6 * length**2, bytes=1e4 * length, tokens=4.0 * length, dtype="bf16")
        for name, rate in speeds.items():
            case = f"{suite}/{name}/{problem}"
            if ends and length > ends.get(name, length):
                out_of_memory[case] = "tried to allocate 64 GB"
                continue
            records.append(
                record(
                    case,
                    work.flops / rate,
                    group=f"{suite}/{problem}",
                    reference=name == reference,
                    work=work,
                    peak=1e9,
                )
            )
    return records, out_of_memory


def verdict(case: str, state: State, ratio: float | None = None) -> Verdict:
    """A verdict whose interval is one per cent wide on each side."""
    if ratio is None:
        return Verdict(case=case, state=state, reason=f"said to be {state}")
    low, high = ratio - 0.01, ratio + 0.01
    reason = f"new/old in [{low:.3f}, {high:.3f}], floor 2.0%"
    return Verdict(case=case, state=state, ratio=ratio, low=low, high=high, floor=0.02, visible=0.031, reason=reason)


def outcome(verdicts: Iterable[Verdict], *sentences: str) -> Outcome:
    """What a gate would return."""
    return Outcome(verdicts=tuple(verdicts), exit=Exit.OK, sentences=sentences)


def results(records: Iterable[Record], **said: object) -> Results:
    """The results of these records on an H200."""
    return Results.of(records, H200, **said)  # type: ignore[arg-type]
