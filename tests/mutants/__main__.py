"""Put planted bugs to the laws of the tests, and say which law finds which: ``python -m tests.mutants [NAME ...]``.

The exit code is 1 if one survives, does not run, or if a law is broken where there is no bug.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from tests.mutants import kept, page
from tests.mutants.table import CONTROLS, TABLE
from tests.mutants.trials import Verdict, verdicts


def main(arguments: list[str]) -> int:
    """Run the trials and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of names of mutants; all unless given")
    parser.add_argument(
        "--gpu", action="store_true", help="those alone that need a GPU; what came of them is kept for the page"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the table as a page, docs/mutants.md")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    chosen = parser.parse_args(arguments)
    if chosen.processes < 1:
        parser.error(f"--processes must be at least 1, got {chosen.processes}")
    mutants = [mutant for mutant in TABLE if not chosen.names or any(name in mutant.name for name in chosen.names)]
    if not mutants:
        parser.error(f"expected parts of names of mutants, got {' '.join(chosen.names)}: nothing has them")
    if (chosen.page or chosen.gpu) and chosen.names:
        parser.error("--page has all mutants, and --gpu all that need one: leave the names out")
    if chosen.gpu:
        if chosen.page:
            parser.error("--gpu keeps what the page needs: write that with --page alone")
        if not torch.cuda.is_available():
            parser.error("--gpu needs a CUDA device, and there is none")
        mutants = [mutant for mutant in mutants if mutant.device == "cuda"]
    laws = {(mutant.device, check) for mutant in mutants for check in mutant.checks}
    controls = [control for control in CONTROLS if (control.device, control.checks[0]) in laws]

    started = time.perf_counter()
    found: list[Verdict] = []
    for verdict in verdicts([*controls, *mutants], chosen.processes):
        found.append(verdict)
        print(line(verdict), flush=True)
    counts = Counter(verdict.result for verdict in found)
    bad = [verdict for verdict in found if not verdict.good]
    for verdict in bad:
        print(f"{verdict.mutant.name} {verdict.result}: {verdict.by} {verdict.line}".rstrip())
    summary = ", ".join(f"{number} {result}" for result, number in sorted(counts.items()))
    print(f"{summary} in {time.perf_counter() - started:.0f} s")
    if chosen.page and not bad:
        chosen.page.write_text(page.page(found, kept.read()))
    if chosen.gpu and not bad:
        kept.write(found)
    return 1 if bad else 0


def line(verdict: Verdict) -> str:
    """Return a line of the table."""
    name, kind = verdict.mutant.name, verdict.mutant.kind
    example = str(verdict.example) if verdict.example else ""
    return f"{name:46} {kind:22} {verdict.result:10} {example:>4} {verdict.seconds:6.1f} s  {verdict.by}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
