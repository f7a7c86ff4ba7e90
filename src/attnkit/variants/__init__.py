"""The table of variants: a module a variant (or family), and one line here.

Importing this needs torch alone. A variant whose package is missing is in the table all the same, and `absent` says so.
"""

from attnkit.variant import Variant
from attnkit.variants import (
    flash_attn,
    flash_attn_3,
    flash_attn_4,
    flashinfer,
    flex,
    naive,
    sdpa,
    torch_varlen,
    transformer_engine,
    triton_fa1,
    triton_flash,
    triton_splitkv,
    triton_unfused,
)

__all__ = ["TABLE", "variant"]

TABLE: tuple[Variant, ...] = (
    naive.VARIANT,
    *sdpa.VARIANTS,
    flex.VARIANT,
    triton_unfused.VARIANT,
    triton_flash.VARIANT,
    flash_attn.VARIANT,
    triton_fa1.VARIANT,
    triton_splitkv.VARIANT,
    triton_splitkv.PAGED,
    naive.COMPILED,
    torch_varlen.VARIANT,
    flash_attn_3.VARIANT,
    flash_attn_4.VARIANT,
    flashinfer.VARIANT,
    transformer_engine.VARIANT,
)


def variant(name: str) -> Variant:
    """Return the variant of that name.

    Raises:
        ValueError: If there is none.
    """
    for entry in TABLE:
        if entry.name == name:
            return entry
    raise ValueError(f"no variant is called {name!r}: take one of {', '.join(entry.name for entry in TABLE)}")
