"""The list of known bugs as a page in Markdown, with what was found in each environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.known_bugs.table import BUGS, OURS, Bug, known

__all__ = ["page"]

HEAD = """\
# Would bugs that others shipped be found here?

Each of these was in a library that people used. Its kind has a test that finds it in any variant, on problems that are
as small as the bug allows: `tests/attnkit/test_known_bugs.py`, and laws that were there before. Where an installed
library still has the bug, the test is expected to fail, with the issue. One that refuses ends such a test with an error
and not with something wrong, which is expected, too; a variant that cannot says so before.
"""
FOUND = (
    (
        "ptxas 12.8.93, the assembler of Triton 3.6, on Hopper",
        "Where one place in shared memory is read in two ways, the second way's descriptors come from a register that "
        "holds something else: dV of triton_flash was wrong for d above 128 and dv up to 32, or the GPU read where it "
        "may not. The same PTX is right from ptxas 12.9 and 13.0.",
        "the fuzz on an H200; wider blocks in `triton_flash_tiles.py`, and a test that reads the descriptors",
    ),
    (
        "Triton 3.6 on Hopper",
        "Two warp groups that share 64 rows, in float32 with 16 keys a tile, read past the end of shared memory.",
        "the fuzz on an H200, and compute-sanitizer; other tiles in `triton_flash_tiles.py`",
    ),
    (
        "torch 2.11, FlashAttention-2",
        "The backward of more than 2^31 sums of dq reads outside of its memory.",
        "bug 13's test; `sdpa_flash` refuses it",
    ),
    (
        "cuDNN 9.19",
        "More than 2^31 elements are computed wrong.",
        "bug 13's test, which is expected to fail",
    ),
    (
        "FlexAttention, torch 2.11",
        "Its kernel is not compiled for tensors whose strides need 64 bits: an index of 64 bits meets one of 32.",
        "bug 14's test, which is expected to fail",
    ),
    (
        "torch 2.11, varlen_attn",
        "A side of a window that reaches past the longest keys is taken for one without a bound, where queries are "
        "more than keys.",
        "the fuzz on an H200; `torch_varlen` refuses it",
    ),
    (
        "FlashAttention-3",
        "Of a cache in pages that are gathered, values are read as far as keys are wide where both fit into one tile: "
        "the columns of V behind d are lost.",
        "the fuzz on an H200; `flash_attn_3` refuses it",
    ),
    (
        "FlashAttention-4",
        "The gradients of d 128 with dv 64 are wrong on Hopper.",
        "the parity tests on an H200; `flash_attn_4` refuses it",
    ),
    (
        "Inductor, torch 2.11",
        "From its first compilation on torch's ptxas and not Triton's assembles every Triton kernel of the process, "
        "and what is kept on disk is kept by the version that was asked for first: code, speed and bugs of a kernel "
        "hang on what was compiled before it.",
        "listings of the same case in two runs on an H200; `perfgate.assembler` puts back what was changed",
    ),
    (
        "Inductor, torch 2.11",
        "Attention written with torch's operations and compiled has gradients that are not a number for one query in "
        "bfloat16 at a scale of -0.2, where the same operations uncompiled are right.",
        "the fuzz on an H200; a test in `test_parity.py`, which is expected to fail",
    ),
)
"""What was found here first: where, what, and by what it was found and what became of it."""
OF_BITS = 24
"""The bug of which a library is judged by its bits. What does not say that they were compared says nothing of it."""
UNCOMPARED = "bits were not compared"
REPOSITORIES = {
    "pytorch": "pytorch/pytorch",
    "cudnn-frontend": "NVIDIA/cudnn-frontend",
    "flash-linear-attention": "fla-org/flash-linear-attention",
    "flashinfer": "flashinfer-ai/flashinfer",
    "TileOPs": "tile-ai/TileOPs",
    "FastVideo": "hao-ai-lab/FastVideo",
    "": "Dao-AILab/flash-attention",
}


def page(environments: Sequence[dict[str, Any]]) -> str:
    """Return the whole document."""
    lines = [HEAD, "| | bug | in | issues | tests |", "|--:|---|---|---|---|"]
    for bug in BUGS:
        tests = ", ".join(f"`{node.rpartition('::')[2]}`" for node in bug.nodes)
        what = f"**{bug.kind}**: {bug.sentence}"
        lines.append(f"| {bug.number} | {what} | {bug.library} | {', '.join(map(link, bug.issues))} | {tests} |")
    lines += ["", "## Found here", "", "| in | bug | found by, and since then |", "|---|---|---|"]
    lines += [f"| {where} | {what} | {since} |" for where, what, since in FOUND]
    for found in environments:
        lines += ["", *of_environment(found)]
    lines += [
        "",
        "This page is written by `python -m tests.known_bugs page > docs/known_bugs.md`, of what "
        "`python -m tests.known_bugs run` found in each environment.",
    ]
    return "\n".join(lines)


def link(issue: str) -> str:
    """Return an issue as a link; GitHub leads from an issue's address to a pull request's."""
    if issue.startswith("commit "):
        name = issue.removeprefix("commit ")
        return f"[{name}](https://github.com/{REPOSITORIES['']}/commit/{name})"
    repository, _, number = issue.partition("#")
    return f"[{issue}](https://github.com/{REPOSITORIES[repository]}/issues/{number})"


def of_environment(found: dict[str, Any]) -> list[str]:
    """Return what was found in one environment, a row a bug."""
    software = ", ".join(f"{name} {version}" for name, version in sorted(found["versions"].items()))
    lines = [
        f"## On {found['device']} ({software})",
        "",
        "| | bug | right | has it | refuses | cannot |",
        "|--:|---|---|---|---|---|",
    ]
    rows = {row["number"]: row for row in found["bugs"]}
    reasons: list[str] = []
    for bug in BUGS:
        row = rows.get(bug.number, {"variants": {}, "reasons": {}})
        judged = {name: verdict(bug, name, outcome, "bits" in found) for name, outcome in row["variants"].items()}
        cells = [names(judged, outcome) for outcome in ("right", "has it", "refuses", "cannot")]
        if wrong := names(judged, "failed"):
            cells[1] = f"{cells[1]} **not expected:** {wrong}".strip()
        lines.append(f"| {bug.number} | {bug.kind} | {' | '.join(cells)} |")
        reasons += explained(bug, judged, row["reasons"])
        if unknown := names(judged, UNCOMPARED):
            reasons.append(f"- {bug.number}, {unknown}: {UNCOMPARED}")
    return [*lines, *([""] if reasons else []), *reasons]


def verdict(bug: Bug, name: str, outcome: str, compared: bool) -> str:
    """Return what an outcome of a variant says of a bug, where bits of libraries were compared or were not."""
    if outcome == "right" and bug.needs_more_than(name):
        return "cannot"
    if bug.number == OF_BITS and outcome == "right" and name not in OURS and not compared:
        return UNCOMPARED
    if outcome == "has it" and (expected := known(bug, name)) and all(one.refuses for one in expected):
        return "refuses"
    return outcome


def names(judged: dict[str, str], outcome: str) -> str:
    """Return the variants of which this came out; a test that is of no variant stands for itself."""
    if judged and set(judged.values()) == {outcome}:
        return "all"
    return ", ".join(f"`{name}`" if name else "its test" for name, out in judged.items() if out == outcome)


def explained(bug: Bug, judged: dict[str, str], reasons: dict[str, str]) -> list[str]:
    """Return why variants have a bug: as was written down, or as it is put now."""
    lines = []
    for name, reason in reasons.items():
        now = [one.reason for one in known(bug, name)] if judged[name] != "failed" else []
        lines.append(f"- {bug.number}, `{name}`: {reason if reason in now or not now else '; '.join(now)}")
    return lines
