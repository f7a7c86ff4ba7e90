"""What each variant can do, as a table in Markdown: ``python -m attnkit.table > docs/variants.md``.

It is made of what the variants declare, so it is the same on every machine. What depends on sizes, dtypes and devices a
variant says when it is asked (`Variant.why_not`).
"""

from __future__ import annotations

from attnkit.variant import FEATURES
from attnkit.variants import TABLE

__all__ = ["page"]

HEAD = """\
# What each variant can do

Every variant computes full and causal attention (aligned bottom-right). The columns are what a problem may ask for
beyond that, fp8 forward alone; a number is the reason why a variant cannot. What depends on sizes and devices it says
when asked: `variant("flex").why_not(problem, device, "fwd")`.
"""


def page() -> str:
    """Return the whole document, which ``python -m attnkit.table`` prints."""
    reasons = list(dict.fromkeys(variant.lacks[f] for variant in TABLE for f in FEATURES if f in variant.lacks))
    lines = [HEAD, f"| variant | {' | '.join(FEATURES)} |", "|---" * (len(FEATURES) + 1) + "|"]
    for variant in TABLE:
        cells = [str(1 + reasons.index(variant.lacks[f])) if f in variant.lacks else "yes" for f in FEATURES]
        lines.append(f"| `{variant.name}` | {' | '.join(cells)} |")
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))]
    lines += ["", "This page is written by `python -m attnkit.table > docs/variants.md`."]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
