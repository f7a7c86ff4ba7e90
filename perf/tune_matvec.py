"""Find the fastest forms of the matrix-vector kernels on this GPU: ``python -m perf.tune_matvec --out tune.json``.

Each candidate is first compiled and checked against float64 in a process of its own, many at a time: one that hangs,
crashes, is wrong or is not the same twice is set aside with its reason and harms no other. The rest are timed on
Llama-2-7B's five weights by perfgate's clock (cold L2, CUDA graph) beside torch's own product, and the best few of each
once more in turn. Numbers are bytes of weight a second, and their share of the read bandwidth measured in this run.
What it prints last is what TABLE in attnkit/products/matvec_tiles.py wants to know.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from attnkit.agreement import agreement
from attnkit.products.cuda_matvec import explains, matvec, rejects
from attnkit.products.matvec_tiles import Config, Weights
from attnkit.tune import names
from perf.search import add_options, apart, run, screened
from perfgate.clock import Budget, Clock
from perfgate.cuda import CudaClock
from perfgate.gpu import ceilings, use_one_stream

SHAPES = {
    "qkv": (12288, 4096),
    "o": (4096, 4096),
    "gate_up": (22016, 4096),
    "down": (4096, 11008),
    "head": (32000, 4096),
}
"""Weights [n, k] of Llama-2-7B."""
FINALISTS = 2
ROUNDS = 2
SETS_BYTES = 6e9
"""What the weights of one shape may fill, several times the L2 in any case."""

# best guesses first: under a time limit the end of the list is not reached. What has been tried and was far behind is
# not here: less than 48 KiB on its way in an SM, and stages of which a warp has fewer than two steps
CANDIDATES = [
    Config("bulk", 8, 16, 6),
    Config("bulk", 8, 16, 6, fixed=True),
    Config("bulk", 8, 16, 5, overlap=True, fixed=True),
    Config("bulk", 16, 32, 5, fixed=True),
    Config("bulk", 8, 32, 2, overlap=True, fixed=True),
    Config("bulk", 8, 16, 9, fixed=True),
    Config("bulk", 4, 16, 6, fixed=True),
    Config("bulk", 4, 16, 5, overlap=True, fixed=True),
    Config("registers", 8, 2, 2, blocks=2, fixed=True),
    Config("bulk", 8, 16, 5, overlap=True),
    Config("bulk", 8, 32, 3),
    Config("bulk", 8, 16, 3, blocks=2),
    Config("bulk", 4, 8, 6, blocks=2),
    Config("registers", 8, 2, 2, blocks=2),
    Config("bulk", 4, 16, 5, overlap=True),
    Config("bulk", 8, 32, 2, overlap=True),
    Config("bulk", 8, 16, 9),
    Config("bulk", 16, 32, 5),
    Config("bulk", 4, 8, 5, blocks=2, overlap=True),
    Config("bulk", 4, 16, 6),
]


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate for one kind of weights."""

    weights: Weights
    config: Config

    def __str__(self) -> str:
        c = self.config
        text = f"{self.weights:5} {c.design:9} {c.warps:2} warps {c.span:2} x {c.depth:2} {c.blocks} a SM"
        return text + (" overlap" if c.overlap else "") + (" fixed" if c.fixed else "")

    def dumps(self) -> str:
        """As JSON, to hand to another process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def loads(cls, text: str) -> Trial:
        """The inverse of `dumps`."""
        fields = json.loads(text)
        return cls(fields["weights"], Config(**fields["config"]))


Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def operands(weights: Weights, m: int, n: int, k: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Operands:
    """x ``[m, k]``, weight ``[n, k]`` and its scale, such that results are about one.

    No two rows have one scale: another's is seen.
    """
    make = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(m, k, generator=make, device="cuda").to(dtype)
    if weights == "int8":
        weight = torch.randint(-127, 128, (n, k), generator=make, device="cuda", dtype=torch.int8)
        scale = torch.rand(n, generator=make, device="cuda") + 0.5
        return x, weight, scale * (k**-0.5 / 73)
    return x, torch.randn(n, k, generator=make, device="cuda", dtype=dtype) * k**-0.5, None


def wrong(trial: Trial, m: int, n: int, k: int, dtype: torch.dtype) -> str | None:
    """What is wrong with a candidate's result, or None."""
    x, weight, scale = operands(trial.weights, m, n, k, dtype=dtype)
    if reason := rejects(x, weight, scale, config=trial.config):
        return None if "shared memory" in reason or "at most" in reason else reason  # it is for fewer rows of x
    out, again = (matvec(x, weight, scale, config=trial.config) for _ in range(2))
    where = f"{m} rows of x, weight {n} x {k}, {dtype}"
    found = agreement(out, x, weight, scale, explained=explains(x, weight, scale, config=trial.config))
    if found.wrong:
        return f"wrong: {found.wrong} elements, off by up to {found.largest:.1f} times what rounding explains; {where}"
    return None if torch.equal(out, again) else f"not the same twice; {where}"


def hasty(trial: Trial) -> str | None:
    """Whether a chain of products, each of the one before, comes out otherwise where kernels overlap."""
    x, weight, scale = operands(trial.weights, 1, 4096, 4096)
    plain = dataclasses.replace(trial.config, overlap=False)

    def chain(config: Config) -> torch.Tensor:
        out = x
        for _ in range(24):
            out = matvec(out, weight, scale, config=config)
        return out

    truth = chain(plain)
    for _ in range(50):
        if not torch.equal(chain(trial.config), truth):
            return "reads x before it is there"
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = chain(trial.config)
    for _ in range(50):
        graph.replay()
        if not torch.equal(out, truth):
            return "reads x before it is there, in a graph"
    return None


def screen(trial: Trial) -> str | None:
    """Compile a candidate and check it: why it is out, or None."""
    for dtype in (torch.bfloat16, torch.float16):
        for m, n, k in [(1, 4096, 4096), (3, 1003, 1040), (8, 22016, 4096), (2, 70, 512), (1, 4096, 11008), (5, 9, 16)]:
            if reason := wrong(trial, m, n, k, dtype):
                return reason
    return hasty(trial) if trial.config.overlap else None


def screen_apart(trial: Trial) -> str | None:
    """`screen` in a process of its own."""
    return apart("perf.tune_matvec", "--screen", trial.dumps())


Call = Callable[..., torch.Tensor]


class Bench:
    """Times calls on one shape's weights, the same ones for all.

    Args:
        clock: What times.
        weights: Their kind.
        shape: ``(n, k)``.
        m: Rows of x.
    """

    def __init__(self, clock: Clock, weights: Weights, shape: tuple[int, int], m: int) -> None:
        n, k = shape
        self.bytes = n * k * (1 if weights == "int8" else 2)
        self._clock = clock
        sets = int(max(4, min(32, SETS_BYTES // self.bytes)))
        self._inputs: list[Operands] = [operands(weights, m, n, k, seed) for seed in range(sets)]

    def rate(self, call: Call) -> float:
        """Bytes of weight a second."""
        return self.bytes / self._clock.measure(call, self._inputs).median


def calls(config: Config) -> Call:
    """A product by one form."""
    return lambda x, weight, scale: matvec(x, weight, scale, config=config)


def linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """torch's own product."""
    return F.linear(x, weight)


def show(label: str, rate: float, read: float) -> None:
    """One line as it is found."""
    print(f"    {label:58}{rate / 1e12:7.3f} TB/s {rate / read:6.1%}", flush=True)


def tune(arguments: argparse.Namespace, record: list[dict[str, Any]]) -> None:
    """Screen, time and choose; ``record`` grows on the way."""
    trials = [Trial(w, config) for config in CANDIDATES for w in arguments.weights if w == "int8" or not config.fixed]
    verdicts = screened(trials, screen_apart, arguments.jobs)
    record.extend({"trial": dataclasses.asdict(t), "out": reason} for t, reason in verdicts.items() if reason)
    use_one_stream()
    clock = CudaClock(Budget(half_width=0.005, max_seconds=0.1, min_samples=10, warmup_seconds=0.03))
    read = ceilings(clock)["read_bytes_per_second"]
    print(f"read bandwidth: {read / 1e12:.3f} TB/s", flush=True)
    record.append({"read_bytes_per_second": read})
    best: list[tuple[str, Weights, Trial, float]] = []
    started, parts = time.monotonic(), len(arguments.weights) * len(arguments.shapes)
    for i, weights in enumerate(arguments.weights):
        for j, name in enumerate(arguments.shapes, 1):
            # every part has its share, so that the last one is not the one to go short
            deadline = started + arguments.seconds * (i * len(arguments.shapes) + j) / parts
            print(f"{weights} {name} {SHAPES[name]}", flush=True)
            bench = Bench(clock, weights, SHAPES[name], arguments.rows)
            if weights == "half":
                rate = bench.rate(linear)
                show("torch.nn.functional.linear", rate, read)
                record.append({"reference": "linear", "shape": name, "bytes_per_second": rate})
            rates: dict[Trial, list[float]] = {}
            for trial in turns([t for t in trials if t.weights == weights and verdicts[t] is None], rates):
                if time.monotonic() > deadline:
                    print("time is up", flush=True)
                    break
                try:
                    rate = bench.rate(calls(trial.config))
                except Exception as error:  # one that cannot be timed must not end the search
                    print(f"    {trial}: {type(error).__name__}: {str(error)[:120]}", flush=True)
                    continue
                show(str(trial), rate, read)
                rates.setdefault(trial, []).append(rate)
                entry = {"trial": dataclasses.asdict(trial), "shape": name, "rows": arguments.rows}
                record.append({**entry, "bytes_per_second": rate})
            for kind in (False, True):
                of_kind = [t for t in rates if t.config.overlap == kind]
                if of_kind:
                    winner = max(of_kind, key=lambda t: statistics.median(rates[t]))
                    best.append((name, weights, winner, statistics.median(rates[winner])))
    print("\nbest, without overlap and with it:")
    for name, _, trial, rate in best:
        show(f"{name:8}{trial}", rate, read)
        record.append({"best": dataclasses.asdict(trial), "shape": name, "bytes_per_second": rate})
    for weights in arguments.weights:
        for kind in (False, True):
            shares = [rate / read for _, w, trial, rate in best if (w, trial.config.overlap) == (weights, kind)]
            if shares:
                mean = statistics.geometric_mean(shares)
                print(f"{weights}{' overlap' if kind else '':8}: worst {min(shares):.1%}, geometric mean {mean:.1%}")


def turns(trials: Sequence[Trial], rates: dict[Trial, list[float]]) -> Iterator[Trial]:
    """All candidates, then the best few of either launch in turn."""
    yield from trials
    for _ in range(ROUNDS):
        for kind in (False, True):
            of_kind = [t for t in rates if t.config.overlap == kind]
            yield from sorted(of_kind, key=lambda t: -rates[t][0])[:FINALISTS]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(prog="python -m perf.tune_matvec", description=(__doc__ or "").split("\n\n")[0])
    parse.add_argument("--weights", type=names(["half", "int8"]), default=["half", "int8"], help="half,int8")
    parse.add_argument("--shapes", type=names(list(SHAPES)), default=list(SHAPES), help=",".join(SHAPES))
    parse.add_argument("--rows", type=int, default=1, help="rows of x, 1 to 8")
    add_options(parse, seconds=110.0)
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    arguments = parser().parse_args(argv)
    return run("perf.tune_matvec", arguments, lambda text: screen(Trial.loads(text)), partial(tune, arguments))


if __name__ == "__main__":
    raise SystemExit(main())
