"""Fuzz every variant with thousands of problems, in several processes: ``python -m tests.fuzz``.

The exit code is 1 where a variant is wrong, where errors of ours are over their limit in a row of 100 tensors or more,
or where the time was over before all problems were computed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from attnkit import testing
from attnkit.variants import TABLE
from tests.fuzz import page, shares, trial
from tests.fuzz.draw import Share
from tests.fuzz.summary import commit, environment, summary

# without a GPU kernels are interpreted: as many as take a minute or two
GPU, CPU = {"problems": 20_000, "longest": 600}, {"problems": 300, "longest": 48}
OF_A_PERCENTILE = 100
"""Errors of which one in a hundred may be larger: of fewer the 99th percentile is the largest, which is chance."""


def another(file: Path, now: dict[str, Any]) -> str | None:
    """Say in what a run that began differs from one that is to go on with it; None if in nothing."""
    try:
        then = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"expected {file}, which a run leaves, got {type(error).__name__}"
    differs = [f"{name} was {then.get(name)}, is {value}" for name, value in now.items() if then.get(name) != value]
    return "; ".join(differs) or None


def main(arguments: list[str]) -> int:
    """Run the shares, write the JSON, and print counts, errors and failures."""
    gpu = torch.cuda.is_available()
    default, names = GPU if gpu else CPU, [way.name for way in TABLE]
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--problems", type=int, default=default["problems"], metavar="N", help="of all processes")
    parser.add_argument("--longest", type=int, default=default["longest"], metavar="N", help="bound of sq and skv")
    parser.add_argument("--processes", type=int, default=min(16, len(os.sched_getaffinity(0))), metavar="N")
    parser.add_argument(
        "--seconds", type=float, default=420.0, help="when the last problems begin; nothing is compiled in the last 90"
    )
    parser.add_argument("--seed", type=int, default=0, help="another one draws other problems")
    parser.add_argument("--variants", default=",".join(names), metavar="A,B", help="these alone")
    parser.add_argument("--resume", action="store_true", help="go on where the time of an earlier run was over")
    parser.add_argument("--commit", help="of the sources, where they are in no repository")
    parser.add_argument("--out", type=Path, default=Path(".perfgate/fuzz.json"), metavar="FILE")
    chosen = parser.parse_args(arguments)
    if min(chosen.problems, chosen.longest, chosen.processes) < 1:
        parser.error("--problems, --longest and --processes must be at least 1")
    if not 0 < chosen.seconds < math.inf:
        parser.error(f"--seconds must be finite and positive, got {chosen.seconds:g}")
    ways = tuple(chosen.variants.split(","))
    if unknown := [name for name in ways if name not in names]:
        parser.error(f"--variants must be of {', '.join(names)}, got {', '.join(map(repr, unknown))}")
    # what processes say goes into a folder of the file's name without its ending
    if chosen.out.is_dir() or not chosen.out.suffix:
        parser.error(f"--out must be a file with an ending, .perfgate/fuzz.json, got {chosen.out}")
    dims = testing.HEAD_DIMS if gpu else testing.HEAD_DIMS[:-2]

    started = time.perf_counter()
    parts = [
        Share(
            seed=chosen.seed,
            index=index,
            processes=chosen.processes,
            problems=-(-chosen.problems // chosen.processes),
            longest=chosen.longest,
            head_dims=dims,
            variants=ways,
        )
        for index in range(chosen.processes)
    ]
    asked = {name: getattr(chosen, name) for name in ("problems", "longest", "processes", "seed")}
    asked |= {"draws": trial.DRAWS, "enough": trial.ENOUGH, "device": "cuda" if gpu else "cpu"}
    sources, folder = chosen.commit or commit(), chosen.out.with_suffix("")
    began = {**asked, "variants": list(ways), "commit": sources, "environment": environment()}
    if chosen.resume:
        if reason := another(folder / shares.BEGAN, began):
            parser.error(f"--resume goes on with the same run: {reason}")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / shares.BEGAN).write_text(json.dumps(began), encoding="utf-8")
    records = shares.run(parts, chosen.seconds, folder, resume=chosen.resume)
    found = summary(records, sources, began["environment"], **asked)
    chosen.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(page.page(found))
    seconds = time.perf_counter() - started
    print(f"{found['problems']} problems and {len(found['failures'])} failures in {seconds:.0f} s: {chosen.out}")
    over = any(row["flagged"] and row["tensors"] >= OF_A_PERCENTILE for row in found["errors"])
    return 1 if found["failures"] or over or found["problems"] < chosen.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
