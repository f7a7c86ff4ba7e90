"""The shape of a Llama: what its weights are, and how many bytes a token has to read.

A decoder of `layers` blocks over a residual stream of `hidden` numbers a token (Touvron et al., Llama 2, 2023):

    x = embedding[token]
    x = x + Wo · attention(rope(Wq n), rope(Wk n), Wv n)          n = rmsnorm(x)
    x = x + Wdown · (silu(Wgate n) * (Wup n))                      n = rmsnorm(x)
    logits = Whead · rmsnorm(x)

Letters as everywhere: hq query heads and hkv key heads of width d. Knows nothing of tensors and devices.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["LLAMA_2_7B", "LLAMA_2_13B", "LLAMA_3_8B", "Config", "RopeScaling", "read"]

UNQUANTISED = "load the unquantised checkpoint, of which the rungs named _int8 make int8 weights themselves"
"""What to do about weights that somebody else has quantised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama 3.1's longer wavelengths: slow rotations are slowed by `factor`, fast ones kept, those between blended.

    Attributes:
        factor: How much slower the slow ones get.
        low: Rotations within `original` positions up to which a wavelength is slow.
        high: Rotations within `original` positions from which a wavelength is fast.
        original: Positions of the first training.
    """

    factor: float
    low: float
    high: float
    original: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The sizes of a Llama.

    Attributes:
        hidden: Width of the residual stream.
        intermediate: Width between the gate and the down projection.
        layers: Blocks.
        hq: Query heads.
        hkv: Key heads; `hq` unless given. It divides `hq`.
        d: Width of a head; ``hidden / hq`` unless given.
        vocab: Tokens that there are.
        positions: Longest context.
        rope_theta: Base of the rotations' wavelengths.
        rope_scaling: Llama 3.1's, or None.
        epsilon: What rmsnorm adds to the mean square.
        tied: Whether the head is the embedding.

    Raises:
        ValueError: For what is no Llama.
    """

    hidden: int
    intermediate: int
    layers: int
    hq: int
    hkv: int = None  # type: ignore[assignment]  # filled in __post_init__, as is d
    d: int = None  # type: ignore[assignment]
    vocab: int
    positions: int = 4096
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    epsilon: float = 1e-5
    tied: bool = False

    def __post_init__(self) -> None:
        if self.hkv is None:
            object.__setattr__(self, "hkv", self.hq)
        for name in ("hidden", "intermediate", "layers", "hq", "hkv", "vocab", "positions"):
            _size(name, getattr(self, name))
        if self.d is None:
            object.__setattr__(self, "d", self.hidden // self.hq)
        _size("d", self.d)
        if self.hq % self.hkv:
            raise ValueError(f"hkv must divide hq, got hq={self.hq} and hkv={self.hkv}")
        if self.d % 2:
            raise ValueError(f"d must be even, for rotations turn pairs, got {self.d}")
        for name in ("rope_theta", "epsilon"):
            _positive(name, getattr(self, name))

    @classmethod
    def from_folder(cls, folder: str | Path) -> Config:
        """Read ``config.json`` of a Hugging Face folder.

        Raises:
            ValueError: If there is none, or for what `from_dict` refuses.
        """
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise ValueError(f"a Hugging Face folder has a config.json, got {str(folder)!r} without one")
        return cls.from_dict(read(path))

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Config:
        """Take what Hugging Face calls a ``LlamaConfig``, as the dictionary that its JSON is.

        Raises:
            ValueError: If it is of another architecture, of quantised weights or of a rotation that is not known here,
                or if something in it is not what it should be.
        """
        if found.get("model_type") != "llama":
            raise ValueError(f"model_type must be 'llama', got {found.get('model_type')!r}")
        for name, only in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
            if found.get(name, only) != only:
                raise ValueError(f"{name} must be {only!r}, got {found[name]!r}: such models are not known here")
        if (quantised := found.get("quantization_config")) is not None:
            method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
            raise ValueError(f"a Llama's config must have no quantization_config, got one of {method!r}: {UNQUANTISED}")
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
            if name not in found:
                raise ValueError(f"a Llama's config must have {name!r}, got one without it")
        # since transformers 5 all of the rotation is in one dictionary; before, theta lay beside it
        place = "rope_parameters" if found.get("rope_parameters") else "rope_scaling"
        rope = found.get(place) or {}
        if not isinstance(rope, dict):
            raise ValueError(f"{place} must be an object, got {rope!r}")
        tied = _given(found, "tie_word_embeddings", False)
        if not isinstance(tied, bool):
            raise ValueError(f"tie_word_embeddings must be true or false, got {tied!r}")

        def size(name: str, default: int | None = None) -> int:
            return _size(name, _given(found, name, default))

        hidden, hq = size("hidden_size"), size("num_attention_heads")
        return cls(
            hidden=hidden,
            intermediate=size("intermediate_size"),
            layers=size("num_hidden_layers"),
            hq=hq,
            hkv=size("num_key_value_heads", hq),
            d=size("head_dim", hidden // hq),
            vocab=size("vocab_size"),
            positions=size("max_position_embeddings", 2048),
            rope_theta=_positive("rope_theta", _given(rope, "rope_theta", _given(found, "rope_theta", 10000.0))),
            rope_scaling=_scaling(rope),
            epsilon=_positive("rms_norm_eps", _given(found, "rms_norm_eps", 1e-6)),
            tied=tied,
        )

    @property
    def group(self) -> int:
        """Query heads that read one key head."""
        return self.hq // self.hkv

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of a block's matrices, and of the head."""
        return {
            "q": (self.hq * self.d, self.hidden),
            "k": (self.hkv * self.d, self.hidden),
            "v": (self.hkv * self.d, self.hidden),
            "out": (self.hidden, self.hq * self.d),
            "gate": (self.intermediate, self.hidden),
            "up": (self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
            "head": (self.vocab, self.hidden),
        }

    @property
    def streamed(self) -> int:
        """Elements of the matrices that every token reads: all but the embedding."""
        sizes = {name: rows * columns for name, (rows, columns) in self.shapes.items()}
        head = sizes.pop("head")
        return self.layers * sum(sizes.values()) + head

    def bytes_per_token(self, context: float, batch: int = 1, weight_bytes: int = 2, cache_bytes: int = 2) -> float:
        """Return the least bytes that decoding one token for each of a batch reads: matrices once, every cache once.

        Args:
            context: Keys that a sequence attends to, itself among them; a mean over tokens may be given.
            batch: Sequences.
            weight_bytes: Of an element of a matrix: 2 for bf16, 1 for int8 (whose scales count four a row).
            cache_bytes: Of an element of the cache.
        """
        rows = self.layers * sum(r for name, (r, _) in self.shapes.items() if name != "head") + self.vocab
        scales = 4 * rows if weight_bytes == 1 else 0
        cache = 2 * self.layers * self.hkv * self.d * cache_bytes * context * batch
        return self.streamed * weight_bytes + scales + cache


def read(path: Path) -> dict[str, Any]:
    """Return what a JSON file of a Hugging Face folder holds.

    Raises:
        ValueError: If it is not JSON, or not an object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, got {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object, got a {type(found).__name__}")
    return found


def _scaling(rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"rope_type must be 'default' or 'llama3', got {kind!r}: other rotations are not known here")
    factor, low, high = (_positive(name, rope.get(name)) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    if low >= high:
        raise ValueError(f"low_freq_factor must be below high_freq_factor, got {low} and {high}")
    name = "original_max_position_embeddings"
    return RopeScaling(factor=factor, low=low, high=high, original=_size(name, rope.get(name)))


def _given(found: dict[str, Any], name: str, default: object) -> Any:
    """Return what is under a name, or the default where there is nothing or null."""
    value = found.get(name)
    return default if value is None else value


def _size(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def _positive(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be finite and positive, got {value!r}")
    return float(value)


LLAMA_2_7B = Config(hidden=4096, intermediate=11008, layers=32, hq=32, vocab=32000)
LLAMA_2_13B = Config(hidden=5120, intermediate=13824, layers=40, hq=40, vocab=32000)
LLAMA_3_8B = Config(
    hidden=4096, intermediate=14336, layers=32, hq=32, hkv=8, vocab=128256, positions=8192, rope_theta=500000.0
)
