"""What came of a long fuzz as JSON: where it ran, how many problems, what failed, and how large errors are."""

from __future__ import annotations

import json
import math
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import perfgate.environment
import perfgate.gpu
from attnkit.variants import TABLE
from tests.fuzz import shares

__all__ = ["LIMITS", "OURS", "commit", "environment", "of_folder", "summary"]

OURS = ("triton_unfused", "triton_flash", "triton_fa1", "triton_splitkv", "triton_paged")
LIMITS = {"fwd": 1.2, "bwd": 1.5}
"""What the 99th percentile of ours may be."""


def of_folder(folder: Path) -> dict[str, Any]:
    """Return what a run left in the folder of its shares, also if it was killed."""
    began = json.loads((folder / shares.BEGAN).read_text(encoding="utf-8"))
    run = {name: value for name, value in began.items() if name not in ("variants", "commit", "environment")}
    return summary(shares.left(folder, began["processes"]), began["commit"], began["environment"], **run)


def summary(
    records: Sequence[dict[str, Any]], commit: str | None, environment: Mapping[str, Any], **run: Any
) -> dict[str, Any]:
    """Return all of it; `run` is what was asked for, `commit` of which sources.

    Out is of forward, whichever pass computed it; all else of backward.
    """
    done = [record for record in records if "failures" in record]
    counts = Counter((record["variant"], record["pass"]) for record in done)
    failed = Counter((record["variant"], record["pass"]) for record in done if record["failures"])
    order = {way.name: n for n, way in enumerate(TABLE)}
    never = [way for way in TABLE if way.name not in {variant for variant, _ in counts}]
    return {
        "run": run,
        "commit": commit,
        "environment": dict(environment),
        "absent": {way.name: reason for way in never if (reason := way.absent())},
        "problems": len(done),
        "drawn": len({record["problem"] for record in done}),
        "counts": [
            {"variant": variant, "pass": pass_, "problems": counts[variant, pass_], "failed": failed[variant, pass_]}
            for variant, pass_ in sorted(counts, key=lambda key: (order[key[0]], key[1]))
        ],
        "failures": [
            {key: record[key] for key in ("variant", "pass", "problem", "seed", "failures")}
            for record in done
            if record["failures"]
        ],
        "errors": sorted(errors(done), key=lambda row: (order[row["variant"]], row["dtype"], row["pass"] != "fwd")),
    }


def errors(done: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each variant, dtype and direction; trials that failed for what is not a number have no part."""
    found: dict[tuple[str, str, str], list[tuple[float, float | None, dict[str, Any], str]]] = defaultdict(list)
    for record in done:
        for name, (ratio, plain) in record["ratios"].items():
            tensor = name.split()[0]
            key = record["variant"], record["dtype"], "fwd" if tensor == "out" else "bwd"
            if math.isfinite(ratio):
                found[key].append((ratio, plain, record, tensor))
    rows = []
    for (variant, dtype, direction), samples in found.items():
        samples.sort(key=lambda sample: sample[0])
        plain = sorted(sample[1] for sample in samples if sample[1] is not None)
        p99, (largest, _, worst, tensor) = percentile([sample[0] for sample in samples], 0.99), samples[-1]
        rows.append(
            {
                "variant": variant,
                "dtype": dtype,
                "pass": direction,
                "tensors": len(samples),
                "plain_median": percentile(plain, 0.5) if plain else None,
                "plain_p99": percentile(plain, 0.99) if plain else None,
                "p99": p99,
                "max": largest,
                "worst": {"tensor": tensor, "problem": worst["problem"], "seed": worst["seed"], "pass": worst["pass"]},
                "flagged": variant in OURS and p99 > LIMITS[direction],
            }
        )
    return rows


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest of these numbers that so many of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def environment() -> dict[str, Any]:
    """Return the device and the software, without what names one machine."""
    if torch.cuda.is_available():
        found = perfgate.gpu.environment()
    else:
        found = perfgate.environment.host({"torch": torch.__version__})
    return {"device": found.device, "versions": dict(found.versions)}


def commit() -> str | None:
    """Return the commit of the sources, with ``+`` where they were changed since; None outside of a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return None
    status = [*git, "status", "--porcelain", "--untracked-files=no"]
    changed = subprocess.run(status, capture_output=True, text=True, check=False).stdout.strip()
    return head.stdout.strip() + ("+" if changed else "")
