"""A problem: what attention is asked to compute, its inputs, and the work it takes at least.

    O = softmax(Q Kᵀ · scale, over live keys) V          q [b, sq, hq, d], k [b, skv, hkv, d], v [b, skv, hkv, dv]

One alphabet for the whole package: b batch, hq query heads, hkv key heads (query head h reads key head
h // (hq / hkv)), sq queries, skv keys, d the head dim of q and k, dv that of v.

Masks are in mask.py. A query that sees no key (of a causal mask the first sq - skv, where sq > skv) has output 0, and
gradient 0. Scores S = Q Kᵀ · scale may be modified before the softmax, in this order:

    softcap c   S becomes c · tanh(S / c)                                (Gemma 2, 2024)
    alibi       S of head h loses slope[h] · |i + skv - sq - j|          (Press et al., Train Short, Test Long, 2022)
    sink        each head has one logit more that takes weight and has no value: the softmax is over live keys and it
                (Xiao et al., Attention Sinks, 2024, as a learned logit; gpt-oss, 2025)

Sequences of different lengths may be packed into one (varlen.py): b is 1, sq and skv are all of them together.

Keys and values may be a cache (cache.py), with sequences of different lengths in it, contiguous or in pages.

In fp8 q, k and v are float8_e4m3fn, as they are (no scale goes with them), and out is bfloat16, as FlashAttention-3 has
it (Shah et al., 2024). There is no backward.

Knows nothing of variants.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Required, TypedDict, get_args

import torch

from attnkit import mask as masks
from attnkit import varlen as packing
from attnkit.cache import Cache
from attnkit.mask import Boolean, Documents, Mask, Prefix, Window
from attnkit.varlen import Varlen

__all__ = [
    "DTYPES",
    "FP8",
    "LAYOUTS",
    "PASSES",
    "TRAINED",
    "Boolean",
    "Cache",
    "Documents",
    "Dtype",
    "Inputs",
    "Layout",
    "Mask",
    "Options",
    "Pass",
    "Prefix",
    "Problem",
    "Varlen",
    "Window",
    "dtype_of_out",
]

Dtype = Literal["fp16", "bf16", "fp32", "fp8"]
Pass = Literal["fwd", "bwd", "fwd+bwd"]
Layout = Literal["bshd", "bhsd", "packed", "padded", "broadcast"]

DTYPES: tuple[Dtype, ...] = get_args(Dtype)
TRAINED: tuple[Dtype, ...] = ("fp16", "bf16", "fp32")
"""Dtypes with a backward."""
PASSES: tuple[Pass, ...] = get_args(Pass)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

FP8 = torch.float8_e4m3fn
TORCH_DTYPE = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp8": FP8}
START_BYTES = 4  # where a sequence begins, its length, and its page are one int32
LSE_BYTES = 4  # the log-sum-exp of a row is one fp32
HEAD_BYTES = 4  # what a head has of its own, a slope or a sink, is one fp32
PADDING = 8  # elements behind each row of the padded layout: rows stay aligned to 16 bytes


class Inputs(NamedTuple):
    """The tensors of one problem: q, k, v, and dout, the gradient that comes back for out; k and v may be pages."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor

    def slice(self, batch: int, kv_head: int) -> Inputs:
        """Return the views that belong to one batch and one key head, with the query heads that read it."""
        group = self.q.shape[2] // self.k.shape[2]
        batches = slice(batch, batch + 1)
        queries, keys = slice(kv_head * group, (kv_head + 1) * group), slice(kv_head, kv_head + 1)
        q, dout = self.q[batches, :, queries], self.dout[batches, :, queries]
        return Inputs(q, self.k[batches, :, keys], self.v[batches, :, keys], dout)


class Options(TypedDict, total=False):
    """What attention is called with beside q, k and v. A modifier that a problem has not is not there.

    Attributes:
        mask: Which keys a query sees.
        scale: What scores are multiplied with; None is 1 / sqrt(d).
        softcap: Scores stay between it and its negative.
        alibi: Slopes [hq], float32.
        sink: Logits [hq], float32; they may want gradients.
        varlen: The sequences that are packed into one; the mask is that of each.
        lengths: Keys of each sequence in a cache, [b], int32.
        table: Pages of each sequence in a cache that has pages, [b, n], int32.
    """

    mask: Required[Mask]
    scale: Required[float | None]
    softcap: float
    alibi: torch.Tensor
    sink: torch.Tensor
    varlen: Varlen
    lengths: torch.Tensor
    table: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is computed: sizes, dtype, mask, score modifiers, and how the inputs lie in memory.

    Attributes:
        b: Batch.
        hq: Query heads.
        hkv: Key heads; `hq` unless given. It divides `hq`.
        sq: Queries.
        skv: Keys; `sq` unless given.
        d: Head dim of q and k.
        dv: Head dim of v and out; `d` unless given.
        dtype: Of all inputs and of out; where it is fp8, out is bfloat16.
        mask: Which keys a query sees: a word or a value of mask.py; causal is aligned bottom-right.
        scale: What scores are multiplied with; None is 1 / sqrt(d).
        softcap: Bound of the scores; None is none.
        alibi: Whether distance costs a key its score, by a slope for each head.
        sink: Whether each head has a logit that takes weight from the keys.
        varlen: Sequences of different lengths that are packed into one: b is 1, sq and skv are all of them together,
            and the mask is that of each, full, causal, a window or a prefix. None is a batch of equal ones.
        cache: Lengths of sequences whose keys and values are a cache with room for skv each, and its pages; the mask is
            full, causal, a window or a prefix. None is a batch of equal ones. What is cached has no gradient.
        layout: ``bshd`` contiguous; ``bhsd`` transposed views of contiguous [b, h, s, d]; ``packed`` q, k and v side by
            side in one [b, s, hq + 2 hkv, d]; ``padded`` rows longer than d (the last dim is contiguous, NaN behind
            it); ``broadcast`` k and v with stride 0 over the batch.
        magnitude: Standard deviation of q, k and v.

    Raises:
        ValueError: For what is no attention problem.
    """

    b: int
    hq: int
    hkv: int = None  # type: ignore[assignment]  # filled in __post_init__, as are skv and dv
    sq: int
    skv: int = None  # type: ignore[assignment]
    d: int
    dv: int = None  # type: ignore[assignment]
    dtype: Dtype = "bf16"
    mask: Mask = "full"
    scale: float | None = None
    softcap: float | None = None
    alibi: bool = False
    sink: bool = False
    varlen: Varlen | None = None
    cache: Cache | None = None
    layout: Layout = "bshd"
    magnitude: float = 1.0

    def __post_init__(self) -> None:
        for name, default in (("hkv", self.hq), ("skv", self.sq), ("dv", self.d)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        for name in ("b", "hq", "hkv", "sq", "skv", "d", "dv"):
            masks.whole(name, getattr(self, name), 1)
        for name, known in (("dtype", DTYPES), ("layout", LAYOUTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        masks.check(self.mask, self.sq, self.skv)
        if self.varlen is not None:
            self.varlen.check(self.mask, self.b, self.sq, self.skv)
        if self.cache is not None:
            self.cache.check(self.b, self.skv)
            packing.check(self.mask)
            if self.varlen is not None or self.layout in ("packed", "broadcast"):
                got = f"layout={self.layout!r}, varlen={self.varlen}"
                raise ValueError(f"a cache is laid out bshd, bhsd or padded, and not packed otherwise, got {got}")
        if self.hq % self.hkv:
            raise ValueError(f"hkv must divide hq, got hq={self.hq} and hkv={self.hkv}")
        if self.scale is not None and not masks.finite(self.scale):
            raise ValueError(f"scale must be finite, or None for 1/sqrt(d), got {self.scale!r}")
        if self.softcap is not None and not (masks.finite(self.softcap) and self.softcap > 0):
            raise ValueError(f"softcap must be finite and positive, or None for none, got {self.softcap!r}")
        if not (masks.finite(self.magnitude) and self.magnitude > 0):
            raise ValueError(f"magnitude must be finite and positive, got {self.magnitude!r}")
        if self.layout == "packed" and (self.sq != self.skv or self.d != self.dv):
            sizes = f"sq={self.sq}, skv={self.skv}, d={self.d}, dv={self.dv}"
            raise ValueError(f"the packed layout needs sq = skv and d = dv, got {sizes}: take another layout")

    @property
    def name(self) -> str:
        """Stable, and the problem's identity: ``b1-hq32-hkv8-s4096-d128-bf16-causal``. Defaults are left out."""
        parts = [
            f"b{self.b}",
            f"h{self.hq}" if self.hq == self.hkv else f"hq{self.hq}-hkv{self.hkv}",
            f"s{self.sq}" if self.sq == self.skv else f"sq{self.sq}-skv{self.skv}",
            f"d{self.d}" if self.d == self.dv else f"d{self.d}-dv{self.dv}",
            self.dtype,
        ]
        if self.mask != "full":
            parts.append(masks.name(self.mask))
        if self.scale is not None:
            parts.append(f"scale{self.scale!r}")
        if self.softcap is not None:
            parts.append(f"softcap{float(self.softcap)!r}")
        parts += [modifier for modifier in ("alibi", "sink") if getattr(self, modifier)]
        if self.varlen is not None:
            parts.append(self.varlen.name)
        if self.cache is not None:
            parts.append(self.cache.name)
        if self.layout != "bshd":
            parts.append(self.layout)
        if self.magnitude != 1.0:
            parts.append(f"magnitude{self.magnitude!r}")
        return "-".join(parts)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch names it."""
        return TORCH_DTYPE[self.dtype]

    @property
    def out_dtype(self) -> torch.dtype:
        """The dtype of out, and of the gradient that comes back for it."""
        return dtype_of_out(self.torch_dtype)

    @property
    def group(self) -> int:
        """Query heads that read one key head."""
        return self.hq // self.hkv

    @property
    def sequences(self) -> Varlen | None:
        """The lengths of sequences where they differ, packed or in a cache."""
        return self.varlen if self.cache is None else self.cache.sequences(self.sq)

    @property
    def live_pairs(self) -> int:
        """Pairs of a query and a key that it sees, in one head of one batch, or of all where lengths differ."""
        if self.sequences is not None:
            return self.sequences.live_pairs(self.mask)
        return masks.live_pairs(self.mask, self.sq, self.skv)

    @property
    def live_keys(self) -> int:
        """Keys that any query sees, in one head of one batch, or of all where lengths differ."""
        if self.sequences is not None:
            return self.sequences.live_keys(self.mask)
        return masks.live_keys(self.mask, self.sq, self.skv)

    @property
    def tokens(self) -> int:
        """Queries in all of the batch."""
        return self.b * self.sq

    def flops(self, pass_: Pass) -> int:
        """Return the operations of the matrix products over live pairs, a multiply-add counted as two.

        Forward makes S = QKᵀ and O = PV; backward makes S again, and dP = dO Vᵀ, dV = Pᵀ dO, dQ = dS K, dK = dSᵀ Q.
        With d = dv backward is 2.5 times forward. What modifies scores is no matrix product.
        """
        products = {"fwd": self.d + self.dv, "bwd": 3 * self.d + 2 * self.dv}
        products["fwd+bwd"] = products["fwd"] + products["bwd"]
        batches = self.b if self.cache is None else 1
        return 2 * batches * self.hq * self.live_pairs * products[pass_]

    def bytes(self, pass_: Pass) -> int:
        """Return the least bytes through memory: each input of the pass read once, each output written once.

        Backward also reads out and the log-sum-exp of each row (fp32), which forward is not charged for writing.
        What the broadcast layout shares over the batch is read once. Keys that no query sees need not be read, but have
        a gradient. A boolean mask is read, a byte a pair; slopes and sinks are read, and sinks have a gradient. Where
        packed sequences begin is read, and of a cache the lengths and the pages that have a key.
        """
        size = self.torch_dtype.itemsize
        q, out = self.tokens * self.hq * self.d * size, self.tokens * self.hq * self.dv * self.out_dtype.itemsize
        dk_dv = self.b * self.skv * self.hkv * (self.d + self.dv) * size
        k_v = dk_dv // self.skv * self.live_keys
        k_v = k_v // self.b if self.layout == "broadcast" or self.cache is not None else k_v
        beside = self.sq * self.skv if isinstance(self.mask, Boolean) else 0
        beside += (self.alibi + self.sink) * self.hq * HEAD_BYTES
        beside += 0 if self.varlen is None else 2 * (len(self.varlen.queries) + 1) * START_BYTES
        if self.cache is not None:
            pages = 0 if self.cache.page is None else sum(-(-n // self.cache.page) for n in self.cache.lengths)
            beside += (self.b + pages) * START_BYTES
        moved = {"fwd": q + k_v + out + beside}
        moved["bwd"] = (q + k_v + 2 * out + self.tokens * self.hq * LSE_BYTES + beside) + (q + dk_dv)
        moved["bwd"] += self.sink * self.hq * HEAD_BYTES
        moved["fwd+bwd"] = moved["fwd"] + moved["bwd"]
        return moved[pass_]

    def inputs(self, device: torch.device | str, seed: int = 0, requires_grad: bool = False) -> Inputs:
        """Draw q, k, v from N(0, magnitude) and dout from N(0, 1), in float32 on the device.

        The numbers depend on the device's kind, the seed and the sizes; the dtype rounds them, the layout only places
        them (of the broadcast layout's k and v, the first batch is taken for all). So does a cache, in which what is
        behind a length is not a number. What fp8 has no number for becomes its largest.

        Args:
            device: Where the tensors live and are drawn.
            seed: Same seed, same numbers.
            requires_grad: Whether q, k and v are leaves that want gradients.
        """
        generator = torch.Generator(device).manual_seed(seed)

        def draw(s: int, h: int, d: int, deviation: float, dtype: torch.dtype, cached: bool = False) -> torch.Tensor:
            # in float32: on some CPUs the variance of what torch draws in bfloat16 is too small
            normal = torch.randn(self.b, s, h, d, dtype=torch.float32, device=device, generator=generator)
            normal.mul_(deviation)
            if dtype == FP8:
                largest = torch.finfo(dtype).max
                normal.clamp_(-largest, largest)
            return (self.cache.placed(normal) if cached and self.cache is not None else normal).to(dtype)

        q = draw(self.sq, self.hq, self.d, self.magnitude, self.torch_dtype)
        k = draw(self.skv, self.hkv, self.d, self.magnitude, self.torch_dtype, cached=True)
        v = draw(self.skv, self.hkv, self.dv, self.magnitude, self.torch_dtype, cached=True)
        dout = draw(self.sq, self.hq, self.dv, 1.0, self.out_dtype)
        if self.layout == "bhsd":
            q, k, v, dout = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v, dout))
        elif self.layout == "packed":
            q, k, v = torch.cat((q, k, v), dim=2).split((self.hq, self.hkv, self.hkv), dim=2)
        elif self.layout == "padded":
            pad = torch.nn.functional.pad
            q, k, v, dout = (pad(x, (0, PADDING), value=math.nan)[..., :-PADDING] for x in (q, k, v, dout))
        elif self.layout == "broadcast":
            k, v = (x[:1].clone().expand_as(x) for x in (k, v))
        q, k, v = (x.detach().requires_grad_(requires_grad) for x in (q, k, v))
        return Inputs(q, k, v, dout)

    def options(
        self, device: torch.device | str, seed: int = 0, requires_grad: bool = False, kv_head: int | None = None
    ) -> Options:
        """Return what attention is called with beside q, k and v.

        Args:
            device: Where slopes and sinks live.
            seed: Of the sinks, which are drawn from N(0, 1).
            requires_grad: Whether the sinks are a leaf that wants a gradient.
            kv_head: Give slopes and sinks of the query heads that read this key head alone; None is all.
        """
        options: Options = {"mask": self.mask, "scale": self.scale}
        heads = slice(None) if kv_head is None else slice(kv_head * self.group, (kv_head + 1) * self.group)
        if self.softcap is not None:
            options["softcap"] = self.softcap
        if self.alibi:
            options["alibi"] = torch.tensor(slopes(self.hq)[heads], device=device)
        if self.sink:
            logits = torch.randn(self.hq, generator=torch.Generator().manual_seed(seed))[heads]
            options["sink"] = logits.to(device).requires_grad_(requires_grad)
        if self.varlen is not None:
            options["varlen"] = self.varlen
        if self.cache is not None:
            options["lengths"] = torch.tensor(self.cache.lengths, dtype=torch.int32, device=device)
            if self.cache.page is not None:
                options["table"] = self.cache.table(self.skv).to(device)
        return options

    def packed(self, inputs: Inputs) -> tuple[Problem, Inputs]:
        """Return what attention on a cache is by definition: the same sequences, packed; others as they are."""
        if self.cache is None:
            return self, inputs
        k, v = (self.cache.packed(x, self.skv) for x in (inputs.k, inputs.v))
        q, dout = (x.flatten(0, 1)[None] for x in (inputs.q, inputs.dout))
        sq, skv = q.shape[1], k.shape[1]
        mask = packing.cut(self.mask, skv)
        one = dataclasses.replace(
            self, b=1, sq=sq, skv=skv, mask=mask, varlen=self.sequences, cache=None, layout="bshd"
        )
        return one, Inputs(q, k, v, dout)

    def slice(self, batch: int, kv_head: int) -> Problem:
        """Return the problem of one batch and one key head, which is computed from the inputs' slice alone.

        Heads and batches do not depend on each other, so a large problem can be checked exactly on a small part. Slopes
        and sinks belong to heads: those of the part are the whole problem's, ``options(..., kv_head=kv_head)``.

        Raises:
            ValueError: If there is no such batch or head, or a cache, of which `packed` is to be sliced.
        """
        if self.cache is not None:
            raise ValueError(f"what is cached must be packed before it is sliced, got {self.cache}")
        for name, index, size in (("batch", batch, self.b), ("kv_head", kv_head, self.hkv)):
            if not 0 <= index < size:
                raise ValueError(f"{name} must be from 0 to {size - 1}, got {index}")
        return dataclasses.replace(self, b=1, hq=self.group, hkv=1, layout="bshd")


def dtype_of_out(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of out where q, k and v have this one."""
    return torch.bfloat16 if dtype == FP8 else dtype


def slopes(heads: int) -> list[float]:
    """Return ALiBi's slope of each head, as its authors chose them.

    For n heads, a power of two, 2^(-8 / n), 2^(-16 / n), ...; of other numbers those of the power below, and between
    them every second one of twice that power.
    """
    power = 2 ** (heads.bit_length() - 1)
    between = [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return [2 ** (-8 * (i + 1) / power) for i in range(power)] + between
