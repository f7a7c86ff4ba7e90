"""Which cases are slowed by how much in the five planted runs that docs/trust.md is made of.

Each turn slows sixteen of 31 cases, of 3 us to 2 ms, so that all of them can be confirmed at once and as many stay as
controls. Two cases at a time have the five sizes in turn; the others have what can be seen of them, for a floor of
0.2 us hides less than 5 % of a call of 4 us, and where only every so many calls are slowed windows should be equal.
"""

from __future__ import annotations

import re

__all__ = ["ARGUMENTS", "ATTENTION", "TURNS", "planted"]

TURNS = 5
SIZES = (1.0, 1.5, 2.0, 3.0, 5.0)
"""Percent."""

PAIRS = (
    ("forward/sdpa_flash/b16-h32-s512-d64-bf16", "forward/triton_flash/b4-h16-s4096-d128-bf16-causal"),
    ("forward/triton_flash/b16-h16-s1024-d128-bf16-causal", "forward/sdpa_flash/b4-h16-s4096-d128-bf16-causal"),
    ("backward/triton_flash/b4-h16-s1024-d128-bf16", "forward/triton_flash/b4-h16-s4096-d128-bf16"),
    ("forward/sdpa_flash/b16-h16-s1024-d128-bf16-causal", "backward/triton_flash/b4-h16-s4096-d128-bf16-causal"),
    ("forward/triton_flash/b1-h32-s4096-d128-bf16-causal", "forward+backward/sdpa_flash/b4-h16-s1024-d128-bf16"),
)
"""The i-th has the (i + turn)-th size."""

OTHERS: dict[str, tuple[float | None, ...]] = {
    "forward/triton_flash/b4-h16-s1024-d128-bf16": (1, 3, 3, 1, 5),
    "forward/sdpa_flash/b8-h16-s512-d64-bf16": (1.5, 1, 1.5, 1, 1.5),
    "forward/triton_flash/b8-h16-s512-d64-bf16": (2, 1.5, 2, 2, 1.5),
    "backward/triton_flash/b8-h16-s512-d64-bf16": (3, 1, 5, 3, 1),
    "forward/sdpa_flash/b4-h16-s128-d128-bf16": (3, None, 3, None, None),
    "forward/sdpa_flash/b4-h16-s256-d64-bf16": (None, 3, None, 3, 3),
    "forward/sdpa_flash/b1-h4-s32-d16-bf16": (5, None, None, None, None),
    "forward/sdpa_flash/b1-h8-s64-d32-bf16": (None, 5, None, None, None),
    "forward/triton_flash/b4-h16-s128-d128-bf16": (None, None, 5, None, 5),
    "forward/triton_flash/b4-h16-s256-d64-bf16": (None, None, None, 5, None),
}
"""Percent by turn."""

ATTENTION = ("perf/test_forward.py", "perf/test_backward.py", "perf/test_forward_backward.py")
ARGUMENTS = (
    *ATTENTION,
    "-k",
    "(triton_flash or sdpa_flash) and not 16384 and not (test_backward and sdpa_flash) and not b64 and not hq32"
    " and not b32-h32 and not b2-h8 and not (forward_backward and (triton_flash or s4096))"
    " and not (test_backward and b1-h32) and not b4-h16-s8192",
)
"""What pytest is told: the slowed cases, and what stays as it is."""


def planted(turn: int) -> list[str]:
    """What ``--planted`` says in a turn, from 1 on.

    Raises:
        ValueError: If there is no such turn.
    """
    if not 1 <= turn <= TURNS:
        raise ValueError(f"turns are 1 to {TURNS}, got {turn}")
    sizes = {case: SIZES[(i + turn - 1) % TURNS] for i, pair in enumerate(PAIRS) for case in pair}
    sizes |= {case: percent for case, by_turn in OTHERS.items() if (percent := by_turn[turn - 1]) is not None}
    return [f"^{re.escape(case)}$:{percent:g}" for case, percent in sizes.items()]
