"""``perfgate static``: compile every build of a module ahead of time, and hold their profiles against the baseline."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from perfgate.gate import Exit
from perfgate.static import files, table
from perfgate.static.judge import exit_code, judge_all
from perfgate.static.profile import Build, Profile, disassembler
from perfgate.static.workers import Key, builds_of, compile_all

__all__ = ["add_parser", "run"]

EVERY = 5.0
"""Seconds between two words on how far it is."""
TRUE = ("1", "true", "yes", "on", "y")
"""What Triton takes for one, in any case."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its options."""
    static = commands.add_parser(
        "static",
        help="compile kernels for GPUs that are not here, and compare registers, spills and instructions",
        description="Compile every build that MODULE.builds() returns, on all cores and without a GPU, and hold what "
        "the binaries say of themselves against STORAGE/sm_<arch>.json. Exit code 1: a build spills, lost its matrix "
        "instructions, waits before the exponentials, fits fewer times on a multiprocessor, reads a uniform "
        "register that nothing has written, or does not compile. "
        "10: the baseline cannot be read or is of another compiler. 11: nothing was compared.",
        allow_abbrev=False,
    )
    static.add_argument("module", metavar="MODULE", help="a module with a function builds(), e.g. attnkit.ahead")
    static.add_argument("--storage", type=Path, default=Path("baselines/static"), help="default: %(default)s")
    static.add_argument("--arch", type=int, action="append", metavar="N", help="only this architecture, e.g. 90")
    static.add_argument("--select", metavar="REGEX", help="only the builds whose name this finds")
    static.add_argument("--all", action="store_true", help="show the builds that are unchanged too")
    static.add_argument("--strict", action="store_true", help="fail for new and missing builds (exit code 11)")
    static.add_argument("--renew", action="store_true", help="write the baseline instead of judging by it")
    static.add_argument("--jobs", type=int, metavar="N", help="processes (default: as many as there are cores)")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    jobs = len(os.sched_getaffinity(0)) if options.jobs is None else options.jobs
    if jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, got {jobs}")
    if (interpreted := os.environ.get("TRITON_INTERPRET", "")).lower() in TRUE:
        raise ValueError(
            f"compiling needs Triton without its interpreter, got TRITON_INTERPRET={interpreted}: unset it"
        )
    select = _pattern(options.select)
    disassembler()
    listed = builds_of(options.module)
    archs = sorted({arch for arch, _ in listed})
    if unknown := set(options.arch or ()) - set(archs):
        raise ValueError(f"--arch must be one of {archs}, got {sorted(unknown)}")
    archs = sorted(options.arch) if options.arch else archs
    # read before anything is compiled: a baseline that cannot be read is known at once
    baselines = {arch: files.read(options.storage, arch) for arch in archs}
    keys = [key for key in listed if key[0] in archs and select.search(key[1])]
    if not keys:
        raise ValueError(f"--select finds no build, got {options.select!r}")
    _have_compilers([listed[key] for key in keys])
    profiles = dict(compile_all(options.module, keys, jobs=jobs, progress=Progress(len(keys))))
    if options.renew:
        return _renew(options.storage, baselines, profiles, complete=not options.select)
    verdicts = []
    for arch in archs:
        old = {name: profile for name, profile in baselines[arch].items() if select.search(name)}
        new = {name: profile for (a, name), profile in profiles.items() if a == arch}
        of_arch = judge_all(arch, old, new)
        print("\n".join([table.summary(arch, of_arch), *table.render(arch, of_arch, every=options.all)]))
        verdicts += of_arch
    return exit_code(verdicts, strict=options.strict)


def _renew(
    storage: Path,
    baselines: Mapping[int, Mapping[str, Profile]],
    profiles: Mapping[Key, Profile | str],
    *,
    complete: bool,
) -> int:
    """Write the baselines; those of selected builds among what was there. None is written if a build failed."""
    failed = [
        f"{name} (sm_{arch}) does not compile: {why}" for (arch, name), why in profiles.items() if isinstance(why, str)
    ]
    if failed:
        print("\n".join(["nothing was written", *failed]), file=sys.stderr)
        return Exit.REGRESSED
    for arch, old in baselines.items():
        new = {name: p for (a, name), p in profiles.items() if a == arch and isinstance(p, Profile)}
        file = files.write(storage, arch, new if complete else {**old, **new})
        print(f"{file}: {len(new)} builds")
    return Exit.OK


def _have_compilers(builds: Sequence[Build]) -> None:
    """Raise a ValueError if a compiler is not here: what cannot be compiled is not left out."""
    lacking = Counter(why for build in builds if (why := build.absent()))
    if lacking:
        said = "; ".join(f"{number} of {len(builds)} builds ({why})" for why, number in lacking.items())
        raise ValueError(f"expected a compiler for every build, got none for {said}: install it, or --select others")


def _pattern(text: str | None) -> re.Pattern[str]:
    try:
        return re.compile(text or "")
    except re.error as error:
        raise ValueError(f"--select must be a regular expression, got {text!r} ({error})") from None


class Progress:
    """Says on stderr how far it is, every few seconds and at the end."""

    def __init__(self, total: int) -> None:
        """Begin, with this many builds to come."""
        self.total, self.started = total, time.monotonic()
        self.said = self.started

    def __call__(self, done: int) -> None:
        """Say so, if it is time."""
        now = time.monotonic()
        if now - self.said >= EVERY or done == self.total:
            self.said = now
            print(f"compiled {done} of {self.total} builds ({now - self.started:.0f} s)", file=sys.stderr, flush=True)
