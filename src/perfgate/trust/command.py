"""``perfgate calibrate``: collect what is known of perfgate itself, and write the page of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from perfgate import baseline
from perfgate.trust import data, page, resample
from perfgate.trust.collect import from_journal, planted

__all__ = ["add_parser", "run"]

DATA, PAGE = Path("docs/trust.jsonl"), Path("docs/trust.md")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its options."""
    calibrate = commands.add_parser(
        "calibrate", help="what is known of perfgate itself: false alarms, slowdowns found", allow_abbrev=False
    )
    steps = calibrate.add_subparsers(dest="step", required=True)

    write = steps.add_parser("page", help="write the page of what was collected", allow_abbrev=False)
    write.add_argument("--data", type=Path, default=DATA, metavar="FILE", help="default: %(default)s")
    write.add_argument("--out", type=Path, default=PAGE, metavar="FILE", help="default: %(default)s")

    add = steps.add_parser(
        "add",
        help="add runs that were collected elsewhere",
        description="Check runs that were collected on another machine and add them to the committed file.",
        allow_abbrev=False,
    )
    add.add_argument("files", type=Path, nargs="+", metavar="FILE", help="JSON lines, as in the committed file")
    add.add_argument("--data", type=Path, default=DATA, metavar="FILE", help="default: %(default)s")

    collect = steps.add_parser(
        "collect",
        help="add runs of base against head, from their journals",
        description="Judge journals of `perfgate ab` again and add what was seen, with the verdicts, to the committed "
        "file: of unchanged code (aa), of slowdowns of known size (planted), of a machine that was disturbed (drift).",
        allow_abbrev=False,
    )
    collect.add_argument("what", choices=["aa", "planted", "drift"])
    collect.add_argument("journals", type=Path, nargs="+", metavar="JOURNAL", help="of `perfgate ab`")
    collect.add_argument("--occasion", required=True, metavar="NAME", help="which start of which machine it was")
    collect.add_argument("--suite", default="default", metavar="NAME", help="which cases ran (default: %(default)s)")
    collect.add_argument(
        "--planted", action="append", default=[], metavar="CASE=ASKED:TRUE", help="in per cent; once a planted case"
    )
    collect.add_argument("--disturbance", default="", metavar="WORDS", help="what disturbed the machine")
    collect.add_argument(
        "--seconds", type=float, nargs=2, metavar=("SCREEN", "WHOLE"), help="how long it took until then, and in all"
    )
    collect.add_argument("--data", type=Path, default=DATA, metavar="FILE", help="default: %(default)s")

    simulate = steps.add_parser(
        "simulate",
        help="the table of rules for processes that are made up",
        description="Print what perfgate and others would make of processes whose samples are drawn from those of a "
        "saved run, and whose medians differ by a spread that is assumed.",
        allow_abbrev=False,
    )
    simulate.add_argument("file", type=Path, metavar="FILE", help="pytest-benchmark's JSON of one run")
    simulate.add_argument(
        "--between",
        type=float,
        default=0.3,
        metavar="PERCENT",
        help="median over the cases of the relative sd between processes (default: %(default)g)",
    )
    simulate.add_argument("--seed", type=int, default=page.SEED, help="default: %(default)d")


def run(options: argparse.Namespace) -> int:
    """Do what was asked.

    Raises:
        ValueError: If a file is not whole, or an option makes no sense.
        OSError: If a file cannot be read or written.
    """
    if options.step == "page":
        entries = data.read(options.data)
        options.out.write_text(page.render(entries), encoding="utf-8")
        print(f"{options.out}: {len(entries)} run{'' if len(entries) == 1 else 's'}")
    elif options.step == "add":
        _add_files(options.files, options.data)
    elif options.step == "collect":
        seconds = dict(zip(("screen", "whole"), options.seconds or (), strict=False))
        runs = [
            from_journal(
                path,
                what=options.what,
                occasion=options.occasion,
                suite=options.suite,
                planted=dict(map(planted, options.planted)),
                disturbance=options.disturbance,
                seconds=seconds,
            )
            for path in options.journals
        ]
        _add(runs, options.data)
    else:
        if not 0 <= options.between < 100:
            raise ValueError(f"--between must be a percentage from 0 to 100, got {options.between:g}")
        plan = resample.Plan()
        source = resample.synthetic(baseline.read(options.file).records, options.between / 100)
        print(f"Processes whose samples are those of {options.file}, and whose medians differ by about", end=" ")
        print(f"{options.between:g} %.", end=" ")
        sys.stdout.write(page.comparison(resample.compare(source, plan, options.seed), plan.rule) + "\n")
    return 0


def _add_files(files: Sequence[Path], target: Path) -> None:
    found: list[data.Entry] = []
    for path in files:
        if not path.exists():
            raise data.TrustError(f"{path} cannot be read: there is no such file")
        found += data.read(path)
    _add(found, target)


def _add(found: Sequence[data.Entry], target: Path) -> None:
    """All of these runs, or none: they are checked before the first is added."""
    data.check([*data.read(target), *found])
    for entry in found:
        data.append(target, entry)
    print(f"{target}: {len(found)} run{'' if len(found) == 1 else 's'} added")
