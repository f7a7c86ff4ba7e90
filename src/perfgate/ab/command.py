"""``perfgate ab``: is the working tree slower than the commit it left? The options, the terminal, the exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from perfgate import preflight
from perfgate.ab import trees as revisions
from perfgate.ab.blocks import Blocks
from perfgate.ab.evidence import SCHEMA, Evidence, read
from perfgate.ab.outcome import BROKEN_OFF, Judge, Rules, conclude
from perfgate.ab.progress import Progress
from perfgate.ab.refusals import Refused
from perfgate.ab.stages import CONFIRMING, LEAST, SCREENING, Stages
from perfgate.ab.trees import BuildFailed, TreeError, Trees
from perfgate.contest import ContestRule
from perfgate.gate import Exit, Outcome
from perfgate.journal import JournalError, Lines
from perfgate.report import Results, terminal

__all__ = ["add_arguments", "run"]

VISIT = ("--perf-warmup=0.01", "--perf-max-time=0.05", "--perf-min-samples=4")
"""A visit is short: the device has just worked at the same case, and processes differ by more than their samples do.
What is given to pytest wins."""
COLOURS = {"red": "31", "green": "32", "yellow": "33", "bold": "1"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("paths", nargs="*", help="what pytest is to collect; its own default if left out")
    parser.add_argument(
        "--base", metavar="REF", help="compare with this; default: where HEAD left origin/main, or HEAD if it did not"
    )
    parser.add_argument(
        "--build",
        metavar="CMD",
        help="a shell command that builds each tree, run in it; "
        "into the tree itself, for what it installs elsewhere both sides would share",
    )
    parser.add_argument(
        "--blocks",
        type=_count,
        metavar="N",
        help=f"blocks that screen (default: {ContestRule().screen_blocks}, and where both would not end within "
        f"{SCREENING / 60:.0f} minutes the second is of what the first left unsettled)",
    )
    parser.add_argument(
        "--confirm",
        type=_several,
        metavar="N",
        help=f"blocks that confirm a suspicion, 2 or more (default: {ContestRule().confirm_blocks}, or as many as "
        f"should end within {(SCREENING + CONFIRMING) / 60:.0f} minutes, and {LEAST} at least)",
    )
    parser.add_argument(
        "--floor", type=_percent, default=0.01, metavar="PERCENT", help="least change that matters (default: 1)"
    )
    parser.add_argument("--seed", type=int, help="of the order of cases; default: another one each time, and said")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="new cases fail too, with exit code 11 as missing ones do, and unresolved ones with 14",
    )
    parser.add_argument(
        "--check-always",
        action="store_true",
        help="check results in each block, not the first alone and where errors grew",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    parser.add_argument(
        "--from",
        dest="file",
        type=Path,
        metavar="FILE",
        help="judge this journal again, time nothing; by the floor and the blocks that it was timed for",
    )


def run(options: argparse.Namespace, arguments: Sequence[str], rules: Rules) -> int:
    """Compare, report, and return the exit code (see `perfgate.gate.Exit`; 2 if it was interrupted).

    Args:
        options: As `add_arguments` declares them.
        arguments: pytest's.
        rules: Decide which cases are confirmed, for how long, and what is said of each in the end.

    Raises:
        ValueError: For wrong options, no repository, or a revision that is not there.
        JournalError: If a journal cannot be read.
    """
    if options.json and (sentence := preflight.target(options.json)):
        raise ValueError(f"--json: {sentence}")
    if options.file:
        if arguments:
            raise ValueError(f"--from times nothing, so it takes no suite, got {' '.join(arguments)}")
        return _report(read(options.file), options.file, rules.judge, options)
    head = revisions.head(Path.cwd())
    commit, how = revisions.compared_with(options.base, head)
    started = datetime.now(UTC)
    directory = Path(".perfgate")
    path = directory / f"ab-{started:%Y%m%dT%H%M%S%f}-{os.getpid()}.jsonl"
    if sentence := preflight.room([path]):
        return _refuse(sentence, Exit.LOST)
    with _terminated_is_interrupted():
        try:
            with revisions.opened(head, commit) as trees:
                return _compare(trees, how, arguments, path, started, rules, options)
        except BuildFailed as error:
            return _refuse(str(error), Exit.INCOMPLETE)
        except KeyboardInterrupt:
            return _refuse("interrupted", BROKEN_OFF)
        except (TreeError, OSError):
            raise
        except Exception as error:
            if not path.exists():
                raise
            what = f"{type(error).__name__}: {error}"
            raise RuntimeError(f"{what}; what was timed is in {path}: perfgate ab --from {path}") from error


def _compare(
    trees: Trees,
    how: str,
    arguments: Sequence[str],
    path: Path,
    started: datetime,
    rules: Rules,
    options: argparse.Namespace,
) -> int:
    seed = options.seed if options.seed is not None else secrets.randbelow(2**32)
    print(f"base: {trees.base.words} ({how})\nhead: {trees.head.words}\nseed {seed}, journal {path}", flush=True)
    logs = path.with_suffix("")
    logs.mkdir(parents=True)
    header = {
        "ab": SCHEMA,
        "started": started.isoformat(),
        "argv": list(arguments),
        "seed": seed,
        "base": f"{trees.base.commit} {trees.base.words}",
        "head": f"{trees.head.commit} {trees.head.words}",
        "blocks": options.blocks or ContestRule().screen_blocks,
        "confirm": options.confirm or ContestRule().confirm_blocks,
        "floor": options.floor,
    }
    lines = Lines(path, "run where there is room")
    evidence = Evidence(header, write=lines.write)
    progress = Progress(header["blocks"])

    def visited(block: int, done: int, of: int) -> None:
        if (block, done) == (0, 0) and "head" in evidence.environments:
            print(f"{evidence.environments['head'].device}, {evidence.pairs} cases that both have", flush=True)
        progress(block, done, of)

    try:
        lines.write(header)
        for side in ("base", "head") if options.build else ():
            print(f"building {side}: {options.build}", flush=True)
            revisions.build(options.build, trees, side, logs / f"build-{side}.log")
        blocks = Blocks(trees, [*VISIT, *arguments], evidence, seed=seed, logs=logs, visited=visited)
        with contextlib.closing(blocks):
            stages = Stages(
                blocks,
                evidence,
                rules,
                progress,
                seed=seed,
                screens=options.blocks,
                confirms=options.confirm,
                check_always=options.check_always,
            )
            why = stages.run()
        progress.clear()
        evidence.add(end=why)
    except Refused as error:
        progress.clear()
        if not evidence.compared:
            return _refuse(str(error), error.code)
        evidence.add(end=str(error), exit=int(error.code))
    except JournalError as error:
        progress.clear()
        _report(evidence, path, rules.judge, options)
        return _refuse(str(error), Exit.LOST)
    finally:
        progress.clear()
        lines.close()
    code = _report(evidence, path, rules.judge, options)
    if code in (Exit.OK, Exit.REGRESSED, Exit.UNRESOLVED):
        shutil.rmtree(logs)
    return code


def _report(evidence: Evidence, path: Path, judge: Judge, options: argparse.Namespace) -> int:
    """Judge what was seen, print it, write it where that was asked; return the exit code."""
    outcome, code = conclude(evidence, judge, strict=options.strict)
    environment = evidence.environments.get("head")
    print()
    if environment is None:
        print("\n".join((*evidence.notes, *outcome.sentences)))
    else:
        results = Results.of(
            evidence.records("head"),
            environment,
            outcome=outcome,
            out_of_memory=evidence.out_of_memory,
            notes=evidence.notes,
        )
        colourful = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        paint = _paint if colourful else None
        for line in terminal.render(results, width=terminal.room(), paint=paint):
            print(line)
    if options.json:
        options.json.write_text(json.dumps(_document(evidence, outcome, code, path), indent=2) + "\n", encoding="utf-8")
    return code


def _document(evidence: Evidence, outcome: Outcome, code: int, path: Path) -> Mapping[str, object]:
    verdicts = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(verdict).items()}
        for verdict in outcome.verdicts
    ]
    return {
        **evidence.header,
        "journal": str(path),
        "end": evidence.end,
        "exit": code,
        "environment": {side: e.to_json() for side, e in evidence.environments.items()},
        "controls": sorted(evidence.controls),
        "verdicts": verdicts,
        "sentences": list(outcome.sentences),
        "notes": evidence.notes,
    }


@contextlib.contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """A process that is told to end does what it does at Ctrl-C: it cleans up and says what is known."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signals = (signal.SIGTERM, signal.SIGHUP)
    before = {}
    with contextlib.suppress(ValueError):  # not the main thread
        before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse(why: str, code: int) -> int:
    print(f"perfgate: {why}", file=sys.stderr)
    return int(code)


def _paint(text: str, *markup: str) -> str:
    return f"\x1b[{';'.join(COLOURS[m] for m in markup)}m{text}\x1b[0m"


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of blocks, 1 or more, got {text!r}")
    return int(text)


def _several(text: str) -> int:
    if (number := _count(text)) < 2:
        raise argparse.ArgumentTypeError(f"one block cannot confirm anything: expected 2 or more, got {text!r}")
    return number


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 100:  # false for NaN too, which would switch the gate off
        raise argparse.ArgumentTypeError(f"expected a percentage above 0 and up to 100, got {text!r}")
    return value / 100
