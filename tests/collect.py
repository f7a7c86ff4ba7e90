"""What docs/trust.md is made of, collected on a machine with a GPU: ``python -m tests.collect STEP --occasion NAME``.

    aa         `perfgate ab` of a commit against itself
    timers     the kernels of `tests.perfgate.cupti` by perfgate's clock, by CUPTI and, where it is, by NVBench
    planted    true sizes measured apart, then `perfgate ab` of a commit against itself, with the head's cases slowed
    drift      `perfgate ab` of a commit against itself, and another process that loads the GPU from a block on
    spread     where processes were seen to differ: each case by perfgate's clock and by a plain one, in several

Each adds a run to the committed data (``--data``), with its origin. ``nox -s calibrate`` writes the page of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perfgate.environment import Environment
from perfgate.fresh import plugin_arguments
from perfgate.gate import Exit
from perfgate.trust import data
from perfgate.trust.collect import from_journal
from perfgate.trust.data import Origin, Planted, Spread, Timing
from tests import planted_turns
from tests.planted_turns import ATTENTION

ROOT = Path(__file__).resolve().parents[1]
SUITES = {
    "subset": (
        *ATTENTION,
        "-k",
        "(triton_flash or sdpa_flash) and not 16384 and not (test_backward and sdpa_flash) and not b4-h16-s8192",
    )
}
"""What runs in suites that have a name. The subset is to stay as it is: its runs are counted together."""
NOISY = (
    "perf/test_forward.py",
    "perf/test_linear.py",
    "-k",
    "m1- or (triton_flash or sdpa_flash or sdpa_cudnn)"
    " and (b1-h4- or b1-h8-s64 or b4-h16-s128- or b4-h16-s256 or b16-h16-s1024 or b1-h16-s16384)",
)
"""Where processes were seen to differ: matrix-vector products and small kernels; and some attention besides."""
SHORT = ("--perf-warmup=0.02", "--perf-max-time=0.06")
"""How long a clock takes for true sizes and for spreads: several times is better than long. What is given wins."""
PROCESSES = 3
"""Processes of each timer, whose medians are kept."""
SEVERAL = 6
"""Processes of which it is seen how far they differ."""
Ask = Callable[..., Any]
Look = Callable[[Sequence[str]], object]
"""Gets the lines that came to the journal."""
ENDED = (Exit.OK, Exit.REGRESSED, Exit.UNFIT, Exit.UNRESOLVED)
"""How a comparison may end that came to its end."""


def ask(module: str, *arguments: str) -> Any:
    """What a module of the tests prints as JSON, run in a process that has done nothing else."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=_paths(), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def timers(occasion: str, ask: Ask = ask, *, say: Callable[[str], object] = print) -> Timing:
    """The same kernels by each timer that is here, NVBench in processes of its own."""
    started = datetime.now(UTC).isoformat()
    both = [ask("tests.perfgate.cupti", "times") for _ in range(PROCESSES)]
    found = {
        timer: [{kernel: {"seconds": seconds[key]} for kernel, seconds in one.items()} for one in both]
        for timer, key in (("perfgate", "clock"), ("perfgate with CUPTI", "clock watched"), ("CUPTI", "CUPTI"))
    }
    if absent := ask("tests.perfgate.nvbench", "absent"):
        say(f"without NVBench: {absent}")
    else:
        found["NVBench"] = [ask("tests.perfgate.nvbench", "time") for _ in range(PROCESSES)]
    environment = Environment.from_json(ask("tests.perfgate.cupti", "environment"))
    seconds = {
        kernel: {
            timer: statistics.median(one[kernel]["seconds"] for one in processes)
            for timer, processes in found.items()
            if all(kernel in one for one in processes)
        }
        for kernel in both[0]
    }
    return Timing(
        origin=Origin(date=started, occasion=occasion, commit=_commit(), environment=environment), seconds=seconds
    )


def unchanged(occasion: str, suite: str, arguments: Sequence[str]) -> data.Contest:
    """A run of unchanged code.

    Raises:
        RuntimeError: If the run does not come to its end, or the working tree is no commit's.
    """
    _committed()
    journal, seconds = _compare(arguments)
    return from_journal(journal, what="aa", occasion=occasion, suite=suite, seconds=seconds)


def planted(occasion: str, shares: Sequence[str], suite: str, arguments: Sequence[str]) -> data.Contest:
    """A run with slowdowns planted in the head, whose true sizes were measured before in a process of their own.

    Raises:
        RuntimeError: If a process fails, a case was not slowed or nothing was, or the working tree is no commit's.
    """
    _committed()
    plant = ["-p", "tests.planted", *(f"--planted={share}" for share in shares)]
    sizes = _folder() / f"planted-{os.getpid()}.jsonl"
    measuring = [*plugin_arguments(), *plant, f"--planted-measure={sizes}", *SHORT]
    command = [sys.executable, "-m", "pytest", *measuring, *arguments]
    subprocess.run(command, cwd=ROOT, env=_paths(), check=True)
    true = [json.loads(line) for line in sizes.read_text().splitlines()] if sizes.exists() else []
    sizes.unlink(missing_ok=True)
    if faster := [one["case"] for one in true if one["true"] <= 0]:
        raise RuntimeError(f"what was planted did not slow {', '.join(faster)}: plant more there, or nothing")
    asked = {one["case"]: Planted(asked=one["asked"], true=one["true"]) for one in true}
    if not asked:
        raise RuntimeError(f"{', '.join(shares)} slowed no case: they find cases by their names")
    journal, seconds = _compare([*arguments, *plant, f"--planted-in={ROOT}"])
    return from_journal(journal, what="planted", occasion=occasion, suite=suite, planted=asked, seconds=seconds)


def spread(occasion: str, arguments: Sequence[str], *, say: Callable[[str], object] = print) -> Spread:
    """Medians of cases in several processes, by perfgate's clock and by a plain one; cases that all of them timed.

    Raises:
        RuntimeError: If a process fails or times nothing, or the working tree is no commit's.
    """
    _committed()
    started = datetime.now(UTC).isoformat()
    processes: list[dict[str, Mapping[str, Any]]] = []
    for i in range(SEVERAL):
        file = _folder() / f"spread-{os.getpid()}-{i}.jsonl"  # stays, for one process that fails loses no other
        file.unlink(missing_ok=True)
        own = [*plugin_arguments(), "-p", "tests.spread", f"--spread={file}", *SHORT]
        command = [sys.executable, "-m", "pytest", "-q", *own, *arguments]
        code = subprocess.run(command, cwd=ROOT, env=_paths()).returncode
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        if code or not lines:
            raise RuntimeError(f"{' '.join(command)} ended with exit code {code} and timed {len(lines)} cases")
        processes.append({line["case"]: line for line in lines})
    everywhere = [case for case in processes[0] if all(case in process for process in processes)]
    if left_out := sorted({case for process in processes for case in process}.difference(everywhere)):
        say(f"left out, for not every process timed them: {', '.join(left_out)}")
    seconds = {
        case: {clock: [process[case]["seconds"][clock] for process in processes] for clock in ("perfgate", "plain")}
        for case in everywhere
    }
    windows = {case: [process[case]["windows"] for process in processes] for case in everywhere}
    environment = Environment.from_json(ask("tests.perfgate.cupti", "environment"))
    origin = Origin(date=started, occasion=occasion, commit=_commit(), environment=environment)
    return Spread(origin=origin, seconds=seconds, windows=windows)


def drift(occasion: str, block: int, suite: str, arguments: Sequence[str]) -> data.Contest:
    """A run of unchanged code in which another process loads the GPU from a block on.

    Raises:
        RuntimeError: If the run does not come to its end, nothing loaded the GPU, or the working tree is no commit's.
    """
    _committed()
    words = f"another process multiplies matrices from block {block} on"
    journal, seconds = _compare([*arguments, "--perf-allow-busy"], lambda: _loaded(block))
    return from_journal(journal, what="drift", occasion=occasion, suite=suite, disturbance=words, seconds=seconds)


def load() -> None:
    """Multiply matrices until somebody ends this process or its parent is gone; on the CPU where there is no GPU."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(4096, 4096, device=device) for _ in range(2))
    parent = os.getppid()
    while os.getppid() == parent:
        for _ in range(50):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()


class Tail:
    """Gives the lines that were added to a journal since it was asked last; the last one once it has its end."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def __call__(self) -> list[str]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            *whole, _ = file.read().split(b"\n")
        self._read += sum(len(line) + 1 for line in whole)
        return [line.decode() for line in whole]


@contextmanager
def _undisturbed() -> Iterator[Look]:
    yield lambda lines: None


@contextmanager
def _loaded(block: int) -> Iterator[Look]:
    """Gives what is to be called with the journal's lines: once that block is there, another process loads the GPU.

    Raises:
        RuntimeError: If none did to the end.
    """
    stranger: list[subprocess.Popen[bytes]] = []

    def look(lines: Sequence[str]) -> None:
        if not stranger and any(line.startswith(f'{{"block":{block - 1},') for line in lines):
            stranger.append(subprocess.Popen([sys.executable, "-m", "tests.collect", "load"], cwd=ROOT, env=_paths()))

    try:
        yield look
        if not stranger or stranger[0].poll() is not None:
            raise RuntimeError(f"nothing was disturbed to the end: block {block} never came, or the load ended early")
    finally:
        for child in stranger:
            child.kill()
            child.wait()


def _compare(
    arguments: Sequence[str], meanwhile: Callable[[], AbstractContextManager[Look]] = _undisturbed
) -> tuple[Path, dict[str, float]]:
    """Run a commit against itself; return the journal, and the seconds of the screen and of all.

    Raises:
        RuntimeError: If it did not come to its end.
    """
    before = set(_folder().glob("ab-*.jsonl"))
    start, screened = time.monotonic(), 0.0
    command = [sys.executable, "-m", "perfgate", "ab", "--base=HEAD", "--", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=_paths()) as child:
        journal = _new(before, child)
        added = Tail(journal)
        with meanwhile() as look:
            while child.poll() is None:
                lines = added()
                look(lines)
                if any(line.startswith('{"suspects":') for line in lines):
                    screened = time.monotonic() - start
                time.sleep(0.2)
    if child.returncode not in ENDED:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {child.returncode}")
    whole = time.monotonic() - start
    return journal, {"screen": screened or whole, "whole": whole}


def _new(before: set[Path], child: subprocess.Popen[bytes]) -> Path:
    """The journal that this process begins."""
    while True:
        if new := set(_folder().glob("ab-*.jsonl")) - before:
            return new.pop()
        if child.poll() is not None:
            raise RuntimeError(f"perfgate ab ended with exit code {child.returncode} before it had timed anything")
        time.sleep(0.05)


def _folder() -> Path:
    folder = ROOT / ".perfgate"
    folder.mkdir(exist_ok=True)
    return folder


def _paths() -> Mapping[str, str]:
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _committed() -> None:
    command = ["git", "status", "--porcelain", "--untracked-files=no"]
    if changed := subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout:
        raise RuntimeError(f"expected a commit against itself, but files were changed: commit them\n{changed}")


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def main(argv: Sequence[str]) -> None:
    """Do a step."""
    parser = argparse.ArgumentParser(prog="python -m tests.collect", description=__doc__, allow_abbrev=False)
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("load", help="what drift disturbs by")
    for name in ("aa", "timers", "planted", "drift", "spread"):
        step = steps.add_parser(name, allow_abbrev=False)
        step.add_argument("--occasion", required=True, metavar="NAME", help="which start of which machine it is")
        step.add_argument("--data", type=Path, default=ROOT / "docs" / "trust.jsonl", metavar="FILE")
        if name in ("timers", "spread"):
            continue
        step.add_argument("--suite", default="default", metavar="NAME", help="which cases run (default: %(default)s)")
        if name == "planted":
            what = step.add_mutually_exclusive_group(required=True)
            what.add_argument("--planted", action="append", metavar="REGEX:PERCENT", help="slow what this finds")
            turns = range(1, planted_turns.TURNS + 1)
            what.add_argument(
                "--turn", type=int, choices=turns, help="slow the cases of tests.planted_turns, run those"
            )
        elif name == "drift":
            step.add_argument("--block", type=int, default=2, help="from which on (default: %(default)s)")
        step.add_argument("arguments", nargs="*", help="pytest's, after --; default: perf, or the suite's own")
    options = parser.parse_args(argv)
    if options.step == "load":
        load()
        return
    suite, given = getattr(options, "suite", ""), getattr(options, "arguments", [])
    if given and (suite in SUITES or getattr(options, "turn", None)):
        parser.error(f"a turn and the suite {', '.join(SUITES)} have their own cases, got {' '.join(given)}")
    entry: data.Entry
    if options.step == "timers":
        entry = timers(options.occasion)
    elif options.step == "spread":
        entry = spread(options.occasion, NOISY)
    elif options.step == "planted" and options.turn:
        shares = planted_turns.planted(options.turn)
        entry = planted(options.occasion, shares, "planted", planted_turns.ARGUMENTS)
    else:
        arguments = given or SUITES.get(suite, ("perf",))
        if options.step == "aa":
            entry = unchanged(options.occasion, options.suite, arguments)
        elif options.step == "planted":
            entry = planted(options.occasion, options.planted, options.suite, arguments)
        else:
            entry = drift(options.occasion, options.block, options.suite, arguments)
    data.append(options.data, entry)
    print(f"{options.data}: a run of {entry.what} was added")


if __name__ == "__main__":
    main(sys.argv[1:])
