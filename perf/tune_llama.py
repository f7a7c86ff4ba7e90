"""Which form of the fused decoder kernels is fastest on this GPU: `python -m perf.tune_llama`.

Each form decodes the same tokens of Llama-2-7B with drawn weights, one sequence, in a CUDA graph, timed by events
around them, in turn with the others. A form whose logits are not those of the first is left out and said. What is
fastest belongs into `FORMS` of attnkit/llama/fused.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from attnkit.llama import LLAMA_2_7B, Config, Decoder, Packed, Weights
from attnkit.llama.captured import Captured
from attnkit.llama.fused import Fused, Launch
from attnkit.llama.ladder import fastest_prefill
from attnkit.llama.sizes import Form

CONTEXT, STEPS, ROUNDS = 256, 32, 5
LAUNCHES: tuple[Launch, ...] = ("stages", "overlapped", "persistent")

Build = Callable[[Packed, Launch, Form], Decoder]
Timer = Callable[[Callable[[], None]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was found of a form: seconds a token, the median of rounds, or why there are none."""

    launch: Launch
    int8: bool
    form: Form
    seconds: float = 0.0
    why_not: str = ""


def forms(launch: Launch, int8: bool = False) -> Iterator[Form]:
    """What may be fastest: blocks of 8 or 16 warps, chunks of half to four kilobytes, rings that fit; x both ways."""
    for warps in (8, 16):
        for chunk in (512, 1024, 2048, 4096):
            # beside the next kernel's block there is room for half of a processor's shared memory
            half = 64 * 1024 // (2 * warps * chunk)
            depth = half if launch == "overlapped" else None
            if depth is None or depth >= 2:
                for fixed in (False, True) if int8 else (False,):
                    yield Form(warps, chunk, depth, fixed)


def build(weights: Packed, launch: Launch, form: Form) -> Decoder:
    """A decoder as the ladder has it, of another form."""
    device = weights.device
    capacity = CONTEXT + STEPS
    prefill = fastest_prefill(weights.config, 1, capacity, device, torch.bfloat16)
    return Captured(Fused(weights, 1, capacity, prefill=prefill, launch=launch, form=form))


def elapsed(call: Callable[[], None]) -> float:
    """Seconds between events around a call."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def search(weights: Packed, launches: tuple[Launch, ...], build: Build, elapsed: Timer) -> list[Row]:
    """Time every form of every launch, in turn."""
    prompt = torch.randint(0, weights.config.vocab, (1, CONTEXT), generator=torch.Generator().manual_seed(0))
    prompt = prompt.to(weights.device)
    rows: list[Row] = []
    timed: list[tuple[Launch, Form, Decoder, list[float]]] = []
    expected: torch.Tensor | None = None
    for launch in launches:
        for form in forms(launch, weights.int8):
            try:
                decoder = build(weights, launch, form)
            except (ValueError, RuntimeError) as error:
                rows.append(Row(launch=launch, int8=weights.int8, form=form, why_not=str(error).partition("\n")[0]))
                continue
            decoder.prefill(prompt)
            decoder.tokens[:, CONTEXT] = prompt[:, 0]
            decoder.step()
            expected = decoder.logits.clone() if expected is None else expected
            # the sums are the same but for their order, before they are rounded to bfloat16 for the next product
            if not (decoder.logits - expected).norm() <= 0.02 * expected.norm():
                rows.append(Row(launch=launch, int8=weights.int8, form=form, why_not="logits differ from the first's"))
                continue
            timed.append((launch, form, decoder, []))
    for _ in range(ROUNDS):
        for _, _, decoder, seconds in timed:
            seconds.append(elapsed(lambda decoder=decoder: again(decoder)) / STEPS)  # type: ignore[misc]
    for launch, form, _, seconds in timed:
        rows.append(Row(launch=launch, int8=weights.int8, form=form, seconds=statistics.median(seconds)))
    return rows


def again(decoder: Decoder) -> None:
    """Decode the same tokens once more."""
    decoder.rewind(CONTEXT)
    for _ in range(STEPS):
        decoder.step()


def report(rows: list[Row], config: Config) -> str:
    """A line a form, the fastest first; ``fixed`` is int8 weights times fixed-point activations."""
    lines = [f"{'launch':11} {'weights':7} {'warps':>5} {'chunk':>5} {'depth':>5} {'tokens/s':>9} {'TB/s':>6}"]
    for row in sorted(rows, key=lambda row: (row.int8, row.seconds or float("inf"))):
        weights = "fixed" if row.form.fixed else "int8" if row.int8 else "bf16"
        form = f"{row.launch:11} {weights:7} {row.form.warps:5} {row.form.chunk:5} "
        form += f"{row.form.depth or 'max':>5} "
        if row.why_not:
            lines.append(f"{form} {row.why_not}")
            continue
        moved = config.bytes_per_token(CONTEXT + (STEPS + 1) / 2, weight_bytes=1 if row.int8 else 2)
        lines.append(f"{form} {1 / row.seconds:9.1f} {moved / row.seconds / 1e12:6.3f}")
    return "\n".join(lines)


def main() -> None:
    """Search, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--launch", choices=LAUNCHES, action="append", help="only this one; may be given again")
    parser.add_argument("--weights", choices=["bf16", "int8"], help="only these")
    parser.add_argument("--out", type=Path, help="write what was found there, as JSON")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device")
    torch.cuda.set_stream(torch.cuda.Stream())  # one that can be captured: graphs and all else on the same
    rows: list[Row] = []
    for int8 in [name == "int8" for name in ("bf16", "int8") if arguments.weights in (None, name)]:
        weights = Packed.of(Weights.random(LLAMA_2_7B, "cuda"), int8=int8)
        rows += search(weights, tuple(arguments.launch or LAUNCHES), build, elapsed)
        print(report(rows, LLAMA_2_7B), flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
