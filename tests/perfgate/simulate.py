"""Records of known truth, for tests of statistics, verdicts, gates and baselines."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfgate.case import Case
from perfgate.clock import Method, Samples
from perfgate.contest import Block, Side, Visit
from perfgate.environment import Environment
from perfgate.record import Record

FAKE = Method(clock="fake")
H200 = Environment(
    device="NVIDIA H200",
    versions={"cuda": "13.0", "torch": "2.11.0+cu130", "driver": "580.1"},
    facts={"uuid": "GPU-1", "sm_count": "132"},
)


def samples(median: float, *, n: int = 6, half_width: float = 0.0, method: Method = FAKE, **counters: float) -> Samples:
    """Durations with this median; with six of them, half of their relative range is the median's half width."""
    places = [2 * i / (n - 1) - 1 if n > 1 else 0.0 for i in range(n)]
    return Samples(seconds=tuple(median * (1 + half_width * x) for x in places), method=method, counters=counters)


def record(name: str, medians: Sequence[float], *, method: Method = FAKE, half_width: float = 0.0) -> Record:
    """A case whose processes have these medians."""
    processes = tuple(samples(m, method=method, half_width=half_width) for m in medians)
    return Record(case=Case(name=name), processes=processes)


class Suite:
    """A suite of cases whose processes differ by a relative sd that is log-normal over the cases.

    Args:
        seed: Makes it reproducible.
        typical: Median of the cases' sds.
        factor: Log-sd of the cases' sds.
        sds: The sds themselves, instead.
    """

    def __init__(
        self, seed: int, *, cases: int = 150, typical: float = 0.004, factor: float = 0.7, sds: Sequence[float] = ()
    ) -> None:
        self.random = random.Random(seed)
        self.sds = list(sds) or [typical * math.exp(factor * self.random.gauss(0, 1)) for _ in range(cases)]

    def run(self, processes: int, *, own: float = 0.0, seconds: float = 1e-3) -> dict[str, Record]:
        """Measure all cases in one session, which shifts each of them by an sd of `own`."""
        found = {}
        for i, sd in enumerate(self.sds):
            shift = self.random.gauss(0, own)
            medians = [seconds * math.exp(shift + sd * self.random.gauss(0, 1)) for _ in range(processes)]
            found[f"case{i}"] = record(f"case{i}", medians)
        return found


@dataclass(frozen=True)
class Kernel:
    """A case of known truth.

    Attributes:
        seconds: Its median in base.
        sd: Relative sd between processes.
    """

    seconds: float = 1e-3
    sd: float = 0.003


def kernels(rng: random.Random, n: int = 168) -> dict[str, Kernel]:
    """Cases like those of the default suite on an H200: a few of 3.5 to 6 us that scatter by 1.5 to 3 %, the others by
    0.3 % (log-normal, 90 % of them below 0.65 %) from 6 us to 10 ms."""
    found = {}
    for i in range(n):
        if i % 40 == 39:
            found[f"k{i}"] = Kernel(seconds=rng.uniform(3.5e-6, 6e-6), sd=rng.uniform(0.015, 0.03))
        else:
            seconds = math.exp(rng.uniform(math.log(6e-6), math.log(1e-2)))
            found[f"k{i}"] = Kernel(seconds=seconds, sd=0.003 * math.exp(0.6 * rng.gauss(0, 1)))
    return found


def contest_blocks(
    rng: random.Random,
    cases: Mapping[str, Kernel],
    *,
    stage: int = 1,
    blocks: int = 1,
    ratios: Mapping[str, float] | None = None,
    within: float = 0.001,
    common: float = 0.001,
    visits: str = "ABBA",
    hz: Mapping[Side, float] | None = None,
) -> list[Block]:
    """Blocks of base against head whose truth is known.

    Args:
        rng: Makes them reproducible.
        cases: What is timed; those of stage 2 are a choice of those of stage 1.
        stage: Of all these blocks.
        blocks: How many.
        ratios: Head's true median over base's, where it is not one.
        within: Relative sd of a visit's median within its process.
        common: Relative sd of what all cases of a process share.
        visits: Order of sides, A base and B head, reversed from block to block. A sample a visit keeps it fast.
        hz: SM clocks to report; durations are not changed by them.
    """
    sides: dict[str, Side] = {"A": "base", "B": "head"}
    gauss, ratios = rng.gauss, ratios or {}
    counters = {side: {"sm_hz": hz[side]} if hz else {} for side in sides.values()}
    found = []
    for number in range(blocks):
        order = [sides[letter] for letter in (visits if number % 2 == 0 else visits[::-1])]
        shared = {side: gauss(0, common) for side in sides.values()}
        seen = {}
        for name, case in cases.items():
            centre = {side: case.seconds * math.exp(shared[side] + gauss(0, case.sd)) for side in sides.values()}
            centre["head"] *= ratios.get(name, 1.0)
            seen[name] = tuple(
                Visit(
                    side=side,
                    samples=Samples(
                        seconds=(centre[side] * math.exp(gauss(0, within)),), method=FAKE, counters=counters[side]
                    ),
                )
                for side in order
            )
        found.append(Block(stage=stage, visits=seen))
    return found


def document(
    records: Sequence[Record], *, environment: Environment = H200, commit: str = "abc", **run: Any
) -> dict[str, Any]:
    """What one pytest run saves."""
    seconds = {r.case.name: r.processes[0].seconds for r in records}
    return {
        "machine_info": {"node": "host", "perfgate": environment.to_json()},
        "commit_info": {"id": commit, "dirty": False, "branch": "main"},
        "benchmarks": [
            {
                "group": None,
                "name": f"test_it[{r.case.name}]",
                "fullname": f"perf/test_it.py::test_it[{r.case.name}]",
                "params": {"case": r.case.name},
                "param": r.case.name,
                "extra_info": {"perfgate": r.to_json(), "mine": 1},
                "options": {"timer": "perfgate"},
                "stats": {"mean": sum(seconds[r.case.name]) / len(seconds[r.case.name]), "iterations": 1},
            }
            for r in records
        ],
        "datetime": "2026-01-01T00:00:00+00:00",
        "version": "5.3.0",
        "perfgate": {
            "schema": 1,
            "complete": True,
            "exitstatus": 0,
            "collected": len(records),
            "measured": len(records),
            "ceilings": {"copy_bytes_per_second": 4e12},
            "out_of_memory": {},
            "absent": {},
            "processes": 1,
            **run,
        },
    }
