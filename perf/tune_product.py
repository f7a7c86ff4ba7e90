"""Find the fastest tiles of the Triton products on this GPU: ``python -m perf.tune_product --out tune.json``.

Each candidate is first compiled and checked against float64 in a process of its own, many at a time: one that does not
compile, hangs, crashes, is wrong or is not the same twice is set aside with its reason and harms no other. The rest are
timed on Llama-2-7B's weights and many rows of x by perfgate's clock (cold L2, CUDA graph), beside torch's product in
16 bits and its product of integers. ``dynamic`` has its x rounded within what is timed; what that costs alone has a
line of its own. What it prints last is what TABLE in attnkit/products/product_tiles.py wants to know.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from attnkit.agreement import agreement
from attnkit.products import torch_dynamic, triton_dynamic, triton_product
from attnkit.products.product_tiles import Kind, Tiles
from attnkit.tune import names
from perf.search import add_options, apart, run, screened
from perf.tune_matvec import SHAPES, operands
from perfgate.clock import Budget, Clock
from perfgate.cuda import CudaClock
from perfgate.gpu import use_one_stream

PROMPT = ("qkv", "o", "gate_up", "down")
"""The weights that all rows of a prompt meet."""
ROWS = (64, 128, 256, 512, 1024, 2048)
SETS_BYTES = 4e8
"""What the weights of one shape may fill, in 8 bits: several times the L2."""
LEAST_PROGRAMS = 48
"""Fewer leave most processors without work: such a form is not timed."""

# best guesses first: under a time limit the end of the list is not reached
CANDIDATES: dict[Kind, list[Tiles]] = {
    "dynamic": [
        Tiles(128, 128, 128, 4, 3, "async"),
        Tiles(128, 256, 128, 8, 4, "async"),
        Tiles(128, 128, 128, 8, 6, "async"),
        Tiles(256, 128, 128, 8, 4, "async"),
        Tiles(64, 128, 128, 4, 4, "async"),
        Tiles(128, 128, 128, 4, 6, "async"),
        Tiles(128, 64, 128, 4, 4, "async"),
        Tiles(64, 64, 128, 4, 6, "async"),
        Tiles(64, 32, 128, 4, 8, "async"),
        Tiles(128, 128, 128, 4, 3, "tma"),
        Tiles(128, 256, 128, 8, 4, "tma"),
        Tiles(128, 64, 128, 4, 4, "tma"),
        Tiles(64, 64, 256, 4, 3, "tma"),
        Tiles(128, 128, 128, 8, 4, "tma"),
        Tiles(256, 128, 128, 8, 4, "tma"),
        Tiles(64, 128, 128, 4, 4, "tma"),
        Tiles(64, 32, 256, 4, 4, "tma"),
        Tiles(128, 128, 256, 8, 3, "tma"),
        Tiles(64, 64, 128, 4, 4, "tma"),
        Tiles(128, 64, 256, 4, 3, "tma"),
        Tiles(64, 64, 256, 4, 4, "tma"),
        Tiles(64, 128, 256, 4, 3, "tma"),
        Tiles(64, 256, 128, 4, 3, "tma"),
        Tiles(128, 32, 256, 4, 4, "tma"),
        Tiles(128, 256, 128, 8, 3, "tma"),
        Tiles(128, 256, 64, 8, 4, "tma"),
        Tiles(128, 128, 128, 8, 3),
        Tiles(64, 64, 128, 4, 4),
    ],
    "int8": [
        Tiles(128, 128, 64, 8, 4, "tma", left=True),
        Tiles(128, 64, 64, 4, 4, "tma", left=True),
        Tiles(64, 128, 64, 4, 5, "tma", left=True),
        Tiles(256, 128, 64, 8, 3, "tma", left=True),
        Tiles(64, 64, 128, 4, 4, "tma", left=True),
        Tiles(128, 128, 64, 4, 3, "tma", left=True),
        Tiles(128, 128, 128, 8, 3, "tma", left=True),
        Tiles(128, 64, 128, 4, 3, "tma", left=True),
        Tiles(128, 256, 64, 8, 3, "tma", left=True),
        Tiles(64, 64, 64, 4, 6, "tma", left=True),
        Tiles(64, 128, 128, 4, 3, "tma", left=True),
        Tiles(256, 64, 64, 4, 3, "tma", left=True),
        Tiles(128, 128, 64, 8, 3, left=True),
        Tiles(128, 128, 64, 8, 3),
        Tiles(64, 128, 64, 4, 4),
    ],
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate for one kind of product."""

    kind: Kind
    form: Tiles

    def __str__(self) -> str:
        f = self.form
        text = f"{self.kind:7} {f.block_m:3} x {f.block_n:3} x {f.block_k:3}, {f.warps} warps, {f.stages} stages"
        return f"{text}, {f.loads}{', left' if f.left else ''}"

    def dumps(self) -> str:
        """As JSON, to hand to another process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def loads(cls, text: str) -> Trial:
        """The inverse of `dumps`."""
        fields = json.loads(text)
        return cls(fields["kind"], Tiles(**fields["form"]))

    def multiply(self, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The product in this form."""
        multiply = triton_dynamic.multiply if self.kind == "dynamic" else triton_product.multiply
        return multiply(x, weight, scale, form=self.form)

    def programs(self, m: int, n: int) -> int:
        """Tiles of the result."""
        return -(-m // self.form.block_m) * -(-n // self.form.block_n)


def on_steps(x: torch.Tensor) -> torch.Tensor:
    """x, moved to where rounding to int8 leaves it: what of its products is off then, no rounding of x explains."""
    steps, _ = torch_dynamic.rounded(x)
    return (steps / 64).to(x.dtype)


def screen(trial: Trial) -> str | None:
    """Compile a candidate and check it: why it is out, or None."""
    for dtype in (torch.bfloat16, torch.float16):
        for m, n, k in [(128, 4096, 4096), (129, 1003, 1040)] if dtype == torch.bfloat16 else [(300, 520, 4096)]:
            x, weight, scale = operands("int8", m, n, k, dtype=dtype)
            if scale is None:
                raise LookupError("int8 weights have a scale")
            x = on_steps(x) if trial.kind == "dynamic" else x
            out, again = (trial.multiply(x, weight, scale) for _ in range(2))
            where = f"{m} rows of x, weight {n} x {k}, {dtype}"
            found = agreement(out, x, weight, scale)
            if found.wrong:
                off = f"off by up to {found.largest:.1f} times what rounding explains"
                return f"wrong: {found.wrong} elements, {off}; {where}"
            if not torch.equal(out, again):
                return f"not the same twice; {where}"
    return None


def screen_apart(trial: Trial) -> str | None:
    """`screen` in a process of its own."""
    return apart("perf.tune_product", "--screen", trial.dumps())


Call = Callable[..., object]


class Bench:
    """Times calls on one shape's weights and so many rows of x, the same ones for all.

    Args:
        clock: What times.
        weights: int8 weights with their scales.
        m: Rows of x.
    """

    def __init__(self, clock: Clock, weights: Sequence[tuple[torch.Tensor, torch.Tensor]], m: int) -> None:
        weight = weights[0][0]
        n, k = weight.shape
        self.flops = 2.0 * m * n * k
        self._clock, self._weights = clock, weights
        make = torch.Generator(weight.device).manual_seed(m)
        self._x = torch.randn(m, k, generator=make, device=weight.device).bfloat16()

    def ours(self, trial: Trial) -> float:
        """Seconds of a candidate."""
        return self._clock.measure(trial.multiply, [(self._x, *pair) for pair in self._weights]).median

    def references(self) -> Iterator[tuple[str, Callable[[], float]]]:
        """What else is timed, by name."""
        steps, _ = torch_dynamic.rounded(self._x)
        half = [weight.bfloat16() for weight, _ in self._weights[:2]]
        inputs = [(self._x, weight) for weight in half]
        yield "torch.nn.functional.linear", lambda: self._clock.measure(F.linear, inputs).median
        integers = [(steps, weight.T) for weight, _ in self._weights]
        yield "torch._int_mm, of x that is rounded", lambda: self._clock.measure(torch._int_mm, integers).median
        rounding: Call = triton_dynamic.rounded
        yield "rounding of x alone", lambda: self._clock.measure(rounding, [(self._x,)]).median


def show(label: str, seconds: float, flops: float) -> None:
    """One line as it is found."""
    print(f"    {label:58}{seconds * 1e6:8.1f} us {flops / seconds / 1e12:7.1f} TFLOP/s", flush=True)


def timed(label: str, seconds: Callable[[], float], flops: float) -> float | None:
    """A time, shown; None for what cannot be timed, which must not end the search."""
    try:
        found = seconds()
    except Exception as error:
        print(f"    {label}: {type(error).__name__}: {str(error)[:120]}", flush=True)
        return None
    show(label, found, flops)
    return found


def tune(arguments: argparse.Namespace, record: list[dict[str, Any]]) -> None:
    """Screen, time and choose; ``record`` grows on the way."""
    trials = [Trial(kind, form) for kind in arguments.kinds for form in CANDIDATES[kind]]
    verdicts = screened(trials, screen_apart, arguments.jobs)
    record.extend({"trial": dataclasses.asdict(t), "out": reason} for t, reason in verdicts.items() if reason)
    right = [trial for trial in trials if verdicts[trial] is None]
    use_one_stream()
    clock = CudaClock(Budget(half_width=0.02, max_seconds=0.03, min_samples=5, warmup_seconds=0.01))
    best: list[tuple[int, str, Trial, float, float | None]] = []
    started, parts, part = time.monotonic(), len(arguments.shapes) * len(arguments.rows), 0
    for name in arguments.shapes:
        n, k = SHAPES[name]
        sets = int(max(4, min(24, SETS_BYTES // (n * k))))
        weights = [(w, s) for _, w, s in (operands("int8", 1, n, k, seed) for seed in range(sets)) if s is not None]
        for m in arguments.rows:
            part += 1
            # every part has its share, so that the last one is not the one to go short
            deadline = started + arguments.seconds * part / parts
            print(f"{name} {n} x {k}, {m} rows of x", flush=True)
            bench = Bench(clock, weights, m)
            torchs = None
            for label, seconds in bench.references():
                found = timed(label, seconds, bench.flops)
                torchs = torchs or found
                record.append({"reference": label, "shape": name, "rows": m, "seconds": found})
            times: dict[Trial, float] = {}
            for trial in turns([t for t in right if t.programs(m, n) >= LEAST_PROGRAMS and t.form.block_m < 2 * m]):
                if time.monotonic() > deadline:
                    print("time is up", flush=True)
                    break
                found = timed(str(trial), partial(bench.ours, trial), bench.flops)
                if found is not None:
                    times[trial] = found
                    entry = {"trial": dataclasses.asdict(trial), "shape": name, "rows": m}
                    record.append({**entry, "seconds": found})
            for kind in arguments.kinds:
                of_kind = [trial for trial in times if trial.kind == kind]
                if of_kind:
                    winner = min(of_kind, key=lambda trial: times[trial])
                    best.append((m, name, winner, times[winner], torchs))
                    record.append({"best": dataclasses.asdict(winner), "shape": name, "rows": m})
    for kind in arguments.kinds:
        print(f"\nbest of {kind}, as lines of TABLE:")
        for m, name, trial, seconds_, torchs in sorted(best, key=lambda line: line[:2]):
            if trial.kind == kind:
                beside = f", {torchs / seconds_:.2f} x torch in 16 bits" if torchs else ""
                print(
                    f"    ({m}, {SHAPES[name][0]}, {line_of(trial.form)}),  # {name}: {seconds_ * 1e6:.1f} us{beside}"
                )


def turns(trials: Sequence[Trial]) -> list[Trial]:
    """The first candidates of each kind, then the second ones: no kind is the one to go short."""
    place: dict[Kind, int] = {}
    order = []
    for trial in trials:
        place[trial.kind] = place.get(trial.kind, -1) + 1
        order.append(place[trial.kind])
    return [trial for _, trial in sorted(zip(order, trials, strict=True), key=lambda pair: pair[0])]


def line_of(form: Tiles) -> str:
    """A form as it is written in the table."""
    sizes = f"{form.block_m}, {form.block_n}, {form.block_k}, {form.warps}, {form.stages}"
    loads = f', "{form.loads}"' if form.loads != "pointer" else ""
    return f"Tiles({sizes}{loads}{', left=True' if form.left else ''})"


def counts(text: str) -> list[int]:
    """A parser of comma-separated numbers of rows."""
    return [int(part) for part in text.split(",")]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(prog="python -m perf.tune_product", description=(__doc__ or "").split("\n\n")[0])
    parse.add_argument("--kinds", type=names(list(CANDIDATES)), default=list(CANDIDATES), help=",".join(CANDIDATES))
    parse.add_argument("--shapes", type=names(PROMPT), default=list(PROMPT), help=",".join(PROMPT))
    parse.add_argument("--rows", type=counts, default=list(ROWS), help="rows of x, such as 128,512")
    add_options(parse, seconds=90.0)
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    arguments = parser().parse_args(argv)
    return run("perf.tune_product", arguments, lambda text: screen(Trial.loads(text)), partial(tune, arguments))


if __name__ == "__main__":
    raise SystemExit(main())
