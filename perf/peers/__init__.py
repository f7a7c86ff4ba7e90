"""How others decode a Llama, as decoders that the ladder is timed beside.

compiled            a decoder as gpt-fast writes it: static cache, fused projections, torch.compile with CUDA graphs
compiled_int8       the same with int8 weights, a scale a row: the compiler converts them as they are read
transformers        LlamaForCausalLM with a static cache, its forward compiled likewise
bitsandbytes_int8   the same with Linear8bitLt for linear layers
torchao_int8        the same with torchao's int8 weights
vllm                vLLM, asked for many tokens at once

A name ends with ``_int8`` if its weights are int8. Importing this needs torch alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch

from attnkit.llama import Decoder, Weights
from attnkit.product import Rejects
from attnkit.products import bitsandbytes_product, torchao_product
from perf.peers.compiled import Compiled, CompiledInt8, RoundedInt8
from perf.peers.huggingface import BitsandbytesInt8, TorchaoInt8, Transformers, of_transformers
from perf.peers.vllm_engine import Vllm

__all__ = [
    "PEERS",
    "BitsandbytesInt8",
    "Compiled",
    "CompiledInt8",
    "Peer",
    "RoundedInt8",
    "TorchaoInt8",
    "Transformers",
    "Vllm",
    "of_transformers",
]


@dataclass(frozen=True, slots=True)
class Peer:
    """A way to decode that is not ours.

    Attributes:
        build: Makes a decoder for weights, a batch and a capacity.
        absent: Why it cannot decode these weights here, or None.
        int8: Whether it rounds the weights to int8.
        rounded: Whether it rounds what they multiply to int8, too.
    """

    build: Callable[[Weights, int, int], Decoder]
    absent: Callable[[Weights], str | None]
    int8: bool = False
    rounded: bool = False


def _needs_cuda(weights: Weights) -> str | None:
    """Say that compilation is for a GPU: on a CPU it takes longer than all that is timed there."""
    return None if weights.device.type == "cuda" else f"is compiled for a CUDA device, got {weights.device.type}"


def _needs_transformers(weights: Weights) -> str | None:
    if importlib.util.find_spec("transformers") is None:
        return "the package transformers is not installed: pip install transformers"
    if weights.config.rope_scaling is not None:
        return "is set up for unscaled rotations"
    return _needs_cuda(weights)


def _needs_product(rejects: Rejects) -> Callable[[Weights], str | None]:
    """What transformers needs, and a product that takes such activations and int8 weights."""

    def absent(weights: Weights) -> str | None:
        x = torch.empty(1, 16, dtype=weights.dtype)
        matrix, scale = torch.empty(16, 16, dtype=torch.int8), torch.empty(16)
        return rejects(x, matrix, scale, None) or _needs_transformers(weights)

    return absent


def _needs_vllm(weights: Weights) -> str | None:
    for package in ("vllm", "transformers"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed: pip install {package}"
    return _needs_cuda(weights)


PEERS = {
    "compiled": Peer(Compiled, _needs_cuda),
    "compiled_int8": Peer(CompiledInt8, _needs_cuda, int8=True),
    "transformers": Peer(Transformers, _needs_transformers),
    "bitsandbytes_int8": Peer(BitsandbytesInt8, _needs_product(bitsandbytes_product.rejects), int8=True, rounded=True),
    "torchao_int8": Peer(TorchaoInt8, _needs_product(torchao_product.rejects), int8=True),
    "vllm": Peer(Vllm, _needs_vllm),
}
