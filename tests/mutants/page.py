"""Which law found which planted bug, as a table in Markdown: docs/mutants.md is written by the command that finds out.

Seconds are a machine's and not in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.mutants.kept import Kept
from tests.mutants.trials import Verdict

__all__ = ["HEAD", "page"]

HEAD = """\
# Does the fuzzer find bugs?

`nox -s mutants` plants each of these bugs in a copy of attnkit and puts it to laws of the tests, one after the other,
with the number of examples that CI gives them and a fixed seed. It fails if one survives, or if a law calls wrong what
has no bug in it. Triton's kernels run in its interpreter and those in CUDA C++ on the host; what these cannot show
needs a GPU: it was tried there with `nox -s mutants -- --gpu`, and is named with the GPU.
"""


def page(verdicts: Sequence[Verdict], kept: Kept) -> str:
    """Return the whole document; what needs a GPU has come of it what is kept."""
    planted = [verdict for verdict in verdicts if verdict.mutant.edits]
    found = {verdict.mutant.name: (verdict.by, verdict.example) for verdict in planted if verdict.caught}
    for verdict in planted:
        name = verdict.mutant.name
        if verdict.mutant.device == "cuda" and name in kept.found:
            law, example = kept.found[name]
            found[name] = f"{law} ({kept.device})", example
    most = max((example for _, example in found.values()), default=0)
    lines = [
        HEAD,
        f"{len(found)} of {len(planted)} were found, each within {most} examples of a law.",
        "",
        "| bug | kind | found by | at example |",
        "|---|---|---|--:|",
    ]
    for verdict in planted:
        law, example = found.get(verdict.mutant.name, (verdict.by, 0))
        lines.append(f"| {verdict.mutant.name} | {verdict.mutant.kind} | {law} | {example or ''} |")
    lines += ["", "This page is written by `nox -s mutants -- --page docs/mutants.md`."]
    return "\n".join(lines) + "\n"
