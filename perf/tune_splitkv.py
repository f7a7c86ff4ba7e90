"""Find the fastest forms of split-KV attention on this GPU: ``python -m perf.tune_splitkv --out splitkv.json``.

Each form is first held against the oracle in a process of its own, many at a time, with every group of heads that is
timed, and called twice: one that hangs, crashes or is wrong is set aside and harms no other. Then every form is timed
with the splits that are chosen for it, and the best few with other splits, by perfgate's clock (cold L2, CUDA graph)
and with a workspace that is kept, beside torch's own attention. Numbers are microseconds, and the bytes of queries,
cache and result a second as a share of the read bandwidth measured in this run. What it prints last is what
`choose` in attnkit/variants/triton_splitkv_tiles.py wants to know.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attnkit.parity import parity
from attnkit.problem import Problem
from attnkit.tune import names
from attnkit.variants import triton_splitkv, variant
from attnkit.variants.triton_splitkv import Workspace, attend
from attnkit.variants.triton_splitkv_tiles import MAX_SPLITS, Form, choose_splits
from perf.search import apart, recorded, screened
from perfgate.clock import Budget, Clock
from perfgate.cuda import CudaClock
from perfgate.gpu import ceilings, use_one_stream

PEERS = ("sdpa_cudnn", "sdpa_flash")
SCREEN_KEYS = 1111
FINALISTS = 3
SPLITS = (2, 4, 8, 16, 32, 64)
SETS_BYTES = 4e9
"""What the inputs of one problem may fill, several times the L2 in any case."""
DEVICE = torch.device("cuda")

# best guesses first: under a time limit the end of the list is not reached
FORMS = [
    Form(),
    Form(block_n=128, again=False),
    Form(again=False),
    Form(apart=False),
    Form(block_n=128),
    Form(warps=2),
    Form(warps=2, apart=False),
    Form(stages=4),
    Form(stages=5),
    Form(block_n=32, warps=2, stages=5),
    Form(block_n=32, warps=2, stages=5, apart=False),
    Form(block_n=128, warps=8, again=False),
    Form(block_n=64, warps=8, again=False),
]


def problem(b: int, hkv: int, skv: int, sq: int = 1) -> Problem:
    """Attention on a cache, as Llama-2-7B (32 key heads), Llama-3-8B (8) and Qwen3-30B-A3B (4) have it."""
    return Problem(b=b, hq=32, hkv=hkv, sq=sq, skv=skv, d=128, mask="causal")


PROBLEMS = {
    "b1-hkv8-4096": problem(1, 8, 4096),
    "b1-hkv4-4096": problem(1, 4, 4096),
    "b1-hkv8-1024": problem(1, 8, 1024),
    "b1-hkv4-1024": problem(1, 4, 1024),
    "b1-hkv32-1024": problem(1, 32, 1024),
    "b1-hkv32-4096": problem(1, 32, 4096),
    "b1-hkv8-4096-sq4": problem(1, 8, 4096, 4),
    "b32-hkv8-4096": problem(32, 8, 4096),
    "b32-hkv32-4096": problem(32, 32, 4096),
    "b64-hkv8-8192": problem(64, 8, 8192),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """A form with so many splits."""

    form: Form
    splits: int

    def __str__(self) -> str:
        f = self.form
        text = f"{f.block_n:3} keys {f.warps} warps {f.stages} stages {self.splits:3} splits"
        return text + (" q again" if f.again else "") + (" apart" if f.apart else "")


Call = Callable[..., torch.Tensor]


def call(trial: Trial, workspace: Workspace) -> Call:
    """Attention by one form, as a decoder calls it that keeps its workspace."""
    return lambda q, k, v: attend(q, k, v, splits=trial.splits, form=trial.form, workspace=workspace)


def wrong(form: Form, asked: Problem) -> str | None:
    """What is wrong with a form at heads and queries as asked, on a cache of odd length, or None."""
    small = dataclasses.replace(asked, b=2, skv=SCREEN_KEYS)
    q, k, v, _ = small.inputs(DEVICE)
    workspace = Workspace.of(2, small.hkv, small.sq * small.group, small.d, DEVICE)
    for splits in (1, 3, 17):
        given = call(Trial(form, splits), workspace)

        def attention(*tensors: torch.Tensor, given: Call = given, **_: Any) -> torch.Tensor:
            return given(*tensors)

        found = parity(dataclasses.replace(triton_splitkv.VARIANT, attention=attention), small, DEVICE, "fwd")
        if not found.ok:
            return f"wrong with {splits} splits: {found.failures[0]}"
        first = given(q, k, v)
        workspace.partial.fill_(float("nan"))
        if not torch.equal(given(q, k, v), first):
            return f"not the same twice with {splits} splits"
    return None


def screen(form: Form, problems: Sequence[Problem]) -> str | None:
    """Compile a form for every group of heads among these and check it: why it is out, or None."""
    groups = {(p.hkv, p.sq): p for p in problems}
    return next(filter(None, (wrong(form, p) for p in groups.values())), None)


def screen_apart(form: Form, names: Sequence[str]) -> str | None:
    """`screen` in a process of its own, which leaves the compiled kernels in Triton's cache."""
    return apart("perf.tune_splitkv", "--problems", ",".join(names), "--screen", json.dumps(dataclasses.asdict(form)))


class Bench:
    """Times calls at one problem, with the same inputs for all."""

    def __init__(self, clock: Clock, asked: Problem) -> None:
        self.bytes = asked.bytes("fwd")
        self._clock = clock
        sets = int(max(3, min(32, SETS_BYTES // self.bytes)))
        self._inputs = [asked.inputs(DEVICE, seed)[:3] for seed in range(sets)]

    def seconds(self, given: Call) -> float:
        """Of one call."""
        return self._clock.measure(given, self._inputs).median


def chosen(form: Form, asked: Problem) -> Trial:
    """A form with the splits that a call would have."""
    return Trial(form, choose_splits(asked.b * asked.hkv, asked.skv, DEVICE, form.block_n))


def turns(forms: Sequence[Form], asked: Problem, found: dict[Trial, list[float]]) -> Iterator[Trial]:
    """All forms as they would be called, then the best few with other splits, then the best few of all again."""
    yield from (chosen(form, asked) for form in forms)
    for form in [trial.form for trial in best(found)[:FINALISTS]]:
        tiles = -(-asked.skv // form.block_n)
        for splits in SPLITS:
            trial = Trial(form, splits)
            if trial not in found and splits <= min(tiles, MAX_SPLITS) and asked.b * asked.hkv * splits <= 4096:
                yield trial
    yield from best(found)[:FINALISTS]


def best(found: dict[Trial, list[float]]) -> list[Trial]:
    """The fastest first."""
    return sorted(found, key=lambda trial: statistics.median(found[trial]))


def show(label: str, seconds: float, share: float) -> None:
    """One line as it is found."""
    print(f"    {label:56}{seconds * 1e6:9.2f} us {share:6.1%}", flush=True)


def tune(arguments: argparse.Namespace, record: list[dict[str, Any]]) -> None:
    """Screen, time and choose; ``record`` grows on the way."""
    problems = {name: PROBLEMS[name] for name in arguments.problems}
    use_one_stream()
    verdicts = screened(FORMS, lambda form: screen_apart(form, arguments.problems), arguments.jobs)
    record.extend({"form": dataclasses.asdict(form), "out": reason} for form, reason in verdicts.items() if reason)
    right = [form for form in FORMS if verdicts[form] is None]
    clock = CudaClock(Budget(half_width=0.005, max_seconds=0.1, min_samples=10, warmup_seconds=0.03))
    read = ceilings(clock)["read_bytes_per_second"]
    print(f"read bandwidth: {read / 1e12:.3f} TB/s", flush=True)
    record.append({"read_bytes_per_second": read})
    summary: list[str] = []
    started = time.monotonic()
    for i, (name, asked) in enumerate(problems.items(), 1):
        # every problem has its share, so that the last one is not the one to go short
        deadline = started + arguments.seconds * i / len(problems)
        bench = Bench(clock, asked)
        ideal = bench.bytes / read
        print(f"{name}: {ideal * 1e6:.2f} us at the read bandwidth", flush=True)
        peers: dict[str, float] = {}
        for peer in PEERS:
            way, options = variant(peer), asked.options(DEVICE)
            if way.why_not(asked, DEVICE, "fwd") is None:
                peers[peer] = bench.seconds(lambda q, k, v, way=way, options=options: way.attention(q, k, v, **options))
                show(peer, peers[peer], ideal / peers[peer])
                record.append({"problem": name, "peer": peer, "seconds": peers[peer], "ideal_seconds": ideal})
        workspace = Workspace.of(asked.b, asked.hkv, asked.sq * asked.group, asked.d, DEVICE)
        found: dict[Trial, list[float]] = {}
        for trial in turns(right, asked, found):
            if time.monotonic() > deadline:
                print("time is up", flush=True)
                break
            try:
                seconds = bench.seconds(call(trial, workspace))
            except Exception as error:  # one that cannot be timed must not end the search
                print(f"    {trial}: {type(error).__name__}: {str(error)[:120]}", flush=True)
                continue
            show(str(trial), seconds, ideal / seconds)
            found.setdefault(trial, []).append(seconds)
            record.append({"problem": name, "trial": dataclasses.asdict(trial), "seconds": seconds})
        if not found:
            continue
        winner = best(found)[0]
        seconds = statistics.median(found[winner])
        against = f", {min(peers.values()) / seconds:.2f}x the best of torch's" if peers else ""
        summary.append(f"{name:18}{winner}: {seconds * 1e6:.2f} us, {ideal / seconds:.1%}{against}")
        record.append({"problem": name, "best": dataclasses.asdict(winner), "seconds": seconds})
        del bench, workspace
        torch.cuda.empty_cache()
    print("\nbest:", *summary, sep="\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(prog="python -m perf.tune_splitkv", description=(__doc__ or "").split("\n\n")[0])
    parse.add_argument("--problems", type=names(list(PROBLEMS)), default=list(PROBLEMS), help=",".join(PROBLEMS))
    parse.add_argument("--seconds", type=float, default=120.0, help="time limit of what comes after the screen")
    jobs = max(1, (os.cpu_count() or 2) - 2)
    parse.add_argument("--jobs", type=int, default=jobs, help="forms screened at a time")
    parse.add_argument("--screen", help=argparse.SUPPRESS)
    parse.add_argument("--out", type=Path, help="write every result there, as JSON")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    arguments = parser().parse_args(argv)
    if not torch.cuda.is_available():
        print("perf.tune_splitkv needs a CUDA device and found none", file=sys.stderr)
        return 2
    if arguments.screen is not None:
        asked = [PROBLEMS[name] for name in arguments.problems]
        print(json.dumps({"out": screen(Form(**json.loads(arguments.screen)), asked)}))
        return 0
    recorded(lambda record: tune(arguments, record), arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
