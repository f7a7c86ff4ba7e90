"""What each variant can do, as a table in Markdown: ``python -m attnkit.table > docs/variants.md``.

It is made of what the variants declare, so it is the same on every machine. What depends on sizes, dtypes and devices a
variant says when it is asked (`Variant.why_not`).
"""

from __future__ import annotations

from attnkit.variant import FEATURES
from attnkit.variants import TABLE

__all__ = ["page"]

BACKWARD = "backward"
HEAD = """\
# What each variant can do

Every variant computes full and causal attention (aligned bottom-right), with any number of query heads to a key head;
`triton_paged` does so on pages alone. The columns are what a problem may ask for beyond that, and whether there is a
backward; caches and fp8 are forward only in all of them. A number is the reason why a variant cannot. What depends on
sizes, dtypes and devices it says when asked: `variant("flex").why_not(problem, device, "fwd")`.
"""


def page() -> str:
    """Return the whole document, which ``python -m attnkit.table`` prints."""
    columns = (*FEATURES, BACKWARD)
    missing = [{**way.lacks, **({BACKWARD: way.forward_only} if way.forward_only else {})} for way in TABLE]
    reasons = list(dict.fromkeys(lacks[column] for lacks in missing for column in columns if column in lacks))
    lines = [HEAD, f"| variant | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for variant, lacks in zip(TABLE, missing, strict=True):
        cells = [str(1 + reasons.index(lacks[column])) if column in lacks else "yes" for column in columns]
        lines.append(f"| `{variant.name}` | {' | '.join(cells)} |")
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))]
    lines += ["", "This page is written by `python -m attnkit.table > docs/variants.md`."]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
