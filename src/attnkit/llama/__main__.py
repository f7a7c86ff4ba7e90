"""Continue a text: ``python -m attnkit.llama FOLDER "Once upon a time"``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from attnkit.llama.config import Config
from attnkit.llama.ladder import BATCHED, LADDER, Model, Rung, build, rung
from attnkit.llama.sampling import Sampling
from attnkit.llama.text import Tokenizer, write
from attnkit.llama.weights import Weights

FASTEST = ("persistent", "batched", "matmul")
"""Rungs for one sequence of 16-bit weights, the fastest first; the first that can decode the model here does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    options = _parser().parse_args(argv)
    try:
        _run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"attnkit.llama: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    # what can be refused is refused before gigabytes are read
    sampling = Sampling(options.temperature, options.seed)
    if options.tokens < 1:
        raise ValueError(f"--tokens must be at least 1, got {options.tokens}")
    if not options.folder.is_dir():
        raise ValueError(f"there is no folder {str(options.folder)!r}: download the model, and give where it is")
    config = Config.from_folder(options.folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    taken = _rung(options.rung, config, device, dtype)
    tokenizer = Tokenizer.from_folder(options.folder)
    length = len(tokenizer.encode(options.prompt))
    if not 1 <= length <= config.positions:
        raise ValueError(f"the prompt must have 1 to {config.positions} tokens, the model's context, got {length}")
    # the last token is not read: it has no place in the context
    count = min(options.tokens, config.positions + 1 - length)
    decoder = build(
        taken,
        Model(Weights.from_folder(options.folder, device, dtype)),
        batch=1,
        capacity=length + count - 1,
        sampling=sampling,
    )
    pieces = write(decoder, tokenizer, options.prompt, count)
    print(next(pieces), end="", flush=True)
    begin = time.perf_counter()
    for piece in pieces:
        print(piece, end="", flush=True)
    seconds = time.perf_counter() - begin
    print()
    if steps := decoder.length - length:
        rate = f"{steps} tokens after the first in {seconds:.3g} s: {steps / seconds:.1f} tokens/s"
        print(f"{taken.name} on {device.type}, prompt of {length} tokens; {rate}", file=sys.stderr)


def _rung(name: str | None, config: Config, device: torch.device, dtype: torch.dtype) -> Rung:
    """Return the rung of that name, or else the fastest that can."""
    if name is None:
        return next(entry for entry in map(rung, FASTEST) if not entry.why_not(config, 1, device, dtype))
    taken = rung(name)
    if reason := taken.why_not(config, 1, device, dtype):
        raise ValueError(f"{name} cannot: {reason}")
    return taken


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m attnkit.llama", description="Continue a text with a Llama.")
    parser.add_argument("folder", type=Path, help="of Hugging Face: config.json, *.safetensors, tokenizer.json")
    parser.add_argument("prompt", help="what is continued")
    names = ", ".join(entry.name for entry in (*LADDER, BATCHED))
    parser.add_argument("--rung", help=f"one of {names}; unless given, the first of {', '.join(FASTEST)} that can")
    parser.add_argument("--tokens", type=int, default=128, help="after which it ends at the latest (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, takes the likeliest token")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at a temperature (%(default)s)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
