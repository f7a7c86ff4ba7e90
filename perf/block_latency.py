"""Latency of single requests to a block, rung by rung: ``python -m perf.block_latency --out latency.json``.

A request is one call and the wait for its result, timed on the host. All rungs of a shape are checked first. Then they
are asked in turn, over and over, so that what disturbs the host for a while disturbs them all: alone, and under the
same load, where requests come at a rate that keeps the standard block busy for a given share of its time, whether or
not the last one has been answered. What it prints is in microseconds, and by how much less than standard's.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from attnkit.problem import Dtype
from attnkit.variants import variant
from perf.blocks import RUNGS, Rung, Shape, error, graphed
from perfgate import environment, gpu
from perfgate.latency import LEAST, HostTime, Latency, Time, isolated, open_loop, poisson

WARM_UP = 20
ROUNDS = 5
"""Turns of each rung in each way of asking; its requests are shared between them. Under load each begins without a
queue, so the tails are a little shorter than those of a service that never rests."""

Request = Callable[[], None]


def asked(
    ladder: Mapping[Rung, Request], requests: int, load: float, clock: Time
) -> tuple[dict[Rung, tuple[Latency, Latency]], float]:
    """Ask all rungs in turn, alone and then under load: both latencies, and the rate, which the first of them sets."""
    alone: dict[Rung, list[float]] = {rung: [] for rung in ladder}
    loaded: dict[Rung, list[float]] = {rung: [] for rung in ladder}
    shares = [requests * (turn + 1) // ROUNDS - requests * turn // ROUNDS for turn in range(ROUNDS)]
    for share in shares:
        for rung, request in ladder.items():
            isolated(request, WARM_UP, clock)
            alone[rung] += isolated(request, share, clock)
    rate = load / statistics.fmean(next(iter(alone.values())))
    for turn, share in enumerate(shares):
        for rung, request in ladder.items():
            isolated(request, WARM_UP, clock)
            loaded[rung] += open_loop(request, poisson(rate, share, seed=turn), clock)
    return {rung: (Latency.of(alone[rung]), Latency.of(loaded[rung])) for rung in ladder}, rate


def ready(rung: Rung, shape: Shape, fast: str, device: torch.device) -> Request:
    """A rung's block, checked, as something to ask.

    Raises:
        ValueError: If its result is wrong.
    """
    block, call = graphed(rung, shape, device, fast)
    x = shape.x(device)
    off, may = error(block, call(x), x)
    if not off <= may:
        raise ValueError(f"{rung} is wrong at {shape.name}: off by {off:.2e}, and rounding explains {may:.2e}")

    def request() -> None:
        call(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return request


def climb(
    shape: Shape,
    rungs: Sequence[Rung],
    fast: str,
    requests: int,
    load: float,
    device: torch.device,
    clock: Time,
) -> list[dict[str, Any]]:
    """All rungs at one shape, the first of them the one that sets the load.

    Raises:
        ValueError: If a rung's result is wrong.
    """
    latencies, rate = asked({rung: ready(rung, shape, fast, device) for rung in rungs}, requests, load, clock)
    found: list[dict[str, Any]] = []
    for rung, both in latencies.items():
        for kind, latency, reference in zip(("isolated", "open loop"), both, latencies[rungs[0]], strict=True):
            lower = latency.reduction(reference)
            entry = {"shape": shape.name, "rung": rung, "kind": kind, "requests_per_second": rate}
            found.append({**entry, **dataclasses.asdict(latency), "reduction": lower})
            shown = "  ".join(f"{name} {getattr(latency, name) * 1e6:9.1f} us {-lower[name]:+7.1%}" for name in lower)
            print(f"{shape.name:26} {rung:12} {kind:9}  {shown}", flush=True)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def origin(device: torch.device) -> dict[str, Any]:
    """Where and when this is measured, and of which code."""
    here = gpu.environment() if device.type == "cuda" else environment.host({"torch": torch.__version__})
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    commit = asked.stdout.strip() or "unknown"
    return {"environment": here.to_json(), "commit": commit, "date": datetime.now(UTC).date().isoformat()}


def whole(text: str) -> list[int]:
    """Whole numbers of at least 1 between commas."""
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"expected whole numbers of at least 1, got {text}")
    return numbers


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(prog="python -m perf.block_latency", description=(__doc__ or "").split("\n\n")[0])
    parse.add_argument("--batches", type=whole, default=[1, 4, 16])
    parse.add_argument("--lengths", type=whole, default=[128, 512, 2048])
    parse.add_argument("--width", type=int, default=4096)
    parse.add_argument("--heads", type=int, default=32)
    parse.add_argument("--dtype", choices=["bf16", "fp16", "fp32"], default="bf16")
    parse.add_argument("--attention", help="the variant above standard: sdpa_cudnn on a GPU, sdpa_flash elsewhere")
    parse.add_argument("--requests", type=int, default=500, help="a rung, for each of the two ways of asking")
    parse.add_argument("--load", type=float, default=0.7, help="share of its time that standard is busy")
    parse.add_argument("--out", type=Path, help="write every result there, as JSON, after each shape")
    parse.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    return parse


def impossible(arguments: argparse.Namespace) -> str | None:
    """Why nothing can be measured so, whatever the attention and the shapes are."""
    width, heads, out = arguments.width, arguments.heads, arguments.out
    if not 0 < arguments.load < 1:
        return f"expected a load between 0 and 1, else requests pile up, got {arguments.load}"
    if arguments.requests < LEAST:
        return f"a P99 needs at least {LEAST} requests, got {arguments.requests}"
    if width < 1 or heads < 1 or width % heads:
        return f"expected heads that divide the width, got {heads} for {width}"
    if arguments.device == "cuda" and not torch.cuda.is_available():
        return "--device cuda needs a CUDA device and found none"
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        return f"--out must be a file in a folder that is there, got {out}"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    parse = parser()
    arguments = parse.parse_args(argv)
    if reason := impossible(arguments):
        parse.error(reason)
    here = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(here if arguments.device == "auto" else arguments.device)
    dtype: Dtype = arguments.dtype
    attention = arguments.attention or ("sdpa_cudnn" if device.type == "cuda" else "sdpa_flash")
    shapes = [
        Shape(b, s, arguments.width, arguments.heads, dtype) for b in arguments.batches for s in arguments.lengths
    ]
    try:
        fast = variant(attention)
    except ValueError as error:
        parse.error(str(error))
    for shape in shapes:
        if reason := fast.why_not(shape.problem, device, "fwd"):
            parse.error(f"{shape.name}: {attention} cannot: {reason}")
    # a graph is CUDA's, and the rungs above stand on it
    rungs = [rung for rung in RUNGS if device.type == "cuda" or rung in ("standard", "flash")]
    record: list[dict[str, Any]] = []
    for shape in shapes:
        try:
            with torch.inference_mode():
                record += climb(shape, rungs, attention, arguments.requests, arguments.load, device, HostTime())
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        if arguments.out is not None:  # whatever ends the run later, this shape is there
            beside = arguments.out.with_name(arguments.out.name + ".new")
            beside.write_text(
                json.dumps({"origin": origin(device), "attention": attention, "record": record}, indent=1)
            )
            beside.replace(arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
