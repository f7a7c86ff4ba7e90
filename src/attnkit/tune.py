"""Find tiles for triton_flash on this GPU: ``python -m attnkit.tune triton_flash --out tune.json``.

Each candidate is first compiled and checked against float32 attention in a process of its own, many at a time: one that
does not fit, hangs, crashes or is wrong is set aside with its reason and harms no other. The rest are timed one by one
beside the references, and the best few once more in turn. What it prints last are rows for TABLE in
variants/triton_flash_tiles.py; a row is worth taking where it wins by more than the rounds differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from attnkit.problem import TRAINED, Dtype, Mask, Pass, Problem
from attnkit.variants import TABLE, variant
from attnkit.variants.triton_flash import attention
from attnkit.variants.triton_flash_tiles import Config, Form, Kernel, Loads, family, form_here, padded

KERNELS: dict[str, tuple[Kernel, ...]] = {"fwd": ("forward",), "bwd": ("dkdv", "dq")}
SCREEN_SECONDS = 90
"""A candidate that has not compiled and answered by then hangs."""
FINALISTS = 3
ROUNDS = 3


def configs(loads: Loads, *tiles: tuple[int, int, int, int], split: bool = False) -> list[Config]:
    """Several (block_m, block_n, warps, stages) that load alike."""
    return [Config(*tile, loads=loads, split=split) for tile in tiles]


# best guesses first: under a time limit the end of a list is not reached
CANDIDATES: dict[tuple[Kernel, int], list[Config]] = {
    ("forward", 64): [
        *configs("tma", (128, 128, 8, 2), (128, 64, 4, 3)),
        *configs("pointer", (128, 64, 4, 3), (128, 128, 8, 3)),
        *configs("tma", (64, 128, 4, 2), (64, 64, 4, 3), (64, 128, 4, 3)),
    ],
    ("forward", 128): [
        *configs("tma", (128, 128, 8, 2), (128, 64, 8, 3)),
        *configs("pointer", (128, 64, 8, 3), (128, 128, 8, 2)),
        *configs("tma", (128, 64, 4, 2), (128, 64, 4, 3), (128, 32, 4, 3), (64, 64, 4, 3)),
        *configs("pointer", (128, 64, 4, 2)),
    ],
    ("forward", 256): [
        *configs("tma", (128, 64, 8, 2), (128, 32, 8, 3), (64, 64, 4, 2), (64, 32, 4, 3)),
        *configs("pointer", (128, 32, 8, 2), (64, 32, 4, 3)),
    ],
    ("dkdv", 64): [
        *configs("tma", (64, 128, 8, 3), (64, 128, 8, 2), (64, 64, 4, 3)),
        *configs("pointer", (64, 128, 8, 3)),
        *configs("tma", (128, 64, 8, 2), (32, 128, 8, 3)),
    ],
    ("dkdv", 128): [
        *configs("tma", (64, 128, 8, 2), (64, 128, 8, 3)),
        *configs("pointer", (64, 128, 8, 3), (32, 128, 8, 2), (64, 128, 8, 2)),
        *configs("tma", (32, 128, 8, 3), (64, 64, 4, 2)),
    ],
    ("dkdv", 256): [
        *configs("tma", (64, 128, 8, 1), (32, 128, 8, 2), (64, 64, 4, 1), split=True),
        *configs("tma", (32, 64, 8, 2)),
        *configs("pointer", (32, 128, 8, 1), (64, 128, 8, 1), split=True),
    ],
    ("dq", 64): [
        *configs("tma", (128, 128, 8, 2), (128, 64, 4, 3), (128, 64, 8, 3)),
        *configs("pointer", (128, 64, 8, 3), (128, 128, 8, 2)),
        *configs("tma", (64, 128, 4, 2)),
    ],
    ("dq", 128): [
        *configs("tma", (128, 64, 8, 3), (128, 64, 8, 2)),
        *configs("pointer", (128, 64, 8, 3)),
        *configs("tma", (128, 128, 8, 1), (64, 64, 4, 2), (128, 32, 8, 3)),
    ],
    ("dq", 256): [
        *configs("tma", (128, 32, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2)),
        *configs("pointer", (128, 32, 8, 2)),
        *configs("tma", (128, 64, 8, 1)),
    ],
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate for one kernel at one head dim."""

    kernel: Kernel
    d: int
    config: Config

    def __str__(self) -> str:
        c = self.config
        tile = f"{c.loads:8}{c.block_m:4} x{c.block_n:4}  {c.warps} warps {c.stages} stages"
        return f"{self.kernel:8}d{self.d:<4} {tile}{' split' if c.split else ''}"

    def dumps(self) -> str:
        """As JSON, to hand to another process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def loads(cls, text: str) -> Trial:
        """The inverse of `dumps`."""
        fields = json.loads(text)
        return cls(fields["kernel"], fields["d"], Config(**fields["config"]))


def relative_errors(problem: Problem, device: torch.device, trial: Trial) -> list[tuple[float, float]]:
    """Of out, dq, dk and dv, against float32: the candidate's error, and that of the textbook in the same dtype."""
    inputs = problem.inputs(device, requires_grad=True)
    exact = [t.detach().float().requires_grad_() for t in inputs[:3]]
    sides = []
    for call, (q, k, v) in (
        (variant("naive").attention, exact),
        (lambda *qkv, mask: attention(*qkv, mask=mask, configs={trial.kernel: trial.config}), inputs[:3]),
        (variant("naive").attention, inputs[:3]),
    ):
        out = call(q, k, v, mask=problem.mask)
        gradients = () if trial.kernel == "forward" else torch.autograd.grad(out, (q, k, v), inputs.dout.to(out.dtype))
        sides.append([t.detach().double() for t in (out, *gradients)])
    truth, ours, theirs = sides
    return [
        (float((a - t).norm() / t.norm()), float((b - t).norm() / t.norm()))
        for t, a, b in zip(truth, ours, theirs, strict=True)
    ]


def screen(trial: Trial, device: torch.device, dtype: Dtype, width: int, masks: Sequence[Mask], s: int) -> str | None:
    """Compile a candidate, as it is timed and for ragged sizes, and check it: why it is out, or None."""
    for mask in masks:
        even = Problem(b=1, hq=width // trial.d, sq=s, d=trial.d, dtype=dtype, mask=mask)
        ragged = dataclasses.replace(even, b=2, hq=2, hkv=1, sq=s - 51, skv=s - 13)
        for problem in (even, ragged):
            errors = relative_errors(problem, device, trial)
            for name, (ours, theirs) in zip(("out", "dq", "dk", "dv"), errors, strict=False):
                # both round P and the result alike: an error that is not about the same is a wrong kernel
                if not ours <= 1.5 * theirs + 1e-6:
                    return f"wrong: {name} of {problem.name} is off by {ours:.1e}, the textbook by {theirs:.1e}"
    return None


def screen_apart(trial: Trial, arguments: argparse.Namespace, deadline: float) -> str | None:
    """`screen` in a process of its own."""
    seconds = min(SCREEN_SECONDS, deadline - time.monotonic())
    if seconds <= 0:
        return "not reached in time"
    command = [sys.executable, "-m", "attnkit.tune", "triton_flash", "--screen", trial.dumps()]
    command += ["--dtype", arguments.dtype, "--width", str(arguments.width), "--mask", ",".join(arguments.mask)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer in {seconds:.0f} s"
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])["out"]
    lines = [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines() or [""]
    return f"exit {done.returncode}: {lines[-1][:160]}"


def screened(trials: Sequence[Trial], arguments: argparse.Namespace) -> dict[Trial, str | None]:
    """The verdict of each candidate, in at most half of the time."""
    started = time.monotonic()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        verdicts = pool.map(lambda t: screen_apart(t, arguments, started + arguments.seconds / 2), trials)
        out = dict(zip(trials, verdicts, strict=True))
    for trial, reason in out.items():
        if reason is not None:
            print(f"{trial}: {reason}", flush=True)
    right = sum(reason is None for reason in out.values())
    print(f"{right} of {len(trials)} candidates compile and are right, {time.monotonic() - started:.0f} s", flush=True)
    return out


def milliseconds(call: Callable[[], object]) -> float:
    """The median time of a call, L2 flushed before each."""
    import triton

    return triton.testing.do_bench(call, warmup=20, rep=80, return_mode="median")


def timed(problem: Problem, pass_: Pass, call: Callable[..., torch.Tensor]) -> float:
    """TFLOP/s of a pass of ``call``."""
    q, k, v, dout = problem.inputs("cuda", requires_grad=pass_ == "bwd")
    out = call(q, k, v, mask=problem.mask)
    if pass_ == "bwd":
        ms = milliseconds(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
    else:
        ms = milliseconds(lambda: call(q, k, v, mask=problem.mask))
    return problem.flops(pass_) / ms / 1e9


def show(label: str, rates: Iterable[float]) -> None:
    """One line of the table as it grows."""
    print(f"{label:60}" + "".join(f"{rate:9.1f}" for rate in rates), flush=True)


@dataclass(slots=True)
class Search:
    """The best tiles of the kernels of one pass, head dim and mask, and the record of all that was timed."""

    pass_: Pass
    problems: list[Problem]
    deadline: float
    record: list[dict[str, object]]
    chosen: dict[Kernel, Config] = field(default_factory=dict)

    def rates(self, call: Callable[..., torch.Tensor]) -> list[float]:
        """TFLOP/s of each problem."""
        return [timed(problem, self.pass_, call) for problem in self.problems]

    def rate(self, trial: Trial) -> list[float]:
        """TFLOP/s of each problem with a candidate, beside the tiles chosen so far."""
        configs = {**self.chosen, trial.kernel: trial.config}
        return self.rates(lambda q, k, v, mask: attention(q, k, v, mask=mask, configs=configs))

    def references(self, names: Sequence[str]) -> None:
        """Time other variants beside."""
        for name in names:
            try:
                rates = self.rates(variant(name).attention)
            except Exception as error:  # a reference that fails here must not end the search
                print(f"{name}: {type(error).__name__}: {str(error)[:120]}", flush=True)
                continue
            show(name, rates)
            self.note(reference=name, tflops=rates)

    def choose(self, trials: Sequence[Trial]) -> list[str]:
        """Time the candidates of one kernel, the best few in turn; rows for the table."""
        scores: dict[Trial, list[float]] = {}
        for trial in trials:
            if time.monotonic() > self.deadline:
                print(f"time is up before {trial}", flush=True)
                break
            rates = self.rate(trial)
            show(str(trial), rates)
            self.note(trial=dataclasses.asdict(trial), tflops=rates)
            scores[trial] = [statistics.geometric_mean(rates)]
        ranked = sorted(scores, key=lambda trial: -scores[trial][0])
        for _, trial in itertools.product(range(ROUNDS), ranked[:FINALISTS]):
            if time.monotonic() < self.deadline:
                scores[trial].append(statistics.geometric_mean(self.rate(trial)))
        rows = []
        for loads in ("tma", "pointer"):
            of_kind = [trial for trial in ranked if (trial.config.loads == "pointer") == (loads == "pointer")]
            if not of_kind:
                continue
            best = max(of_kind, key=lambda trial: statistics.median(scores[trial]))
            self.note(best=dataclasses.asdict(best), loads=loads, rounds=scores[best])
            key = (best.kernel, "half", loads, max(64, padded(best.d)), *self.form(best.kernel))
            rows.append(f"{key!r}: {best.config!r},  # {statistics.median(scores[best]):.0f} TFLOP/s".replace("'", '"'))
        if ranked:
            winner = max(ranked[:FINALISTS], key=lambda trial: statistics.median(scores[trial]))
            self.chosen[winner.kernel] = winner.config
        return rows

    def form(self, kernel: Kernel) -> tuple[str, ...]:
        """What a row's key has behind the head dim: the form, if that is another than the usual one."""
        mask: Form = "causal" if self.problems[0].mask == "causal" else "full"
        forms = {form_here(mask, p.b * p.hq * p.sq, torch.device("cuda")) for p in self.problems}
        form = "few" if kernel == "forward" and forms == {"few"} else mask
        return () if form == "full" else (form,)

    def note(self, **result: object) -> None:
        """Keep a result."""
        self.record.append({"pass": self.pass_, "problems": [problem.name for problem in self.problems], **result})


def tune(arguments: argparse.Namespace, record: list[dict[str, object]]) -> list[str]:
    """Screen, time and choose. ``record`` grows on the way; rows for the table."""
    deadline = time.monotonic() + arguments.seconds
    groups = {
        (kernel, d): CANDIDATES[kernel, max(64, padded(d))]
        for d in arguments.d
        for pass_ in arguments.passes
        for kernel in KERNELS[pass_]
    }
    # first the first of every group, then the seconds, ...
    depth = max(map(len, groups.values()))
    trials = [Trial(*key, some[i]) for i in range(depth) for key, some in groups.items() if i < len(some)]
    verdicts = screened(trials, arguments)
    record.extend({"trial": dataclasses.asdict(t), "out": reason} for t, reason in verdicts.items() if reason)
    rows = []
    for d, mask, pass_ in itertools.product(arguments.d, arguments.mask, arguments.passes):
        problems = [
            Problem(
                b=max(1, arguments.tokens // s), hq=arguments.width // d, sq=s, d=d, dtype=arguments.dtype, mask=mask
            )
            for s in arguments.s
        ]
        show(f"\n{pass_} d{d} {mask}: TFLOP/s at s =", arguments.s)
        search = Search(pass_, problems, deadline, record)
        search.references(arguments.references)
        for kernel in KERNELS[pass_]:
            rows += search.choose([t for t in trials if (t.kernel, t.d) == (kernel, d) and verdicts[t] is None])
    return rows


def numbers(text: str) -> list[int]:
    """``64,128`` as a list."""
    return [int(part) for part in text.split(",")]


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of comma-separated names out of ``known``."""

    def parse(text: str) -> list[str]:
        unknown = set(text.split(",")) - set(known)
        if unknown:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
        return text.split(",")

    return parse


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(prog="python -m attnkit.tune", description=(__doc__ or "").split("\n\n")[0])
    parse.add_argument("variant", choices=["triton_flash"])
    parse.add_argument("--passes", type=names(list(KERNELS)), default=["fwd", "bwd"], help="fwd,bwd")
    parse.add_argument("--d", type=numbers, default=[128, 64, 256], help="head dims; 128,64,256")
    parse.add_argument("--mask", type=names(["full", "causal"]), default=["full", "causal"], help="full,causal")
    parse.add_argument("--s", type=numbers, default=[16384, 2048], help="sequence lengths; 16384,2048")
    parse.add_argument("--tokens", type=int, default=16384, help="batch times sequence")
    parse.add_argument("--width", type=int, default=2048, help="heads times head dim")
    parse.add_argument("--dtype", choices=[dtype for dtype in TRAINED if dtype != "fp32"], default="bf16")
    references = names([entry.name for entry in TABLE])
    parse.add_argument("--references", type=references, default=["sdpa_cudnn", "flex"], help="sdpa_cudnn,flex")
    parse.add_argument("--seconds", type=float, default=480.0, help="time limit; half of it for screening")
    jobs = max(1, (os.cpu_count() or 2) - 2)
    parse.add_argument("--jobs", type=int, default=jobs, help="candidates screened at a time")
    parse.add_argument("--out", type=Path, help="write every result there, as JSON")
    parse.add_argument("--screen", help=argparse.SUPPRESS)
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    arguments = parser().parse_args(argv)
    if not torch.cuda.is_available():
        print("attnkit.tune needs a CUDA device and found none", file=sys.stderr)
        return 2
    if arguments.screen is not None:
        trial = Trial.loads(arguments.screen)
        out = screen(trial, torch.device("cuda"), arguments.dtype, arguments.width, arguments.mask, 1024)
        print(json.dumps({"out": out}))
        return 0
    record: list[dict[str, object]] = []
    try:
        rows = tune(arguments, record)
    finally:
        if arguments.out is not None:
            gpu = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
            arguments.out.write_text(json.dumps({**gpu, "record": record}, indent=1))
    arch = family(torch.device("cuda"))
    print(f"\nrows for TABLE[{arch}] in variants/triton_flash_tiles.py:", *rows, sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
