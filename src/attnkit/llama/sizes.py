"""The sizes that the fused kernels are compiled for, as ``cuda/llama/sizes.cuh`` has them."""

from __future__ import annotations

from dataclasses import dataclass

from attnkit.llama.config import Config

__all__ = ["MAX_SHARED", "Form", "Sizes"]

MAX_SHARED = 232448
"""Bytes of shared memory that a block of a Hopper can have."""
MAX_DEPTH = 16
MAX_HEAD_SPLITS = 128
"""Query heads times splits that a block combines: more take longer to read than they save."""
LANES = 32
WIDE = 8
"""Activations that a lane takes at once."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a block is built.

    Attributes:
        warps: Of a block.
        chunk: Bytes of a row that are asked for at once, a multiple of 512.
        depth: Pairs of chunks that a warp has on their way; None for as many as fit.
        fixed: Activations are fixed-point numbers, of 16 bits, so that int8 weights need not be widened.
    """

    warps: int = 8
    chunk: int = 2048
    depth: int | None = None
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class Sizes:
    """One model for one batch on so many blocks.

    Attributes:
        config: The model.
        int8: Whether the matrices are int8.
        batch: Sequences.
        capacity: Tokens that the cache of a sequence holds.
        blocks: Of a kernel.
        form: How a block is built.

    Raises:
        ValueError: If a block would need more shared memory than there is, or numbers do not fit together.
    """

    config: Config
    int8: bool
    batch: int
    capacity: int
    blocks: int
    form: Form

    def __post_init__(self) -> None:
        if self.form.fixed and not self.int8:
            raise ValueError("fixed-point activations are for int8 weights, got bfloat16")
        if self.depth < 1 or self.shared > MAX_SHARED:
            sizes = f"{self._front} bytes of activations and {max(self.depth, 1)} x {self._slot} of weights"
            raise ValueError(
                f"a block has {MAX_SHARED} bytes of shared memory, got {sizes}: take a smaller batch or form"
            )

    @property
    def threads(self) -> int:
        """Of a block."""
        return LANES * self.form.warps

    @property
    def splits(self) -> int:
        """Parts of a key head's keys: enough for all blocks, but not more than are quickly combined."""
        heads = self.batch * self.config.hkv
        return max(1, min(self.blocks // heads, MAX_HEAD_SPLITS // (self.batch * self.config.hq)))

    @property
    def depth(self) -> int:
        """Pairs of chunks that a warp has on their way."""
        barrier = 8 * self.form.warps
        fit = (MAX_SHARED - self._front - 128) // (self._slot + barrier)
        return self.form.depth or min(fit, MAX_DEPTH)

    @property
    def shared(self) -> int:
        """Bytes of shared memory a block."""
        return self._front + _whole(8 * self.form.warps * self.depth) + self.depth * self._slot

    @property
    def options(self) -> tuple[str, ...]:
        """What the compiler is told."""
        config = self.config
        sizes = {
            "BF16": 1,
            "INT8": int(self.int8),
            "LAYERS": config.layers,
            "HIDDEN": config.hidden,
            "INTERMEDIATE": config.intermediate,
            "HQ": config.hq,
            "HKV": config.hkv,
            "D": config.d,
            "VOCAB": config.vocab,
            "EPSILON": f"{config.epsilon!r}f",
            "BATCH": self.batch,
            "CAPACITY": self.capacity,
            "SPLITS": self.splits,
            "WARPS": self.form.warps,
            "CHUNK": self.form.chunk,
            "DEPTH": self.depth,
            "FIXED": int(self.form.fixed),
        }
        return tuple(f"-D{name}={size}" for name, size in sizes.items())

    @property
    def _slot(self) -> int:
        """Bytes of a pair of chunks for every warp."""
        return self.form.warps * 2 * self.form.chunk

    @property
    def _front(self) -> int:
        """Bytes before the ring and its barriers: activations, or the parts of a softmax; and sums of warps."""
        config = self.config
        widest = max(config.hidden, config.intermediate, config.hq * config.d)
        activations = self.batch * 2 * _whole(widest, 2 * LANES * WIDE)
        parts = self.form.warps * LANES * WIDE // config.d
        return _whole(max(activations, parts * (config.d + 2) * 4)) + 256


def _whole(size: int, unit: int = 128) -> int:
    """The size, rounded up to whole units."""
    return -(-size // unit) * unit
