"""The command line.

``perfgate gate`` runs pytest and believes no run that did not come to its end, ``perfgate baseline`` measures and files
a baseline, ``perfgate ab`` compares the working tree with another commit, ``perfgate report`` writes what files hold,
``perfgate accept`` lets a case be slower than its baseline, with the reason, ``perfgate calibrate`` says what is
known of perfgate itself, and ``perfgate static`` compares what compiled kernels say of themselves, without a GPU.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from perfgate import accept, baseline, contest, ending, journal, preflight, recording
from perfgate.ab import command as ab
from perfgate.ab.evidence import read, rule_of
from perfgate.ab.outcome import Rules
from perfgate.baseline import BaselineError
from perfgate.gate import Exit, decide
from perfgate.journal import JournalError
from perfgate.report import FORMATS, Axis, Results, markdown
from perfgate.static import command as static
from perfgate.trust import command as calibrate
from perfgate.trust import data, starts

__all__ = ["main"]

INTERRUPTED, INTERNAL_ERROR = 2, 3
"""pytest's, with pytest's meaning."""
KNOWN = 0.5
"""Share of a baseline's cases that must have been timed at several starts for it to carry what these differ by."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code (see `perfgate.gate.Exit`)."""
    before, pytest_arguments = _split(sys.argv[1:] if argv is None else list(argv))
    options = _parser().parse_args(before)
    try:
        if options.command == "gate":
            return _gate([*options.paths, *pytest_arguments])
        if options.command == "baseline":
            return _baseline(options, [*options.paths, *pytest_arguments])
        if options.command == "ab":
            return _ab(options, [*options.paths, *pytest_arguments])
        if options.command == "accept":
            return accept.command(options)
        if options.command == "calibrate":
            return calibrate.run(options)
        if options.command == "static":
            return static.run(options)
        return _report(options)
    except (BaselineError, JournalError) as error:
        return _refuse(str(error), Exit.REFUSED)
    except (ValueError, OSError, ImportError) as error:
        return _refuse(str(error), Exit.USAGE)
    except KeyboardInterrupt:
        return _refuse("interrupted", INTERRUPTED)
    except Exception as error:  # of an error that nobody foresaw Python's exit code is that of a regression
        traceback.print_exc()
        return _refuse(f"an error in perfgate itself, or in a plugin: {type(error).__name__}: {error}", INTERNAL_ERROR)


class _Parser(argparse.ArgumentParser):
    """Wrong options end with the code that they have everywhere here; argparse's own is that of an interrupt."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(Exit.USAGE, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(prog="perfgate", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)

    gate = commands.add_parser(
        "gate",
        help="hold a suite against its baseline, and believe no run that did not come to its end",
        usage="%(prog)s [path ...] [-- pytest's arguments]",
        description="Run pytest --benchmark-only --benchmark-compare and pass on its exit code; 11 for a process that "
        "something ended with code 0 before it had judged what it timed.",
        allow_abbrev=False,
    )
    gate.add_argument("paths", nargs="*", help="what pytest is to run; its own default if left out")

    make = commands.add_parser(
        "baseline",
        help="measure a suite in several fresh processes and file the result",
        usage="%(prog)s [options] [path ...] [-- pytest's arguments]",
        description="Run the suite in fresh processes, merge what they measured, and write "
        "STORAGE/<environment>/<machine>/NNNN_LABEL.json, unless they disagree too much or the device was unfit.",
        allow_abbrev=False,
    )
    make.add_argument("paths", nargs="*", help="what pytest is to run; its own default if left out")
    make.add_argument("--processes", type=_count, default=5, metavar="N", help="how many processes (default: 5)")
    make.add_argument(
        "--devices",
        type=_devices,
        default=(),
        metavar="LIST",
        help="CUDA devices that take the processes in turn, side by side: as CUDA_VISIBLE_DEVICES names them, with "
        "commas between (default: one)",
    )
    make.add_argument("--storage", type=Path, default=Path("baselines"), help="default: baselines")
    make.add_argument(
        "--label", type=_label, default="default", help="the suite's name in the file's name (default: default)"
    )
    make.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="keep each process's files here; else only if there is no baseline of them",
    )
    make.add_argument("--from", dest="files", type=Path, nargs="+", metavar="FILE", help="merge these, measure nothing")
    make.add_argument(
        "--without",
        metavar="REGEX",
        help="with --from: leave out the cases whose name this finds, as of tests that are gone on purpose; with "
        "the baseline itself as FILE nothing else changes, but what was accepted of it must be accepted again",
    )
    make.add_argument(
        "--visible",
        type=float,
        default=100 * baseline.ALLOWED,
        metavar="PERCENT",
        help="refuse if the processes disagree so much that a slowdown of this size could hide (default: %(default)g); "
        "a larger one lets a noisy machine have a baseline, whose gate then sees less",
    )

    make.add_argument(
        "--sessions",
        type=Path,
        metavar="FILE",
        help="runs of unchanged code at several starts of such machines, as `perfgate calibrate` keeps them: what the "
        "starts differ by is kept in the baseline, whose gate then need not assume it",
    )

    compare = commands.add_parser(
        "ab",
        help="time the working tree against another commit, in turn on one device",
        usage="%(prog)s [options] [path ...] [-- pytest's arguments]",
        description="Check the base out beside the working tree, and time cases of both in turn in fresh processes.",
        allow_abbrev=False,
    )
    ab.add_arguments(compare)

    show = commands.add_parser("report", help="write what saved runs or journals hold", allow_abbrev=False)
    show.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="pytest-benchmark's JSON, or a journal (.jsonl)"
    )
    show.add_argument("--format", choices=sorted(FORMATS), default="text", help="default: text")
    show.add_argument("--out", type=Path, metavar="PATH", help="write here instead of to the terminal")
    show.add_argument("--block", metavar="NAME", help="replace only the generated block of this name in --out")
    show.add_argument(
        "--against",
        type=Path,
        metavar="BASELINE",
        help="judge FILE against this; sets the exit code. What BASELINE has and FILE has not is missing, unless FILE "
        "says that it was deselected",
    )
    show.add_argument(
        "--axis", metavar="PATTERN", help=r"what runs along x, as a field of the cases' names, e.g. 's(\d+)'"
    )
    show.add_argument("--select", metavar="REGEX", help="only the cases whose name this finds, e.g. '^forward/'")
    show.add_argument(
        "--pivot-only", action="store_true", help="markdown: the table along --axis alone, without that of all cases"
    )
    show.add_argument("--label", default="", help="what x is, e.g. 'sequence length'")
    show.add_argument(
        "--along", metavar="PATTERN", help=r"fields that change along x without another panel, e.g. 'b\d+'"
    )
    accept.add_command(commands)
    calibrate.add_parser(commands)
    static.add_parser(commands)
    return parser


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """What is ours, and what stands after the first ``--``."""
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of processes, 1 or more, got {text!r}")
    return int(text)


def _devices(text: str) -> tuple[str, ...]:
    devices = tuple(text.split(","))
    if not all(devices) or len(set(devices)) != len(devices):
        raise argparse.ArgumentTypeError(
            f"expected devices as CUDA_VISIBLE_DEVICES names them, each once, got {text!r}"
        )
    return devices


def _label(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+", text):  # `baseline.write` wants the same, but after all was measured
        raise argparse.ArgumentTypeError(f"expected letters, digits, '.', '_' and '-', got {text!r}")
    return text


def _refuse(why: str, code: int) -> int:
    print(f"perfgate: {why}", file=sys.stderr)
    return int(code)


def _gate(arguments: list[str]) -> int:
    # an option follows --benchmark-compare, which would take a path for the name of a baseline
    code, why = ending.run(["--benchmark-compare", "--benchmark-only", *arguments])
    return _refuse(why, code) if why else code


def _baseline(options: argparse.Namespace, arguments: list[str]) -> int:
    if not 0 < options.visible < 1000:
        raise ValueError(f"--visible must be a percentage above 0 and below 1000, got {options.visible:g}")
    if options.files and arguments:
        raise ValueError(f"--from measures nothing, so it takes no suite, got {' '.join(arguments)}")
    if options.without is not None and not options.files:
        raise ValueError("--without leaves out what was measured: give the files with --from, or deselect with -k")
    if options.sessions and not options.sessions.is_file():
        raise ValueError(
            f"--sessions must be a file of runs of unchanged code, and there is none at {options.sessions}"
        )
    runs = data.read(options.sessions) if options.sessions else []
    started = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    directory = options.keep or Path(".perfgate") / f"baseline-{started}-{os.getpid()}"
    files: list[Path] = options.files or []
    if not files:
        for path in (directory, options.storage):
            if sentence := preflight.room([path]):
                return _refuse(sentence, Exit.LOST)
        try:
            files = recording.measure(
                arguments, processes=options.processes, directory=directory, devices=options.devices
            )
        except recording.ProcessFailed as error:
            return _refuse(str(error), error.code or Exit.INCOMPLETE)
    code = _file(files, options, runs)
    if code == Exit.OK and not options.files and not options.keep:
        shutil.rmtree(directory)
    elif code != Exit.OK and not options.files:
        print(f"nothing was written to {options.storage}; to merge what was measured all the same:", file=sys.stderr)
        print(f"    perfgate baseline --from {' '.join(map(str, files))}", file=sys.stderr)
    return code


def _file(files: Sequence[Path], options: argparse.Namespace, runs: Sequence[data.Entry]) -> int:
    """Merge the processes' files and write the baseline, or say why there is none."""
    try:
        documents = [baseline.load(path) for path in files]
        if options.without is not None:
            documents = [baseline.without(document, options.without) for document in documents]
        document = baseline.merge(documents)
        said = _sessions(document, runs) if options.sessions else ""
        merged = baseline.from_document(document)
        rule = baseline.rule_for(merged, None)
        unfit = baseline.spread(merged.records.values(), allowed=options.visible / 100, rule=rule)
        if unfit:
            return _refuse("no baseline:\n    " + "\n    ".join(unfit), Exit.UNFIT)
        directory = options.storage / merged.environment.key / preflight.machine_id(document["machine_info"])
        path = baseline.write(document, directory, options.label)
    except BaselineError as error:
        return _refuse(f"no baseline: {error}", Exit.REFUSED)
    memory = f", {len(merged.out_of_memory)} out of memory" if merged.out_of_memory else ""
    processes = f"{merged.processes} process{'' if merged.processes == 1 else 'es'}"
    print(f"{path}: {len(merged.records)} cases in {processes}{memory}{said}")
    return Exit.OK


def _sessions(document: dict[str, Any], runs: Sequence[data.Entry]) -> str:
    """Put what sessions differ by into a document, if it is known; return what must be said."""
    document["perfgate"].pop("session", None)
    key, names = document["machine_info"]["perfgate"]["key"], set(baseline.from_document(document).records)
    found = starts.apart([entry for entry in runs if isinstance(entry, data.Contest)], key)
    seen = names & set(found.cases) if found else set()
    if found is None or len(seen) < KNOWN * len(names):
        few = f"{len(seen)} of {len(names)} cases were timed at {starts.FEWEST} starts or more of {key}"
        return f"\n{few}: what sessions differ by stays assumed"
    document["perfgate"]["session"] = found.to_json()
    return f"\ntwo sessions differ by an sd of {found.session:.2%}, as {found.count} starts did"


def _ab(options: argparse.Namespace, arguments: list[str]) -> int:
    asked = {name: value for name, value in vars(options).items() if value is not None}
    rule = rule_of(read(options.file).header if options.file else asked)
    rules = Rules(
        unsettled=lambda blocks, controls: contest.unsettled(blocks, rule, controls),
        suspects=lambda blocks, controls: contest.suspects(blocks, rule, controls),
        undecided=lambda blocks, controls, picked: contest.undecided(blocks, rule, controls, picked),
        judge=lambda blocks, controls, picked: contest.judge(blocks, rule, controls, picked),
    )
    return ab.run(options, arguments, rules)


def _report(options: argparse.Namespace) -> int:
    if (options.label or options.along) and not options.axis:
        raise ValueError("--label and --along say more of --axis: give that too")
    if options.block and not options.out:
        raise ValueError("--block names a part of a document: give the document with --out")
    if options.format in ("svg", "roofline") and len(options.files) > 1:
        raise ValueError(f"a picture shows one file, got {len(options.files)}")
    axis = Axis(pattern=options.axis, label=options.label, along=options.along) if options.axis else None
    against = baseline.read(options.against) if options.against else None
    accepted = accept.read(options.against) if options.against else ()
    if options.pivot_only and not (axis and options.format == "markdown"):
        raise ValueError("--pivot-only is for --format markdown with an --axis: give both")
    results = [_results(path, against, accepted) for path in options.files]
    shown = [result.select(options.select) if options.select else result for result in results]
    write = functools.partial(markdown.render, full=False) if options.pivot_only else FORMATS[options.format]
    text = "\n".join(write(result, axis) for result in shown)
    if options.block:
        text = markdown.replace_block(options.out.read_text(encoding="utf-8"), options.block, text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return max((result.outcome.exit for result in results if result.outcome), default=Exit.OK)


def _results(path: Path, against: baseline.Baseline | None, accepted: Sequence[accept.Acceptance] = ()) -> Results:
    """What a file holds, judged if there is something to judge it against."""
    notes: list[str] = []
    absent: Mapping[str, str] = {}
    found: journal.Contents | baseline.Baseline
    complete, deselected = True, set[str]()
    if path.suffix == ".jsonl":
        found = contents = journal.read(path)
        complete = contents.complete
        if not complete:
            notes.append(f"{path} is of a run that did not come to its end, or failed")
    else:
        document: Any = baseline.load(path)
        found = baseline.from_document(document, path)
        absent = document["perfgate"].get("absent", {})
        deselected = set(document["perfgate"].get("deselected", ()))
    outcome = None
    if against is not None:
        notes += baseline.check_comparable(against, found.environment)
        rule = baseline.rule_for(against, found.environment)
        outcome = decide(
            found.records,
            against,
            selected=_due(against, found, deselected),
            out_of_memory=found.out_of_memory,
            accepted=accepted,
            rule=rule,
        )
        if outcome.exit == Exit.OK and not complete:
            outcome = replace(outcome, exit=Exit.INCOMPLETE)
    return Results.of(
        found.records,
        found.environment,
        ceilings=found.ceilings,
        outcome=outcome,
        out_of_memory=found.out_of_memory,
        absent=absent,
        notes=notes,
    )


def _due(against: baseline.Baseline, found: journal.Contents | baseline.Baseline, deselected: set[str]) -> set[str]:
    """The cases of a baseline that a run was to time: all but those whose tests it says were left out."""
    here = {*found.records, *found.out_of_memory}
    nodes = baseline.nodes(baseline.load(against.path)) if against.path and deselected else {}
    known = {*against.records, *against.out_of_memory}
    return here | {name for name in known if nodes.get(name) not in deselected}


if __name__ == "__main__":
    sys.exit(main())
