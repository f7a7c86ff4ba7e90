"""The weights of a Llama: read from a Hugging Face folder, or drawn.

Matrices are ``[rows, columns]`` and multiply from the left, as torch's linear layers have them. `Packed` holds the same
numbers as the fused kernels read them:

- the layers' matrices of one kind under each other in one tensor, so that a kernel finds a layer by counting;
- two rows that one thread needs together beside each other: element i and i + d/2 of a head, which a rotation turns;
  gate and up of the same number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import torch

from attnkit.linear import quantize
from attnkit.llama.config import UNQUANTISED, Config

__all__ = ["KINDS", "Kind", "Layer", "Packed", "Weights", "interleave", "separate"]

Kind = str
KINDS: tuple[Kind, ...] = ("qkv", "out", "gate_up", "down", "head")
"""The matrices of the fused kernels, in the order in which a token meets them."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One block: norms ``[hidden]``, matrices ``[rows, columns]`` as in `Config.shapes`."""

    attention_norm: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    out: torch.Tensor
    mlp_norm: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


HUGGING_FACE = {
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""A field of `Layer` and what Hugging Face calls it."""


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights, in one dtype on one device: embedding and head ``[vocab, hidden]``, norm ``[hidden]``."""

    config: Config
    embedding: torch.Tensor
    layers: tuple[Layer, ...]
    norm: torch.Tensor
    head: torch.Tensor

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Of all weights."""
        return self.embedding.dtype

    @classmethod
    def random(
        cls, config: Config, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16, seed: int = 0
    ) -> Weights:
        """Draw weights for which activations neither grow nor fade: matrices from N(0, 1/columns), norms about 1."""
        device = torch.device(device)
        generator = torch.Generator(device).manual_seed(seed)

        def draw(shape: tuple[int, ...], deviation: float, mean: float = 0.0) -> torch.Tensor:
            # in float32, a matrix at a time: on some CPUs the variance of what torch draws in bfloat16 is too small
            normal = torch.randn(shape, dtype=torch.float32, device=device, generator=generator)
            return normal.mul_(deviation).add_(mean).to(dtype)

        def layer() -> Layer:
            matrices = {name: draw(shape, shape[1] ** -0.5) for name, shape in config.shapes.items() if name != "head"}
            norms = {name: draw((config.hidden,), 0.1, 1.0) for name in ("attention_norm", "mlp_norm")}
            return Layer(**matrices, **norms)

        layers = tuple(layer() for _ in range(config.layers))
        embedding = draw((config.vocab, config.hidden), 1.0)
        head = embedding if config.tied else draw(config.shapes["head"], config.hidden**-0.5)
        return cls(config, embedding, layers, draw((config.hidden,), 0.1, 1.0), head)

    @classmethod
    def from_folder(
        cls, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16
    ) -> Weights:
        """Read a Hugging Face folder: ``config.json`` and ``*.safetensors``, one file or several.

        Raises:
            ImportError: If the package safetensors is missing.
            ValueError: If the folder has no such files, or one is broken, or they lack a weight, or one is quantised or
                has another shape.
        """
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError:
            raise ImportError("reading weights needs the package safetensors: pip install safetensors") from None
        config = Config.from_folder(folder)
        files = sorted(Path(folder).glob("*.safetensors"))
        if not files:
            raise ValueError(f"a Hugging Face folder has *.safetensors, got {str(folder)!r} without one")
        tensors: dict[str, torch.Tensor] = {}
        for path in files:
            try:
                with safe_open(path, framework="pt", device=str(device)) as file:
                    for name in file.keys():  # noqa: SIM118 - not a mapping
                        tensor = file.get_tensor(name)
                        tensors[name] = tensor.to(dtype) if _unquantised(tensor) else tensor
            except SafetensorError as error:
                raise ValueError(f"{path} must be a safetensors file, got {error}: download it again") from None
        return cls.from_state(config, tensors)

    @classmethod
    def from_state(cls, config: Config, tensors: Mapping[str, torch.Tensor]) -> Weights:
        """Take what ``LlamaForCausalLM(...).state_dict()`` gives.

        Raises:
            ValueError: If a weight is missing, is quantised or has another shape.
        """

        def take(name: str, *shape: int) -> torch.Tensor:
            if name not in tensors:
                raise ValueError(f"the weights must have {name!r}, got {len(tensors)} tensors without it")
            if not _unquantised(tensors[name]):
                raise ValueError(
                    f"{name} must be floating point of 16 bits or more, got {tensors[name].dtype}: {UNQUANTISED}"
                )
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"{name} must be {list(shape)} for this config, got {list(tensors[name].shape)}")
            return tensors[name].detach()

        def layer(i: int) -> Layer:
            return Layer(
                **{
                    field: take(f"model.layers.{i}.{name}.weight", *config.shapes.get(field, (config.hidden,)))
                    for field, name in HUGGING_FACE.items()
                }
            )

        embedding = take("model.embed_tokens.weight", config.vocab, config.hidden)
        head = embedding if config.tied else take("lm_head.weight", *config.shapes["head"])
        layers = tuple(layer(i) for i in range(config.layers))
        return cls(config, embedding, layers, take("model.norm.weight", config.hidden), head)

    def state(self) -> dict[str, torch.Tensor]:
        """Return what `from_state` takes: the weights by the names that ``LlamaForCausalLM`` has for them."""
        named = {
            "model.embed_tokens.weight": self.embedding,
            "model.norm.weight": self.norm,
            "lm_head.weight": self.head,
        }
        for i, layer in enumerate(self.layers):
            for field, name in HUGGING_FACE.items():
                named[f"model.layers.{i}.{name}.weight"] = getattr(layer, field)
        return named


def interleave(t: torch.Tensor, heads: int) -> torch.Tensor:
    """``t [heads * d, n]`` with rows i and i + d/2 of each head beside each other."""
    return t.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def separate(t: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo `interleave` on the last dim of ``t [..., heads * d]``: to ``[..., heads, d]``."""
    return t.unflatten(-1, (heads, -1, 2)).transpose(-1, -2).flatten(-2)


@dataclass(frozen=True, slots=True)
class Packed:
    """Weights as the fused kernels read them.

    Attributes:
        config: The sizes.
        matrices: By kind: ``qkv [layers, (hq + 2 hkv) d, hidden]`` with the rows of each head interleaved,
            ``out [layers, hidden, hq d]``, ``gate_up [layers, 2 intermediate, hidden]`` with gate and up in turn,
            ``down [layers, hidden, intermediate]``, ``head [1, vocab, hidden]``. bfloat16, or int8.
        scales: Of int8 matrices, by kind, ``[layers, rows]`` in float32; none for bfloat16.
        embedding: ``[vocab, hidden]``.
        attention_norm: ``[layers, hidden]``.
        mlp_norm: ``[layers, hidden]``.
        norm: ``[hidden]``.
    """

    config: Config
    matrices: dict[Kind, torch.Tensor]
    scales: dict[Kind, torch.Tensor]
    embedding: torch.Tensor
    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor
    norm: torch.Tensor

    @classmethod
    def of(cls, weights: Weights, *, int8: bool = False) -> Packed:
        """Pack weights; with `int8` each row is rounded to 255 levels of its own largest element.

        Raises:
            ValueError: For a dtype other than bfloat16, or with `int8` for weights that are not finite.
        """
        if weights.dtype != torch.bfloat16:
            raise ValueError(f"packed weights are bfloat16, got {weights.dtype}: load the weights in it")
        config = weights.config

        def qkv(layer: Layer) -> torch.Tensor:
            parts = ((layer.q, config.hq), (layer.k, config.hkv), (layer.v, config.hkv))
            return torch.cat([interleave(t, heads) for t, heads in parts])

        def gate_up(layer: Layer) -> torch.Tensor:
            return torch.stack((layer.gate, layer.up), dim=1).flatten(0, 1)

        makers: dict[Kind, Callable[[Layer], torch.Tensor]] = {
            "qkv": qkv,
            "out": attrgetter("out"),
            "gate_up": gate_up,
            "down": attrgetter("down"),
        }
        matrices, scales = {}, {}
        for kind, make in makers.items():
            matrices[kind], scales[kind] = _stack((make(layer) for layer in weights.layers), config.layers, int8)
        matrices["head"], scales["head"] = _stack(iter((weights.head,)), 1, int8)
        return cls(
            config,
            matrices,
            scales if int8 else {},
            weights.embedding.contiguous(),
            torch.stack([layer.attention_norm for layer in weights.layers]),
            torch.stack([layer.mlp_norm for layer in weights.layers]),
            weights.norm.contiguous(),
        )

    @property
    def int8(self) -> bool:
        """Whether the matrices are int8."""
        return bool(self.scales)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    def matrix(self, kind: Kind, layer: int, dtype: torch.dtype) -> torch.Tensor:
        """Return one matrix ``[rows, columns]`` in a dtype: as it is, or made from int8."""
        matrix = self.matrices[kind][layer]
        if self.int8:
            matrix = matrix * self.scales[kind][layer][:, None]
        return matrix.to(dtype)

    def unpacked(self, dtype: torch.dtype) -> Weights:
        """Return the weights that these stand for: with int8 those that it rounded to."""
        config = self.config
        heads = (config.hq, config.hkv, config.hkv)

        def layer(i: int) -> Layer:
            parts = self.matrix("qkv", i, dtype).split([h * config.d for h in heads])
            q, k, v = (separate(part.mT, h).flatten(1).mT for part, h in zip(parts, heads, strict=True))
            gate, up = self.matrix("gate_up", i, dtype).unflatten(0, (-1, 2)).unbind(1)
            return Layer(
                attention_norm=self.attention_norm[i].to(dtype),
                q=q,
                k=k,
                v=v,
                out=self.matrix("out", i, dtype),
                mlp_norm=self.mlp_norm[i].to(dtype),
                gate=gate,
                up=up,
                down=self.matrix("down", i, dtype),
            )

        layers = tuple(layer(i) for i in range(config.layers))
        head = self.matrix("head", 0, dtype)
        return Weights(config, self.embedding.to(dtype), layers, self.norm.to(dtype), head)


def _unquantised(tensor: torch.Tensor) -> bool:
    """Say whether a tensor's numbers are the weights: integers and float8 need a scale."""
    return tensor.is_floating_point() and tensor.itemsize > 1


def _stack(matrices: Iterator[torch.Tensor], layers: int, int8: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack matrices as they come, so that only one of them is there twice."""
    first = next(matrices)
    dtype = torch.int8 if int8 else first.dtype
    stacked = torch.empty((layers, *first.shape), dtype=dtype, device=first.device)
    scales = torch.ones(stacked.shape[:2], dtype=torch.float32, device=first.device)
    for i, matrix in enumerate(itertools.chain((first,), matrices)):
        if int8:
            stacked[i], scales[i] = quantize(matrix)
        else:
            stacked[i] = matrix
    return stacked, scales
