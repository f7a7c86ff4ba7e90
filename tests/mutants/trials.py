"""Trials of many mutants, each in a process of its own, and what came of each.

Processes are forked from one that has imported torch and Triton, but nothing of attnkit. On a GPU they are fresh ones:
CUDA cannot be used in a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from tests.mutants.mutant import Mutant
from tests.mutants.trial import Message, try_out

__all__ = ["Verdict", "verdicts"]

LIMIT = 240.0
"""Seconds of one trial: an order of magnitude more than the longest control takes."""
ON_A_GPU = 4
"""Trials that share a GPU: what they compile takes them longer than what they run."""

Result = Literal["caught", "survived", "passed", "broken", "unfinished", "skipped"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a mutant.

    Attributes:
        mutant: Which.
        result: ``caught`` by a law; ``survived`` all of them, which a control should (``passed``); ``broken``, the
            patch itself does not run; ``unfinished`` within the limit; ``skipped``, it needs what is not here.
        by: The law, and a signal where the process died of one; for what was skipped the reason.
        example: At which example of that law; for what passed the examples of all laws.
        seconds: Duration.
        line: The first line of what was said.
    """

    mutant: Mutant
    result: Result
    by: str
    example: int
    seconds: float
    line: str

    @property
    def caught(self) -> bool:
        """Whether a law found it."""
        return self.result == "caught"

    @property
    def good(self) -> bool:
        """Whether it is as it should be."""
        return self.result in ("caught", "passed", "skipped")


def verdicts(mutants: Sequence[Mutant], processes: int) -> Iterator[Verdict]:
    """Try the mutants, those of a GPU after the others, and yield what came of each in their order."""
    gpu = torch.cuda.is_available()
    for device in ("cpu", "cuda"):
        chosen = [mutant for mutant in mutants if mutant.device == device]
        if device == "cuda" and not gpu:
            yield from (Verdict(mutant, "skipped", "needs a GPU", 0, 0.0, "") for mutant in chosen)
            continue
        method = "spawn" if device == "cuda" else "forkserver"
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["tests.mutants.warm"])
        at_once = min(processes, ON_A_GPU) if device == "cuda" else processes
        with interpreted(device == "cpu"), ThreadPoolExecutor(at_once) as pool:
            yield from pool.map(lambda mutant, context=context: verdict(mutant, context), chosen)


@contextmanager
def interpreted(whether: bool) -> Iterator[None]:
    """Let processes that are started inside see no GPU, or run kernels compiled."""
    changed = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"} if whether else {"TRITON_INTERPRET": "0"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def verdict(mutant: Mutant, context: multiprocessing.context.BaseContext) -> Verdict:
    """Try one mutant in a process of its own."""
    answers, theirs = context.Pipe(duplex=False)
    started = time.perf_counter()
    process = context.Process(target=try_out, args=(mutant, theirs), daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    messages: list[Message] = []
    try:
        while answers.poll(max(0.0, started + LIMIT - time.perf_counter())):
            messages.append(answers.recv())
        process.kill()
    except EOFError:
        pass  # it has ended
    process.join()
    seconds = time.perf_counter() - started
    what, law, example, line = messages[-1] if messages else ("trying", "", 0, "")
    result: Result
    if what in ("caught", "broken"):
        result = "caught" if what == "caught" else "broken"
    elif process.exitcode == 0 or [word for word, *_ in messages].count("passed") == len(mutant.checks):
        # once all is said its end is no matter: the server of forks may miss one, and then says 255
        result, example = "survived", sum(n for word, _, n, _ in messages if word == "passed")
        law = ", ".join(mutant.checks)
        if not mutant.edits:
            result = "passed"
    elif seconds >= LIMIT:
        result, line = "unfinished", f"no end within {LIMIT:.0f} s"
        if mutant.tramples and law:
            result, law = "caught", f"{law} (no end)"
    elif process.exitcode is not None and process.exitcode < 0 and what == "trying" and law:
        # it read or wrote what is not its own
        result, law = "caught", f"{law} ({signal.Signals(-process.exitcode).name})"
    else:
        result, line = "broken", f"the process ended with {process.exitcode}"
    if result == "caught" and not mutant.edits:
        result = "broken"
    return Verdict(mutant, result, law, example, seconds, line)
