"""The process that does a share: ``python -m tests.fuzz.trial SHARE FIRST DONE UNTIL FILE``.

It appends two lines of JSON for each trial, one before and one behind, so that of a process that died it is known at
what. What is wrong does not end it; a device that answers no more does, with exit code LOST.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from attnkit.parity import Comparison, parity
from attnkit.variants import variant
from perfgate import assembler
from tests.fuzz.draw import KERNELS, Share, Trial, trials

__all__ = ["DONE", "LOST", "main", "said"]

DONE = 0
LOST = 3
DRAWS, ENOUGH = 8, 2**15
"""How often a problem is drawn at most, and of how many numbers out is where once will do: of few numbers the largest
error is chance. As many truths as draws are kept (`attnkit.parity`), so the variants share them."""
WITHOUT_KERNELS = 90.0
"""Seconds before the end from which on nothing is compiled."""


def said(trial: Trial, device: torch.device) -> dict[str, Any]:
    """Compute a trial and return what came of it: what is wrong, a sentence each, and by tensor two ratios of errors.

    The first is `Comparison.ratio`, the second the error over naive's and nothing else, None where naive has none. A
    small problem is drawn several times; what is wrong comes with the seed of the draw.
    """
    problem = trial.problem
    draws = min(DRAWS, math.ceil(ENOUGH / (problem.b * problem.sq * problem.hq * problem.dv)))
    found: dict[str, list[Comparison]] = defaultdict(list)
    for seed in range(trial.seed, trial.seed + draws):
        try:
            parts = parity(variant(trial.variant), problem, device, trial.pass_, seed)
        except Exception as error:  # whatever it is, it is not attention
            first = (str(error).strip().splitlines() or [""])[0]
            return {"failures": [f"raised {type(error).__name__}: {first}"], "ratios": {}, "seed": seed}
        for n, comparison in enumerate(parts.comparisons):
            found[f"{comparison.name} {n}"].append(comparison)
        if parts.failures:
            return {"failures": parts.failures, "ratios": ratios(found), "seed": seed}
    return {"failures": [], "ratios": ratios(found)}


def ratios(found: Mapping[str, Sequence[Comparison]]) -> dict[str, list[float | None]]:
    """By tensor both ratios, of the largest errors of all draws."""
    both: dict[str, list[float | None]] = {}
    for name, draws in found.items():
        error, plain, open_error = (
            max(getattr(draw, field) for draw in draws) for field in ("max_error", "naive_max_error", "open_error")
        )
        largest = replace(draws[0], max_error=error, naive_max_error=plain, open_error=open_error)
        both[name] = [largest.ratio, error / plain if plain else None]
    return both


def main(share: Share, first: int, done: int, until: float, file: Path) -> int:
    """Do a share until its problems are done or the time (of `time.time`) has come.

    Towards the end what is compiled gets no more problems: most of them want a kernel of their own.

    Args:
        share: What to do.
        first: The number of the trial to begin with.
        done: Trials that earlier processes of this share have done.
        until: When no trial begins any more.
        file: Gets the lines.
    """
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    if not gpu:
        from tests.attnkit import interpreter

        interpreter.install()
    with file.open("a", encoding="utf-8") as lines:

        def write(line: dict[str, Any]) -> None:
            lines.write(json.dumps(line) + "\n")
            lines.flush()

        for number, trial in enumerate(trials(share, device)):
            if number < first:
                continue
            if done >= share.problems or time.time() > until:
                return DONE
            if trial.variant in KERNELS and time.time() > until - WITHOUT_KERNELS:
                continue
            done += 1
            write(
                {
                    "number": number,
                    "variant": trial.variant,
                    "pass": trial.pass_,
                    "dtype": trial.problem.dtype,
                    "problem": repr(trial.problem),
                    "seed": trial.seed,
                }
            )
            with assembler.as_before():
                answer = said(trial, device)
            write(answer)
            if gpu and answer["failures"]:
                try:
                    torch.cuda.synchronize()
                except RuntimeError:
                    return LOST  # of a kernel that read or wrote what is not there no process recovers
    return DONE


if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    chosen |= {name: tuple(chosen[name]) for name in ("head_dims", "variants")}
    sys.exit(main(Share(**chosen), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5])))
