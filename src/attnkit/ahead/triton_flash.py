"""The builds of triton_flash: every row of the table of tiles, for the masks that need the most and the least of it.

Of other masks and of modified scores there are a few, which their builds name.
``causal-ragged`` is the causal mask on lengths that no tile divides, the form with the most masks; ``full-even`` has
none; ``causal-even`` is what is timed most. float16 has bfloat16's tiles, and instructions that differ in the names of
their types alone: it has a few builds, of what is timed most. fp8 has those tiles too, but other products and a way for
V; there is no backward of it, and no Ampere GPU that has it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch

from attnkit.ahead.build import Binary, Build
from attnkit.ahead.triton_compiler import absent, compile_kernel
from attnkit.problem import FP8, TRAINED
from attnkit.variants.triton_flash_tiles import Config, Form, Kernel, Loads, offset, padded, precision, row, widths

__all__ = ["ABSENT", "MASKS", "MODIFIERS", "Modifier", "Want", "binary", "builds", "configs", "tiles", "wants"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": FP8}
TRITON_TYPE = {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32", "fp8": "fp8e4nv"}
WHOLE = ("bf16", "fp32", "fp8")
"""The dtypes that have a build for every row of the table."""
DS = (64, 128, 256)
"""The head dims that the table tells apart."""
FORMS: dict[str, tuple[Literal["full", "causal"], bool]] = {
    "causal-ragged": ("causal", False),
    "causal-even": ("causal", True),
    "full-even": ("full", True),
}
"""The mask, and whether tiles divide the lengths."""
HALF = (("causal-even", 64), ("causal-even", 128), ("full-even", 128))
"""The forms and head dims that float16 is built for."""

MASKS: dict[str, dict[str, str]] = {
    "full": {},
    "causal": {},
    "band": {"lower": "i32", "upper": "i32"},
    "prefix": {"upper": "i32"},
    "documents": {"lower": "*i32", "upper": "*i32"},
    "boolean": {"lower": "*u8"},
}
"""What the kernels are given for each of triton_scores' kinds of mask."""

Modifier = Literal["softcap", "alibi", "sink", "varlen"]
MODIFIERS: dict[Modifier, dict[str, str]] = {
    "softcap": {"scale_cap": "fp32", "cap_log2": "fp32"},
    "alibi": {"p_slope": "*fp32"},
    "sink": {"p_sink": "*fp32"},
    "varlen": {"p_starts_q": "*i32", "p_starts_k": "*i32", "total": "i32"},
}
ABSENT = ("lower", "upper", "scale_cap", "cap_log2", "p_slope", "p_sink", "p_starts_q", "p_starts_k", "total")
"""None where neither mask nor modifiers need them."""

OTHERS: dict[str, tuple[Form, str, tuple[Modifier, ...], int]] = {
    "d128-window": ("other", "band", (), 128),
    "d128-documents": ("other", "documents", (), 128),
    "d128-prefix": ("other", "prefix", (), 128),
    "d128-boolean": ("boolean", "boolean", (), 128),
    "d128-causal-softcap": ("other", "causal", ("softcap",), 128),
    "d128-window-softcap-alibi-sink": ("other", "band", ("softcap", "alibi", "sink"), 128),
    "d128-causal-varlen": ("other", "causal", ("varlen",), 128),
    "d192-dv128-causal": ("causal", "causal", (), 192),
}
"""The table's form, the kind of mask, what modifies scores, and the head dim of q and k."""
DV = 128
"""That of v in all of these."""

UNALIGNED: dict[str, tuple[str, int, int]] = {
    "d128-dv16": ("bf16", 128, 16),
    "d64-dv32": ("bf16", 64, 32),
    "d16-dv128": ("bf16", 16, 128),
    "d256-dv32": ("bf16", 256, 32),
    "d128-dv32": ("fp8", 128, 32),
    "d128-dv128": ("fp8", 128, 128),
    "d64-dv16": ("fp32", 64, 16),
}
"""The dtype, d and dv of packed sequences between whose rows there is a gap that asynchronous loads do not take: tiles
share a place then, so there has to be one way to read it; see triton_flash_tiles.py."""
STRIDES = tuple(f"s_{tensor}{dim}" for tensor in ("q", "k", "v", "o", "do") for dim in "bsh")

Want = Literal["", "dk", "dv"]
"""Which of its results a split dkdv computes; all of them if empty."""


def builds(arch: int) -> Iterator[Build]:
    """Every configuration that the table can give to full and causal attention on this architecture, and the others."""
    for kernel, dtype, d, form, loads in itertools.product(get_args(Kernel), WHOLE, DS, FORMS, get_args(Loads)):
        if not has(arch, kernel, dtype):
            continue
        mask, even = FORMS[form]
        for queries, config in configs(arch, kernel, dtype, d, mask, loads).items():
            for want in wants(config):
                name = f"triton_flash/{want or kernel}/{dtype}-d{d}-{form}{queries}-{loads}"
                yield Build(name, arch, partial(binary, arch, kernel, dtype, d, mask, even, config, want), absent)
    for dtype, d in itertools.product(filter(TRAINED.__contains__, WHOLE), DS):
        yield Build(f"triton_flash/statistics/{dtype}-d{d}", arch, partial(statistics, arch, dtype, d), absent)
    yield from half(arch)
    yield from others(arch)
    yield from unaligned(arch)


def half(arch: int) -> Iterator[Build]:
    """float16, loaded the fastest way there is."""
    for kernel, (form, d) in itertools.product(get_args(Kernel), HALF):
        mask, even = FORMS[form]
        config = fastest(arch, kernel, "fp16", d, mask)
        for want in wants(config):
            name = f"triton_flash/{want or kernel}/fp16-d{d}-{form}-{config.loads}"
            yield Build(name, arch, partial(binary, arch, kernel, "fp16", d, mask, even, config, want), absent)
    yield Build("triton_flash/statistics/fp16-d128", arch, partial(statistics, arch, "fp16", 128), absent)


def others(arch: int) -> Iterator[Build]:
    """What else attention may be, in one dtype, on lengths that no tile divides, loaded the fastest way there is."""
    for kernel, (form, (kind, mask, modifiers, d)) in itertools.product(get_args(Kernel), OTHERS.items()):
        # packed sequences are not for the copy engine
        config = fastest(arch, kernel, "bf16", d, kind, ("pointer",) if "varlen" in modifiers else ("tma", "pointer"))
        for want in wants(config):
            name = f"triton_flash/{want or kernel}/bf16-{form}-{config.loads}"
            compiled = partial(binary, arch, kernel, "bf16", d, mask, False, config, want, dv=DV, modifiers=modifiers)
            yield Build(name, arch, compiled, absent)


def unaligned(arch: int) -> Iterator[Build]:
    """Packed sequences of two head dims, between whose rows there is a gap."""
    packed: tuple[Modifier, ...] = ("varlen",)
    for kernel, (form, (dtype, d, dv)) in itertools.product(get_args(Kernel), UNALIGNED.items()):
        config = tiles(arch, kernel, dtype, max(d, dv), "other", "pointer")
        if config is None or not has(arch, kernel, dtype):
            continue
        for want in wants(config):
            name = f"triton_flash/{want or kernel}/{dtype}-{form}-full-varlen-unaligned-pointer"
            options: dict[str, Any] = {"dv": dv, "modifiers": packed, "aligned": False}
            yield Build(
                name, arch, partial(binary, arch, kernel, dtype, d, "full", False, config, want, **options), absent
            )


def has(arch: int, kernel: Kernel, dtype: str) -> bool:
    """Say whether there is such a kernel: in fp8 forward alone, and not on Ampere."""
    return dtype in TRAINED or (kernel == "forward" and arch != 80)


def configs(
    arch: int, kernel: Kernel, dtype: str, d: int, mask: Literal["full", "causal"], loads: Loads
) -> dict[str, Config]:
    """What a call of this kind can get: the usual configuration, and that of few queries under "-few" if it differs."""
    usual = tiles(arch, kernel, dtype, d, mask, loads)
    few = tiles(arch, kernel, dtype, d, "few", loads) if kernel == "forward" else None
    found = {"": usual, "-few": few if few != usual else None}
    return {name: config for name, config in found.items() if config}


def tiles(arch: int, kernel: Kernel, dtype: str, d: int, form: Form, loads: Loads) -> Config | None:
    """Take a row of the table as `choose` does."""
    config = row(arch, kernel, DTYPES[dtype], d, form, loads)
    return row(80, kernel, DTYPES[dtype], d, form, loads) if config is None and loads == "pointer" else config


def fastest(
    arch: int, kernel: Kernel, dtype: str, d: int, form: Form, ways: Sequence[Loads] = ("tma", "pointer")
) -> Config:
    """Take the first of these ways to load that the table has a row for."""
    for loads in ways:
        if config := tiles(arch, kernel, dtype, d, form, loads):
            return config
    raise LookupError(f"no tiles for {kernel}, {dtype}, d={d}, {form}")


def wants(config: Config) -> tuple[Want, ...]:
    """Say what launches there are with this configuration."""
    return ("dk", "dv") if config.split else ("",)


def binary(
    arch: int, kernel: Kernel, dtype: str, d: int, mask: str, even: bool, config: Config, want: Want = "",
    *, dv: int | None = None, modifiers: Collection[Modifier] = (), aligned: bool = True, **options: Any,
) -> Binary:  # fmt: skip
    """Compile forward, dkdv or dq, for strides that are multiples of 16 or any; `options` go to the compiler."""
    from attnkit.variants import triton_flash_backward as backward
    from attnkit.variants import triton_flash_forward as forward

    function = {"forward": forward.forward_kernel, "dkdv": backward.dkdv_kernel, "dq": backward.dq_kernel}[kernel]
    dv = d if dv is None else dv
    loaded = {
        "q": (config.block_m, d),
        "k": (config.block_n, d),
        "v": (config.block_n, dv),
        "dout": (config.block_m, dv),
    }
    element, numbers = TRITON_TYPE[dtype], DTYPES[dtype]
    types = dict.fromkeys(("p_out", "p_dq", "p_dk", "p_dv"), "*bf16" if dtype == "fp8" else f"*{element}")
    types |= dict.fromkeys(("p_lse", "p_lse2", "p_delta"), "*fp32")
    for name, (rows, dim) in loaded.items():
        tile = f"tensordesc<{element}[1,1,{rows},{padded(dim, numbers)}]>"
        types[name] = tile if config.loads == "tma" else f"*{element}"
    types |= MASKS[mask]
    for modifier in modifiers:
        types |= MODIFIERS[modifier]
    dp, dvp = widths(config, d, dv, numbers)
    constants: dict[str, object] = {
        "D": d, "DP": dp, "DV": dv, "DVP": dvp,
        "BM": config.block_m, "BN": config.block_n, "OFFSET": offset(numbers),
        "MASK": mask, "SCALED": bool({"softcap", "alibi"} & set(modifiers)),
        "EVEN_Q": even, "EVEN_KV": even, "LOADS": config.loads, "PRECISION": precision(numbers),
        "WANT_DK": want != "dv", "WANT_DV": want != "dk",
    }  # fmt: skip
    constants |= {name: None for name in ABSENT if name not in types}
    return compile_kernel(
        function, arch, types, constants, unaligned=("lower", "upper", *(() if aligned else STRIDES)),
        num_warps=config.warps, num_stages=config.stages, **options,
    )  # fmt: skip


def statistics(arch: int, dtype: str, d: int) -> Binary:
    """Compile the kernel before the backward ones."""
    from attnkit.variants.triton_flash_backward import statistics_kernel

    types = {"p_out": f"*{dtype}", "p_dout": f"*{dtype}", "p_lse": "*fp32", "p_lse2": "*fp32", "p_delta": "*fp32"}
    return compile_kernel(statistics_kernel, arch, types, {"D": d, "DP": padded(d), "BM": 64})
