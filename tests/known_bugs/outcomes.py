"""What became of each bug's tests in one environment, by variant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from attnkit.variants import TABLE
from tests.known_bugs.table import BUGS

__all__ = ["Collector", "Outcome", "collect"]

Outcome = Literal["failed", "has it", "right", "cannot"]
WORST: tuple[Outcome, ...] = ("failed", "has it", "right", "cannot")
"""What tests of one variant come to: the first of these that one of them was."""
NAMES = tuple(way.name for way in TABLE)


@dataclass(eq=False)
class Collector:
    """A plugin that keeps what became of tests, by function and variant.

    Attributes:
        found: Outcomes by the test's path and function, and by the variant; ``""`` for a test of none.
        reasons: Why a variant has a bug, or failed.
        told: Tests that have not passed, and said why.
    """

    found: dict[tuple[str, str], set[Outcome]] = field(default_factory=dict)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep a report; of one that passes the call counts, not what goes before and behind."""
        expected = hasattr(report, "wasxfail")
        if report.when == "???" and report.nodeid in self.told:
            return  # xdist says that its process ended, and the test has said before why
        outcome: Outcome
        if report.skipped and not expected:
            outcome = "cannot"
        elif report.skipped:
            outcome = "has it"
        elif report.failed:
            outcome = "failed"
        elif report.when == "call":
            outcome = "right"
        else:
            return
        if outcome in ("failed", "has it"):
            self.told.add(report.nodeid)
        test, _, parameters = report.nodeid.partition("[")
        key = test, variant_of(parameters)
        self.found.setdefault(key, set()).add(outcome)
        if outcome == "has it":
            self.reasons[key] = report.wasxfail.removeprefix("reason: ")
        if outcome == "failed":
            self.reasons[key] = report.longreprtext.strip().splitlines()[-1][:200]


def variant_of(parameters: str) -> str:
    """Return the variant among a test's parameters, ``bf16-sdpa_math]``."""
    words = re.split(r"[-\[\]]", parameters)
    return next((name for name in NAMES if name in words), "")


def collect(collector: Collector) -> list[dict[str, Any]]:
    """Return for each bug what it was in each variant, and why."""
    rows = []
    for bug in BUGS:
        keys = [key for key in collector.found if key[0] in bug.nodes]
        variants: dict[str, Outcome] = {}
        for name in dict.fromkeys(key[1] for key in keys):
            outcomes = {outcome for key in keys if key[1] == name for outcome in collector.found[key]}
            variants[name] = next(outcome for outcome in WORST if outcome in outcomes)
        reasons = {key[1]: collector.reasons[key] for key in keys if key in collector.reasons}
        rows.append({"number": bug.number, "variants": in_order(variants, variants), "reasons": reasons})
    return rows


def in_order(found: dict[str, Outcome], names: Iterable[str]) -> dict[str, Outcome]:
    """Return outcomes in the order of the table of variants."""
    order: Sequence[str] = (*NAMES, "")
    return {name: found[name] for name in sorted(names, key=order.index)}
