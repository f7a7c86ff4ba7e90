"""Attention variants, from the textbook to the fastest kernel, with one call and one statement of what each can do.

Shapes: q [b, sq, hq, d], k [b, skv, hkv, d], v [b, skv, hkv, dv] to out [b, sq, hq, dv].
"""

from attnkit.problem import Inputs, Problem
from attnkit.variant import Variant
from attnkit.variants import TABLE, variant

__all__ = ["TABLE", "Inputs", "Problem", "Variant", "variant"]
