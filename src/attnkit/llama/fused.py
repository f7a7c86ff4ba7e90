"""Decoding by a few fused CUDA kernels a layer, or by one kernel a token: the ladder's upper rungs.

The kernels are cuda/llama_stages.cu and cuda/llama_persistent.cu; what a stage is and what it fuses is told in
cuda/llama/stages.cuh, how weights arrive in cuda/llama/stream.cuh. All sizes are known when they are compiled. They
need a Hopper or later (bulk copies), bfloat16 weights or int8 ones, and at most four sequences: for more, matrix
products on the tensor cores are the better way.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch.nn.functional import linear, silu

from attnkit import nvrtc
from attnkit.llama import rotation
from attnkit.llama.config import Config
from attnkit.llama.decoder import check_prompt, check_rewind, check_room
from attnkit.llama.plain import rmsnorm
from attnkit.llama.sampling import GREEDY, Sampling, pick
from attnkit.llama.sizes import Form, Sizes
from attnkit.llama.weights import KINDS, Kind, Packed, separate
from attnkit.products import choose
from attnkit.variant import Attention

__all__ = ["FORMS", "MAX_BATCH", "SOURCES", "Fused", "Launch", "rejects"]

STAGES = ("qkv_kernel", "attend_kernel", "out_kernel", "gate_up_kernel", "down_kernel")
"""The kernels of a layer, in their order."""

MAX_BATCH = 4
Launch = Literal["stages", "overlapped", "persistent"]
"""How a token's stages become kernels: one after the other; one each, but begun early; one kernel for all of them."""

SOURCES: dict[Launch, tuple[Path, tuple[str, ...]]] = {
    "stages": (nvrtc.SOURCES / "llama_stages.cu", ("embed_kernel", *STAGES, "head_kernel", "choose_kernel")),
    "persistent": (nvrtc.SOURCES / "llama_persistent.cu", ("decode",)),
}
SOURCES["overlapped"] = SOURCES["stages"]


FORMS: dict[Launch, Form] = {"stages": Form(), "overlapped": Form(depth=2), "persistent": Form()}
"""A block has all of a processor's shared memory; but half of it where the next kernel's is to begin beside it."""


ADDRESSED = (
    *(f"{kind}_weights" for kind in KINDS),
    *(f"{kind}_scales" for kind in KINDS),
    *("attention_norm", "mlp_norm", "norm", "embedding", "turns", "k_cache", "v_cache"),
    *("x", "q", "partial", "stats", "gated", "logits", "best", "tokens", "position", "meeting"),
)
"""The tensors that kernels find by ``Model`` of sizes.cuh, in its order."""


class Addresses(ctypes.Structure):
    """``Model`` of sizes.cuh."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ADDRESSED)


class Draw(ctypes.Structure):
    """``Sampling`` of sizes.cuh."""

    _fields_ = (("temperature", ctypes.c_float), ("seed", ctypes.c_uint32))


class Compile(Protocol):
    """`attnkit.nvrtc.compile`, or what stands in for it."""

    def __call__(
        self, source: Path, kernels: Sequence[str], options: Sequence[str] = (), device: torch.device | None = None
    ) -> Mapping[str, Callable[..., None]]:
        """Compile and load."""
        ...


def rejects(config: Config, batch: int, device: torch.device) -> str | None:
    """Say why the fused kernels cannot decode this model, for so many sequences, on this device."""
    if batch > MAX_BATCH:
        return f"the batch must be at most {MAX_BATCH}, got {batch}: take a rung of matrix products"
    if config.d not in (16, 32, 64, 128, 256):
        return f"d must be a power of two from 16 to 256, got {config.d}"
    widths = {"hidden": config.hidden, "intermediate": config.intermediate, "hq * d": config.hq * config.d}
    for name, width in widths.items():
        if width % 16:
            raise_to = -(-width // 16) * 16
            return f"{name} must be a multiple of 16, got {width}: pad it to {raise_to}"
    if config.vocab % 2:
        return f"vocab must be even, got {config.vocab}"
    if device.type != "cuda":
        return f"runs on a CUDA device, got {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 9:
        return f"needs compute capability 9.0 or later, got {major}.{minor}"
    return nvrtc.absent()


class Fused:
    """A decoder of fused kernels; its attributes are those of `Decoder`."""

    def __init__(
        self,
        weights: Packed,
        batch: int,
        capacity: int,
        *,
        prefill: Attention,
        launch: Launch = "stages",
        sampling: Sampling = GREEDY,
        form: Form | None = None,
        blocks: int | None = None,
        compile: Compile = nvrtc.compile,
    ) -> None:
        """Compile the kernels and allocate what they share.

        Args:
            weights: In bfloat16 or int8.
            batch: Sequences, at most 4.
            capacity: Tokens that the cache of a sequence holds.
            prefill: Attention of the prompt: the call of a variant.
            launch: How stages become kernels.
            sampling: How the next token is chosen.
            form: What is compiled, in place of the launch's own.
            blocks: Of a kernel: the device's multiprocessors unless given.
            compile: Makes the kernels.

        Raises:
            ValueError: If the model has fewer positions than the capacity.
        """
        config, device = weights.config, weights.device
        if not 1 <= capacity <= config.positions:
            raise ValueError(f"capacity must be from 1 to the model's {config.positions} positions, got {capacity}")
        self.weights, self.batch, self.capacity = weights, batch, capacity
        self.prefill_attention, self.launch, self.sampling = prefill, launch, sampling
        blocks = blocks or torch.cuda.get_device_properties(device).multi_processor_count
        self.sizes = Sizes(config, weights.int8, batch, capacity, blocks, form or FORMS[launch])
        self.kernels = compile(*SOURCES[launch], self.sizes.options, device)
        self._allocate()
        self.length = 0
        self._draw = Draw(sampling.temperature, sampling.seed)

    def _allocate(self) -> None:
        """Allocate what stages leave for each other, and list every address."""
        weights, config, batch, device = self.weights, self.weights.config, self.batch, self.weights.device

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        cache = (config.layers, batch, self.capacity, config.hkv, config.d)
        self.turns = rotation.table(config, self.capacity, device)
        self.k_cache, self.v_cache = empty(*cache, dtype=torch.bfloat16), empty(*cache, dtype=torch.bfloat16)
        self.logits = empty(batch, config.vocab)
        self.tokens = empty(batch, self.capacity + 1, dtype=torch.int32)
        self.position = empty(1, dtype=torch.int32)
        self.meeting = empty(2, dtype=torch.int32)
        self._tensors = {
            **{f"{kind}_weights": weights.matrices[kind] for kind in KINDS},
            **{f"{kind}_scales": weights.scales.get(kind, empty(1)) for kind in KINDS},
            "attention_norm": weights.attention_norm,
            "mlp_norm": weights.mlp_norm,
            "norm": weights.norm,
            "embedding": weights.embedding,
            "turns": self.turns,
            "k_cache": self.k_cache,
            "v_cache": self.v_cache,
            "x": empty(batch, config.hidden),
            "q": empty(batch, config.hq, config.d),
            "partial": empty(batch, config.hq, self.sizes.splits, config.d),
            "stats": empty(batch, config.hq, self.sizes.splits, 2),
            "gated": empty(batch, config.intermediate, dtype=torch.bfloat16),
            "logits": self.logits,
            "best": empty(self.sizes.blocks, self.sizes.form.warps, batch, dtype=torch.int64),
            "tokens": self.tokens,
            "position": self.position,
            "meeting": self.meeting,
        }
        self._model = Addresses(**{name: tensor.data_ptr() for name, tensor in self._tensors.items()})

    @torch.no_grad()
    def prefill(self, prompt: torch.Tensor) -> None:
        """Read ``prompt [batch, s]`` from an empty cache; leave its logits, and the first token chosen from them."""
        check_prompt(self, prompt)
        self.length = prompt.shape[1]
        self.tokens[:, : self.length] = prompt
        self.meeting.zero_()
        self.logits.copy_(self._read(prompt.to(self.tokens.device)))
        self.position.fill_(self.length - 1)
        chosen = pick(self.logits, self.sampling, self.position)
        self.tokens[:, self.length] = chosen
        self.position.fill_(self.length)

    def step(self) -> None:
        """Read the newest token; leave its logits, and the next token chosen from them."""
        check_room(self)
        self.length += 1
        self.enqueue()

    def rewind(self, length: int) -> None:
        """Forget what was read after the first `length` tokens; the next step reads the token after them again."""
        check_rewind(self, length)
        self.length = length
        self.position.fill_(length)

    def enqueue(self) -> None:
        """Launch the kernels of one token, which count for themselves: a graph can capture this."""
        if self.launch == "persistent":
            self._run("decode", 1, together=True)
            return
        self._run("embed_kernel", 0)
        for layer in range(self.weights.config.layers):
            for stage in STAGES:
                self._run(stage, layer)
        self._run("head_kernel", 0)
        self._run("choose_kernel", self.sizes.blocks, blocks=1)

    def _run(self, name: str, number: int, blocks: int | None = None, together: bool = False) -> None:
        self.kernels[name](
            blocks or self.sizes.blocks,
            self.sizes.threads,
            self._model,
            number,
            self._draw,
            shared=self.sizes.shared,
            overlap=self.launch == "overlapped",
            together=together,
        )

    def _read(self, prompt: torch.Tensor) -> torch.Tensor:
        """Read ``prompt [b, s]`` into the cache by matrix products on the packed weights, to logits ``[b, vocab]``."""
        weights, config = self.weights, self.weights.config
        heads = (config.hq, config.hkv, config.hkv)
        turns = self.turns[: prompt.shape[1]]
        x = weights.embedding[prompt]  # [b, s, hidden]
        for i in range(config.layers):
            n = rmsnorm(x, weights.attention_norm[i], config.epsilon)
            parts = self._product(n, "qkv", i).split([h * config.d for h in heads], dim=-1)
            q, k, v = (separate(part, h) for part, h in zip(parts, heads, strict=True))
            q, k = rotation.rotate(q, turns), rotation.rotate(k, turns)
            self.k_cache[i, :, : prompt.shape[1]] = k
            self.v_cache[i, :, : prompt.shape[1]] = v
            a = self.prefill_attention(q, k, v, mask="causal")
            x = x + self._product(a.flatten(2), "out", i)
            n = rmsnorm(x, weights.mlp_norm[i], config.epsilon)
            gate, up = self._product(n, "gate_up", i).unflatten(-1, (-1, 2)).unbind(-1)
            x = x + self._product(silu(gate) * up, "down", i)
        return self._product(rmsnorm(x[:, -1], weights.norm, config.epsilon), "head", 0).float()

    def _product(self, x: torch.Tensor, kind: Kind, layer: int) -> torch.Tensor:
        """``x [..., columns]`` times a matrix ``[rows, columns]`` transposed; int8 is widened inside the product."""
        matrix = self.weights.matrices[kind][layer]
        if not self.weights.int8:
            return linear(x, matrix)
        rows, scale = x.flatten(0, -2), self.weights.scales[kind][layer]
        return choose(rows, matrix, scale).multiply(rows, matrix, scale).unflatten(0, x.shape[:-1])
