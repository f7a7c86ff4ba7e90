"""The long fuzz as a page in Markdown: ``python -m tests.fuzz.page FILE > docs/parity.md``.

In place of the file that a run writes in the end, fuzz.json, the folder that it fills on the way will do:
fuzz/ beside it, of a run that was killed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.summary import LIMITS, OURS, of_folder

__all__ = ["page"]

HEAD = """\
# Do the variants compute attention?

`nox -s fuzz` draws problems from the strategy that the tests draw from (`attnkit.testing.problems`) and puts each to
every variant that does not reject it, forward alone and with its gradients; those that compile for each problem get
few. What is wrong by the rule of `attnkit.parity` is a failure, and so is what raises or ends its process.
"""
ERRORS = """\
## Errors

The largest error of a tensor, over that of the textbook computation in the same dtype (`naive`), for out in the rows of
fwd and for each gradient in those of bwd. `median` and `plain p99` are of this number. Naive may happen to be exact,
as with a single key, and then it is no yardstick: in `p99` and `max` the error of rounding the truth once, or what sums
in float32 leave open (`oracle.uncertainty`), counts where that is larger; in float32 it is larger nearly always. For
dq, dk and dsink what a backward inherits from a rounded out counts as naive's error in all four. The largest of few
errors is chance: a problem whose out has fewer than {enough} numbers is drawn up to {draws} times, and its errors are
the largest of all draws.
"""


def page(found: dict[str, Any]) -> str:
    """Return the whole document."""
    run, versions = found["run"], found["environment"]["versions"]
    software = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    lines = [
        HEAD,
        f"On **{found['environment']['device']}** ({software})"
        + (f" at commit {found['commit']}" if found["commit"] else "")
        + f", seed {run['seed']}, queries and keys up to {run['longest']}:",
        "",
        f"**{found['problems']} problems, {len(found['failures'])} failures.** {found['drawn']} different problems "
        "were drawn; one that two variants compute, or one variant in both passes, counts twice.",
        "",
    ]
    if found["problems"] < run["problems"]:
        why = "the time was over before" if found["problems"] else "none was computed"
        lines += [f"{run['problems']} were asked for; {why}.", ""]
    lines += ["| variant | forward | forward and backward | failures |", "|---|--:|--:|--:|"]
    for variant in dict.fromkeys(row["variant"] for row in found["counts"]):
        rows = {row["pass"]: row for row in found["counts"] if row["variant"] == variant}
        numbers = [str(rows[pass_]["problems"]) if pass_ in rows else "" for pass_ in ("fwd", "fwd+bwd")]
        lines.append(f"| `{variant}` | {' | '.join(numbers)} | {sum(row['failed'] for row in rows.values())} |")
    lines += ["", *(f"- `{variant}`: {reason}" for variant, reason in found["absent"].items())]
    if found["failures"]:
        lines += ["", "## Failures", "", *(failure(entry, run["device"]) for entry in found["failures"])]
    if found["errors"]:
        lines += [
            "",
            ERRORS.format(draws=run["draws"], enough=run["enough"]),
            "| variant | dtype | pass | tensors | median | plain p99 | p99 | max | |",
            "|---|---|---|--:|--:|--:|--:|--:|---|",
        ]
    for row in found["errors"]:
        numbers = [row[name] for name in ("plain_median", "plain_p99", "p99", "max")]
        written = ["" if number is None else f"{number:.2f}" for number in numbers]
        flag = f"over {LIMITS[row['pass']]}" if row["flagged"] else ""
        cells = [row["dtype"], row["pass"], str(row["tensors"]), *written, flag]
        lines.append(f"| `{row['variant']}` | {' | '.join(cells)} |")
    lines += [
        "",
        held([row for row in found["errors"] if row["variant"] in OURS]),
        "",
        "This page is written by `nox -s fuzz` and `python -m tests.fuzz.page .perfgate/fuzz.json > docs/parity.md`.",
    ]
    return "\n".join(lines)


def held(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what is to be said of rows that are held to a limit."""
    limits = f"Our Triton variants are held to a p99 of {LIMITS['fwd']} forward and {LIMITS['bwd']} backward"
    if not rows:
        return f"{limits}; none of their tensors was compared."
    over = sum(row["flagged"] for row in rows)
    plain = sum((row["plain_p99"] or 0.0) > LIMITS[row["pass"]] for row in rows)
    return (
        f"{limits}; {over or 'none'} of their rows {'is' if over == 1 else 'are'} over it. "
        f"By the plain p99 there would be {plain or 'none'}."
    )


def failure(entry: dict[str, Any], device: str) -> str:
    """Return a failure with what computes it again."""
    arguments = f'variant("{entry["variant"]}"), {entry["problem"]}, "{device}", "{entry["pass"]}", {entry["seed"]}'
    return f"- `{entry['variant']}`: {'; '.join(entry['failures'])}\n\n  ```text\n  parity({arguments})\n  ```"


def main(arguments: list[str]) -> None:
    """Print the page of a file or a folder."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.page", description=(__doc__ or "").split(":")[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="what python -m tests.fuzz wrote, or its folder")
    file = parser.parse_args(arguments).file
    try:
        text = page(of_folder(file) if file.is_dir() else json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"FILE must be what python -m tests.fuzz wrote, got {file} ({type(error).__name__}: {error})")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
