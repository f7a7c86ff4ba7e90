"""What every format says in words, once each and the worst first: where, how, what the gate found, what to know.

Nothing here knows how a page looks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from perfgate.gate import WORST_FIRST
from perfgate.report import units
from perfgate.report.rows import Results
from perfgate.verdict import Quantity, State, Verdict

__all__ = ["ceilings", "listed", "machine", "methods", "notes", "remarks", "summary"]

NUMBER = r"\d+(?:\.\d+)?"

COUNTED = (State.REGRESSED, State.IMPROVED, State.UNCHANGED, State.UNRESOLVED, State.NEW, State.MISSING)


def machine(results: Results) -> str:
    """The device and its software: ``NVIDIA H200: cuda 13.0, torch 2.11.0``."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(results.environment.versions.items()))
    return f"{results.environment.device}: {versions}" if versions else results.environment.device


def methods(results: Results) -> list[str]:
    """How the cases were timed, a sentence a method, and plainly where it was the host's clock."""
    said = []
    for method, count in results.methods.items():
        how = "CPU timings by the host clock" if method.clock == "host" else f"timed by {method}"
        said.append(f"{how}: {_count(count, 'case')} in {_count(results.processes, 'process')}")
    return said


def ceilings(results: Results) -> str | None:
    """What the machine did at best, or None if nothing was measured."""
    said = []
    for key, value in sorted(results.ceilings.items(), key=lambda item: (item[0].startswith("flops"), item[0])):
        if match := re.fullmatch(r"(\w+)_bytes_per_second", key):
            said.append(f"{match[1]} {units.quantity(value, 'B/s')}")
        elif match := re.fullmatch(r"flops_per_second\.(\w+)", key):
            said.append(f"{match[1]} matrix {units.quantity(value, 'FLOP/s')}")
        else:
            said.append(f"{key} {value:.4g}")
    return "ceilings measured in the same run: " + ", ".join(said) if said else None


def summary(verdicts: Iterable[Verdict]) -> str:
    """How many of each: ``2 regressed, 1 improved, 194 unchanged, 3 unresolved, 2 new, 0 missing``.

    Refused and accepted cases are counted where there are any, and so is what else than time there are verdicts of.
    """
    counts = Counter((v.quantity, v.state) for v in verdicts)
    said = [f"{counts[Quantity.TIME, state]} {state}" for state in COUNTED]
    said += [f"{n} {state}" for state in (State.REFUSED, State.ACCEPTED) if (n := counts[Quantity.TIME, state])]
    others = sorted((pair for pair in counts if pair[0] is not Quantity.TIME), key=_place)
    said += [f"{counts[pair]} {pair[1]} in {pair[0]}" for pair in others]
    return ", ".join(said)


def _place(pair: tuple[Quantity, State]) -> tuple[int, int]:
    return list(Quantity).index(pair[0]), WORST_FIRST.index(pair[1])


def listed(results: Results) -> list[Verdict]:
    """The verdicts to be told one by one, in the gate's order: worst first.

    Unchanged cases are only counted, and a new case that ran out of memory is told with the others that did.
    """
    told = [
        v
        for v in (results.outcome.verdicts if results.outcome else ())
        if v.state is not State.UNCHANGED and not (v.state is State.NEW and v.case in results.out_of_memory)
    ]
    return sorted(told, key=lambda v: WORST_FIRST.index(v.state))


def remarks(results: Results) -> list[str]:
    """The gate's sentences on the run as a whole; those that name a case repeat what is told of the case.

    What it says of accepted slowdowns is repeated nowhere.
    """
    if results.outcome is None:
        return []
    cases = [v.case for v in results.outcome.verdicts]
    return [
        *(s for s in results.outcome.sentences if not any(case in s for case in cases)),
        *results.outcome.notes,
    ]


def notes(results: Results) -> list[str]:
    """The notes of the run, then those of the cases; notes that differ only in their numbers are said once.

    Of such notes the one with the largest numbers is given, with its case: it is what a reader has to worry about.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for row in results.rows:
        for note in row.notes:
            found.setdefault(re.sub(NUMBER, "#", note), []).append((row.case.name, note))
    said = list(dict.fromkeys(results.notes))
    for those in found.values():
        case, note = max(those, key=lambda pair: [float(n) for n in re.findall(NUMBER, pair[1])])
        cases = len({name for name, _ in those})
        said.append(f"{case}: {note}" if cases == 1 else f"{cases} cases, such as {case}: {note}")
    return said


def _count(n: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{n} {noun if n == 1 else plural}"
