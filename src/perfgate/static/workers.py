"""Compiling many builds on all cores. A build may take its process down: compilers abort on what they do not expect.

A worker imports the module that lists the builds, and is given one build at a time. What it prints goes to a file, and
the end of that is why a build failed. A worker that dies is replaced; the build that it held failed.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from perfgate.static.profile import Build, Profile, read

__all__ = ["builds_of", "compile_all"]

LIMIT = 300.0
"""Seconds for one build."""
TAIL = 400
"""Characters of a compiler's last words that are shown."""

Key = tuple[int, str]


def builds_of(module: str) -> dict[Key, Build]:
    """The builds that a module lists, by architecture and name.

    Raises:
        ValueError: If there is no such module, it has no function ``builds``, or two builds share a name.
    """
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"expected a module that lists builds, got {module!r} ({error})") from None
    if not callable(getattr(found, "builds", None)):
        raise ValueError(f"expected a function builds() in {module}, which returns the builds: define one")
    listed: dict[Key, Build] = {}
    for build in found.builds():
        if (build.arch, build.name) in listed:
            raise ValueError(f"expected a name for each build of sm_{build.arch}, got {build.name!r} twice")
        listed[build.arch, build.name] = build
    return listed


class Worker:
    """A process that compiles, one build at a time."""

    def __init__(self, module: str) -> None:
        """Start it."""
        context = multiprocessing.get_context("spawn")
        self.log = tempfile.NamedTemporaryFile(prefix="perfgate-static-", suffix=".log")  # noqa: SIM115 - it lives as long as the worker
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(module, theirs, self.log.name), daemon=True)
        self.process.start()
        theirs.close()
        self.key: Key | None = None
        self.deadline = 0.0

    def give(self, key: Key) -> None:
        """Have it compile a build."""
        self.key, self.deadline = key, time.monotonic() + LIMIT
        self.pipe.send(key)

    def result(self) -> Profile | str:
        """What came of the build: its profile, or why there is none."""
        try:
            answer: Profile | str = self.pipe.recv()
            return answer
        except (EOFError, OSError):
            self.process.join()
            return f"the compiler ended its process with {self.process.exitcode}: {self._last_words()}"

    def end(self) -> None:
        """Stop it, whatever it does."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.log.close()

    def _last_words(self) -> str:
        text = Path(self.log.name).read_text(encoding="utf-8", errors="replace")
        return " ".join(text.split())[-TAIL:] or "it said nothing"


def compile_all(
    module: str, keys: Sequence[Key], *, jobs: int, progress: Callable[[int], None] = lambda done: None
) -> Iterator[tuple[Key, Profile | str]]:
    """Compile builds on `jobs` processes, and yield each with its profile or with why there is none, as they come.

    Args:
        module: The module that lists the builds.
        keys: Which of them.
        jobs: How many processes, 1 or more.
        progress: Told how many are done, after each.
    """
    waiting = list(reversed(keys))
    done = 0
    workers = [Worker(module) for _ in range(min(jobs, len(keys)))]
    try:
        for worker in workers:
            worker.give(waiting.pop())
        while busy := {worker.pipe: worker for worker in workers if worker.key}:
            ready: list[Any] = wait(
                list(busy), timeout=max(0.0, min(w.deadline for w in busy.values()) - time.monotonic())
            )
            late = [w for w in busy.values() if w.pipe not in ready and w.deadline <= time.monotonic()]
            for worker in (*(busy[pipe] for pipe in ready), *late):
                key = worker.key
                if key is None:
                    continue
                result = f"took longer than {LIMIT:.0f} s" if worker in late else worker.result()
                done += 1
                progress(done)
                yield key, result
                worker.key = None
                if worker in late or not worker.process.is_alive():
                    worker.end()
                    workers.remove(worker)
                    if waiting:
                        workers.append(worker := Worker(module))
                if waiting:
                    worker.give(waiting.pop())
    finally:
        for worker in workers:
            worker.end()


def _serve(module: str, pipe: Connection, log: str) -> None:
    """The life of a worker."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    listed = builds_of(module)
    while True:
        try:
            key = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(read(listed[key].compile(), key[0]))
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())[-TAIL:]}")
