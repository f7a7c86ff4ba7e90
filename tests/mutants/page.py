"""Which law found which planted bug, as a table in Markdown: docs/mutants.md is written by the command that finds out.

Seconds are a machine's and not in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.mutants.trials import Verdict

__all__ = ["HEAD", "page"]

HEAD = """\
# Does the fuzzer find bugs?

`nox -s mutants` plants each of these bugs in a copy of attnkit and puts it to laws of the tests, one after the other,
with the number of examples that CI gives them and a fixed seed. It fails if one survives, or if a law calls wrong what
has no bug in it. Triton's kernels run in its interpreter and those in CUDA C++ on the host; what these cannot show
needs a GPU.
"""


def page(verdicts: Sequence[Verdict]) -> str:
    """Return the whole document."""
    found = [verdict for verdict in verdicts if verdict.mutant.edits]
    here = [verdict for verdict in found if verdict.result != "skipped"]
    caught = [verdict for verdict in here if verdict.caught]
    most = max((verdict.example for verdict in caught), default=0)
    lines = [
        HEAD,
        f"{len(caught)} of {len(here)} were found, each within {most} examples of a law.",
        "",
        "| bug | kind | found by | at example |",
        "|---|---|---|--:|",
    ]
    for verdict in found:
        example = str(verdict.example) if verdict.example else ""
        lines.append(f"| {verdict.mutant.name} | {verdict.mutant.kind} | {verdict.by} | {example} |")
    lines += ["", "This page is written by `nox -s mutants -- --page docs/mutants.md`."]
    return "\n".join(lines) + "\n"
