"""Which tiles triton_flash uses on which GPU, and how tiles get to the kernel.

A configuration is looked up, never searched for at run time: ``TABLE`` is what ``python -m attnkit.tune triton_flash``
measured on an H200, and for architectures that nobody has measured what compiles for them without spilling. Rows for
few queries are the best of four or five forms at one request of 128 to 1024 tokens, and were not searched for yet. A
call that wants another configuration passes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from attnkit.mask import Boolean, Mask
from attnkit.problem import FP8
from attnkit.triton_device import current

Kernel = Literal["forward", "dkdv", "dq"]
Loads = Literal["pointer", "tma"]
Form = Literal["full", "causal", "few", "boolean", "other"]
"""What is computed: one of two masks and no more, or with few queries, a mask in memory, or any other mask, score or
packed sequences."""

FEW = {"full": 128, "causal": 256}
"""Queries of all heads, for each processor of the GPU: up to so many are few, and want tiles small enough for every
processor to have some. Programs of a causal mask do unlike work, so that there must be more of them."""

MAX_D = 256
"""Largest head dim: a program holds whole rows of Q and of the output."""

ROW_PADDING = 128
"""Statistics of rows are padded to a multiple of this: no block_m of the backward exceeds it."""

TMA_ALIGNMENT = 16
"""Bytes: the unit of the copy engine's addresses and strides."""

MAX_ROW_STRIDE = 2**31 // 256
"""Elements: inside a tile, of at most 256 rows, offsets are 32-bit."""


@dataclass(frozen=True, slots=True)
class Config:
    """One compiled form of a kernel.

    Attributes:
        block_m: Queries a tile.
        block_n: Keys a tile.
        warps: Warps a program.
        stages: Tiles in flight in the inner loop.
        loads: How tiles arrive; see triton_flash_forward.py.
        split: dkdv alone: dK and dV by two launches, for accumulators too wide to hold both.
        least: Width of blocks at least where those of the two head dims differ; what is behind d is masked.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    loads: Loads = "pointer"
    split: bool = False
    least: int = 16

    def __post_init__(self) -> None:
        """Refuse what no kernel has: the copy engine's tiles are as wide as its descriptors."""
        if self.loads == "tma" and self.least != 16:
            raise ValueError(f"least is for tiles by pointer, got loads='tma' and least={self.least}")


# Hopper's products read shared memory through descriptors, which say where a tile begins and how its rows are swizzled;
# rows of 64 numbers of 16 bits, or more, are swizzled alike, narrower ones otherwise. A tile that is not copied ahead,
# for one stage or for strides that asynchronous loads do not take, Triton puts where another was: dO where Q was, V
# where K was. Where one place is read in two ways, ptxas 12.8 (that of Triton 3.6) makes the second way's descriptors
# from a register that holds something else: dV was wrong with d above 128 and dv up to 32, out with dv of 16 between
# strides that are no multiples of 16, and the GPU read where it may not. ptxas 12.9 and 13.0 make no such thing of the
# same PTX. So where tiles share a place, in forward and above 128 in dkdv, and the two widths differ, none is below 64.
# That is of 16 bits: fp8's V is transposed, and its place read in two ways whatever the widths. None of these forms
# makes ptxas lose it; `nox -s kernels` looks for what that leads to.
# On Hopper float32 has no two warp groups to 64 rows: with 16 keys a tile Triton 3.6 lets them read V or K past the end
# of shared memory (as in triton#11366) and compute from what is there. The smaller tiles in their place spill.
# Family of architectures -> (kernel, dtype, how tiles may arrive, head dim padded to 64, 128 or 256), and behind it the
# form that wants another tile. 80 serves what has no row of its own: it fits 99 KiB of shared memory.
TABLE: dict[int, dict[tuple[str | int, ...], Config]] = {
    80: {
        ("forward", "half", "pointer", 64): Config(128, 64, 4, 2),
        ("forward", "half", "pointer", 128): Config(128, 64, 8, 2),
        ("forward", "half", "pointer", 256): Config(64, 32, 4, 2),
        ("forward", "half", "pointer", 64, "boolean"): Config(64, 64, 8, 2),
        ("forward", "half", "pointer", 128, "boolean"): Config(64, 64, 8, 2),
        ("forward", "half", "pointer", 256, "boolean"): Config(64, 64, 8, 2),
        ("dkdv", "half", "pointer", 64): Config(32, 128, 8, 2),
        ("dkdv", "half", "pointer", 128): Config(64, 64, 8, 2),
        ("dkdv", "half", "pointer", 256): Config(32, 64, 8, 1, split=True),
        ("dq", "half", "pointer", 64): Config(128, 64, 8, 2),
        ("dq", "half", "pointer", 128): Config(64, 64, 4, 2),
        ("dq", "half", "pointer", 128, "boolean"): Config(64, 64, 8, 2),
        ("dq", "half", "pointer", 256): Config(64, 32, 8, 1),
        ("forward", "fp32", "pointer", 64): Config(64, 32, 4, 2),
        ("forward", "fp32", "pointer", 128): Config(32, 16, 4, 2),
        ("forward", "fp32", "pointer", 256): Config(16, 16, 4, 1),
        ("dkdv", "fp32", "pointer", 64): Config(32, 32, 4, 1),
        ("dkdv", "fp32", "pointer", 128): Config(16, 32, 4, 1, split=True),
        ("dkdv", "fp32", "pointer", 256): Config(16, 16, 4, 1, split=True),
        ("dq", "fp32", "pointer", 64): Config(32, 32, 4, 1),
        ("dq", "fp32", "pointer", 128): Config(32, 16, 4, 1),
        ("dq", "fp32", "pointer", 256): Config(16, 16, 4, 1),
    },
    90: {
        ("forward", "half", "tma", 64): Config(64, 128, 4, 2, "tma"),
        ("forward", "half", "tma", 128): Config(128, 64, 4, 2, "tma"),
        ("forward", "half", "tma", 256): Config(128, 64, 8, 2, "tma"),
        ("forward", "half", "tma", 64, "few"): Config(64, 128, 4, 3, "tma"),
        ("forward", "half", "tma", 128, "few"): Config(64, 64, 4, 3, "tma"),
        ("forward", "half", "tma", 256, "few"): Config(64, 32, 4, 3, "tma"),
        ("forward", "half", "tma", 64, "boolean"): Config(64, 64, 8, 2, "tma"),
        ("forward", "half", "tma", 128, "boolean"): Config(64, 64, 8, 2, "tma"),
        ("forward", "half", "tma", 256, "boolean"): Config(64, 64, 8, 2, "tma"),
        ("forward", "half", "tma", 128, "other"): Config(128, 64, 8, 2, "tma"),
        ("forward", "half", "pointer", 64): Config(128, 64, 4, 3, least=64),
        ("forward", "half", "pointer", 128): Config(128, 64, 8, 3, least=64),
        ("forward", "half", "pointer", 256): Config(64, 32, 4, 3, least=64),
        ("forward", "half", "pointer", 64, "boolean"): Config(64, 64, 8, 2, least=64),
        ("forward", "half", "pointer", 128, "boolean"): Config(64, 64, 8, 2, least=64),
        ("forward", "half", "pointer", 256, "boolean"): Config(64, 64, 8, 2, least=64),
        ("dkdv", "half", "tma", 64): Config(64, 64, 4, 3, "tma"),
        ("dkdv", "half", "tma", 128): Config(64, 64, 4, 2, "tma"),
        ("dkdv", "half", "tma", 128, "other"): Config(64, 64, 8, 2, "tma"),
        ("dkdv", "half", "tma", 256): Config(32, 128, 8, 2, "tma", split=True),
        ("dkdv", "half", "pointer", 64): Config(64, 128, 8, 3),
        ("dkdv", "half", "pointer", 128): Config(64, 128, 8, 3),
        ("dkdv", "half", "pointer", 128, "other"): Config(64, 64, 8, 2),
        ("dkdv", "half", "pointer", 256): Config(64, 128, 8, 1, split=True, least=64),
        ("dq", "half", "tma", 64): Config(128, 64, 8, 3, "tma"),
        ("dq", "half", "tma", 64, "causal"): Config(128, 64, 4, 3, "tma"),
        ("dq", "half", "tma", 128): Config(128, 64, 8, 3, "tma"),
        ("dq", "half", "tma", 128, "causal"): Config(128, 32, 8, 3, "tma"),
        ("dq", "half", "tma", 256): Config(64, 64, 4, 2, "tma"),
        ("dq", "half", "pointer", 64): Config(128, 64, 8, 3),
        ("dq", "half", "pointer", 128): Config(128, 64, 8, 3),
        ("dq", "half", "pointer", 256): Config(128, 32, 8, 2),
        ("forward", "fp32", "pointer", 64): Config(64, 32, 4, 2),
        ("forward", "fp32", "pointer", 128): Config(128, 32, 8, 2),
        ("forward", "fp32", "pointer", 256): Config(32, 16, 8, 1),
        ("dkdv", "fp32", "pointer", 64): Config(16, 64, 4, 1),
        ("dkdv", "fp32", "pointer", 128): Config(32, 32, 8, 1, split=True),
        ("dkdv", "fp32", "pointer", 256): Config(16, 32, 8, 1, split=True),
        ("dq", "fp32", "pointer", 64): Config(64, 32, 4, 1),
        ("dq", "fp32", "pointer", 128): Config(32, 16, 4, 1),
        ("dq", "fp32", "pointer", 256): Config(32, 16, 8, 1),
    },
    100: {
        ("forward", "half", "pointer", 64): Config(128, 64, 4, 3),
        ("forward", "half", "pointer", 128): Config(128, 64, 8, 3),
        ("forward", "half", "pointer", 256): Config(128, 32, 8, 2),
        ("forward", "half", "pointer", 64, "boolean"): Config(64, 64, 8, 2),
        ("forward", "half", "pointer", 128, "boolean"): Config(64, 64, 8, 2),
        ("forward", "half", "pointer", 256, "boolean"): Config(64, 64, 8, 2),
        ("dq", "half", "pointer", 64): Config(128, 64, 8, 2),
        ("dq", "half", "pointer", 128): Config(128, 64, 8, 2),
        ("dq", "half", "pointer", 256): Config(128, 32, 8, 1),
        ("dkdv", "half", "pointer", 64): Config(64, 128, 8, 1),
        ("dkdv", "half", "pointer", 128): Config(64, 128, 8, 1),
        ("dkdv", "half", "pointer", 256): Config(64, 64, 8, 1, split=True),
    },
}


def family(device: torch.device) -> int:
    """The device's part of the table; Hopper's for the CPU, where only the interpreter runs."""
    if device.type != "cuda":
        return 90
    major = torch.cuda.get_device_capability(device)[0]
    return {9: 90, 10: 100}.get(major, 80)


def row(
    arch: int, kernel: Kernel, dtype: torch.dtype, d: int, form: Form, loads: Literal["pointer", "tma"]
) -> Config | None:
    """A row of the table, that of the form before that of any."""
    key = (kernel, "fp32" if dtype == torch.float32 else "half", loads, max(64, padded(d)))
    return TABLE[arch].get((*key, form)) or TABLE[arch].get(key)


def form_of(mask: Mask, modified: bool) -> Form:
    """The form of a call; ``modified`` says whether softcap or ALiBi change its scores, or sequences are packed."""
    if isinstance(mask, Boolean):
        return "boolean"
    if modified or (mask != "full" and mask != "causal"):
        return "other"
    return mask


def form_here(form: Form, queries: int, device: torch.device) -> Form:
    """The form of a forward pass over ``queries`` of all heads together: they may be few for the device."""
    if device.type != "cuda" or form not in FEW:
        return form
    few = queries <= FEW[form] * torch.cuda.get_device_properties(device).multi_processor_count
    return "few" if few else form


def choose(kernel: Kernel, device: torch.device, dtype: torch.dtype, d: int, form: Form, copyable: bool) -> Config:
    """The configuration for a call.

    Args:
        kernel: Which kernel.
        device: Where it runs.
        dtype: Of its inputs.
        d: The larger head dim.
        form: What it computes; "few" is for the forward pass.
        copyable: Whether the copy engine can load all inputs.
    """
    arch = family(device)
    fast = row(arch, kernel, dtype, d, form, "tma") if copyable else None
    config = fast or row(arch, kernel, dtype, d, form, "pointer") or row(80, kernel, dtype, d, form, "pointer")
    if config is None:
        raise LookupError(f"no tiles for {kernel}, {dtype}, d={d}: d must be at most {MAX_D}")
    return config


def padded(d: int, dtype: torch.dtype | None = None) -> int:
    """The head dim as the kernels see it: a power of two, at least 16 for the tensor cores, and 32 in fp8."""
    return max(32 if dtype == FP8 else 16, 1 << (d - 1).bit_length())


def widths(config: Config, d: int, dv: int, dtype: torch.dtype) -> tuple[int, int]:
    """How wide blocks of both head dims are."""
    dp, dvp = padded(d, dtype), padded(dv, dtype)
    return (dp, dvp) if dp == dvp else (max(config.least, dp), max(config.least, dvp))


def precision(dtype: torch.dtype) -> str:
    """How fp32 products are made: three tf32 products on the tensor cores; half precision is exact as it is."""
    return "tf32x3" if dtype == torch.float32 else "ieee"


def offset(dtype: torch.dtype) -> int:
    """What is added to the exponents of weights, in base 2, that are rounded to this dtype."""
    return 8 if dtype == FP8 else 0


def loadable(t: torch.Tensor) -> torch.Tensor:
    """``t [b, s, h, d]`` itself, or a copy where its last dimension is not contiguous or its rows are too far apart."""
    return t if t.stride(3) == 1 and t.stride(1) < MAX_ROW_STRIDE else t.contiguous()


def copyable(t: torch.Tensor) -> bool:
    """Whether the copy engine can load ``t``: 16-byte addresses and strides, nothing broadcast."""
    unit = TMA_ALIGNMENT // t.element_size()
    strides = [stride for size, stride in zip(t.shape[:3], t.stride()[:3], strict=True) if size > 1]
    return t.data_ptr() % TMA_ALIGNMENT == 0 and all(stride > 0 and stride % unit == 0 for stride in strides)


def constants(config: Config, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict[str, object]:
    """The compile-time arguments that every kernel has, but for those of masks and modifiers."""
    d, dv = q.shape[3], v.shape[3]
    dp, dvp = widths(config, d, dv, q.dtype)
    return {
        "D": d,
        "DP": dp,
        "DV": dv,
        "DVP": dvp,
        "BM": config.block_m,
        "BN": config.block_n,
        "EVEN_Q": q.shape[1] % config.block_m == 0,
        "EVEN_KV": k.shape[1] % config.block_n == 0,
        "LOADS": config.loads,
        "PRECISION": precision(q.dtype),
        "num_warps": config.warps,
        "num_stages": config.stages,
    }


def source(t: torch.Tensor, rows: int, config: Config) -> Any:
    """What the kernel loads ``t [b, s, h, d]`` from, in tiles of ``rows``: the tensor, or a host descriptor of it."""
    if config.loads != "tma":
        return t
    from triton.tools.tensor_descriptor import TensorDescriptor

    b, s, h, d = t.shape
    # the stride of a dimension of size one is never used, but must be valid
    strides = [t.stride(i) if t.shape[i] > 1 else TMA_ALIGNMENT for i in (0, 2, 1)]
    return TensorDescriptor(t, [b, h, s, d], [*strides, 1], [1, 1, rows, padded(d, t.dtype)])


def launch(call: Callable[[], object], q: torch.Tensor) -> None:
    """Run ``call`` with the device of q as the current one, which is where Triton launches."""
    with current(q.device, q.dtype):
        call()
