"""Llama decoding as a ladder: from matrix products and a softmax up to the limit of memory."""

from attnkit.llama.config import LLAMA_2_7B, LLAMA_2_13B, LLAMA_3_8B, Config, RopeScaling
from attnkit.llama.decoder import Decoder, generate, stream
from attnkit.llama.ladder import BATCHED, LADDER, Model, Rung, build, rung
from attnkit.llama.plain import Plain
from attnkit.llama.sampling import GREEDY, Sampling
from attnkit.llama.text import Tokenizer, write
from attnkit.llama.weights import Packed, Weights

__all__ = [
    "BATCHED",
    "GREEDY",
    "LADDER",
    "LLAMA_2_7B",
    "LLAMA_2_13B",
    "LLAMA_3_8B",
    "Config",
    "Decoder",
    "Model",
    "Packed",
    "Plain",
    "RopeScaling",
    "Rung",
    "Sampling",
    "Tokenizer",
    "Weights",
    "build",
    "generate",
    "rung",
    "stream",
    "write",
]
