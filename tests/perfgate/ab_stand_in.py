"""`perfgate ab` with a rule that anybody can check: slower or faster by 3 % in the mean, confirmed if 1 % is passed.

python -m tests.perfgate.ab_stand_in [options of perfgate ab]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from perfgate.ab import command
from perfgate.ab.outcome import Rules
from perfgate.contest import Block
from perfgate.gate import Exit
from perfgate.verdict import State, Verdict

FLOOR = 0.03


@dataclass(frozen=True)
class Findings:
    verdicts: tuple[Verdict, ...]
    unfit: str | None = None
    machine: tuple[str, ...] = ()


def ratios(blocks: Sequence[Block]) -> dict[str, float]:
    logs: dict[str, dict[str, list[float]]] = {}
    for block in blocks:
        for case, visits in block.visits.items():
            assert sorted(visit.side for visit in visits) == ["base", "base", "head", "head"]
            for visit in visits:
                sides = logs.setdefault(case, {"base": [], "head": []})
                sides[visit.side].append(math.log(visit.samples.median))
    return {
        case: math.exp(sum(s["head"]) / len(s["head"]) - sum(s["base"]) / len(s["base"])) for case, s in logs.items()
    }


def suspects(blocks: Sequence[Block], controls: Collection[str]) -> list[str]:
    return [case for case, ratio in ratios(blocks).items() if abs(ratio - 1) > FLOOR / 3]


def judge(blocks: Sequence[Block], controls: Collection[str], picked: Sequence[str] | None = None) -> Findings:
    confirmed = [block for block in blocks if block.stage == 2]
    verdicts = []
    for case, ratio in {**ratios(blocks), **ratios(confirmed)}.items():
        state = State.UNCHANGED
        if confirmed and abs(ratio - 1) > FLOOR:
            state = State.REGRESSED if ratio > 1 else State.IMPROVED
        verdicts.append(Verdict(case=case, state=state, ratio=ratio, reason=f"head/base {ratio:.3f}"))
    return Findings(tuple(verdicts))


def undecided(blocks: Sequence[Block], controls: Collection[str], picked: Sequence[str]) -> Sequence[str]:
    return picked


def unsettled(blocks: Sequence[Block], controls: Collection[str]) -> list[str]:
    return [case for case, ratio in ratios(blocks).items() if ratio != 1]


RULES = Rules(unsettled=unsettled, suspects=suspects, undecided=undecided, judge=judge)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    command.add_arguments(parser)
    at = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:at])
    try:
        return command.run(options, [*options.paths, *argv[at + 1 :]], RULES)
    except ValueError as error:
        print(f"perfgate: {error}", file=sys.stderr)
        return Exit.USAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
