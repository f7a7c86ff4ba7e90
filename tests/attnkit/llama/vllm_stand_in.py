"""What the adapter uses of vLLM, by vLLM's own signatures, computed by the ladder's first rung.

It is as strict as vLLM about what would go wrong there: options that there are not, text without a tokenizer, more
tokens than a model has positions, all logits where their number is capped. Its prefix cache holds whole blocks of what
was read, and like vLLM's leaves at least one token of a prompt to read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from attnkit.llama import Config, Model, Weights, build
from attnkit.llama.ladder import MATMUL

ENGINE_ARGS = {
    "load_format", "max_model_len", "max_num_seqs", "enable_prefix_caching", "block_size", "max_logprobs",
    "logprobs_mode",
}  # fmt: skip
"""Those that the adapter may give and ``LLM.__init__`` passes on."""


@dataclass
class SamplingParams:
    """vLLM's, as far as the adapter could want it."""

    n: int = 1
    temperature: float = 1.0
    seed: int | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    detokenize: bool = True


class LlamaForCausalLM:
    """The model inside: it can be given weights by Hugging Face's names."""

    def __init__(self, config: Config) -> None:
        self.config, self.weights = config, Weights.random(config, dtype=torch.float32, seed=7)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        loaded = dict(weights)
        self.weights = Weights.from_state(self.config, loaded)
        return set(loaded)


class LLM:
    """vLLM's entry point.

    Attributes:
        calls: Of each call of `generate` the prompt's tokens, and those asked for.
    """

    def __init__(
        self,
        model: str,
        *,
        runner: str = "auto",
        tokenizer: str | None = None,
        skip_tokenizer_init: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        quantization: str | None = None,
        seed: int = 0,
        gpu_memory_utilization: float = 0.9,
        enforce_eager: bool = False,
        kv_cache_memory_bytes: int | None = None,
        compilation_config: Any = None,
        **kwargs: Any,
    ) -> None:
        assert set(kwargs) <= ENGINE_ARGS, set(kwargs) - ENGINE_ARGS
        assert json.loads((Path(model) / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
        assert kwargs["load_format"] == "dummy", "the folder has no weights"
        assert 0 < gpu_memory_utilization <= 1
        self.inside = LlamaForCausalLM(Config.from_folder(model))
        self.tokenizer = not skip_tokenizer_init
        self.options = {"max_logprobs": 20, "logprobs_mode": "raw_logprobs", "block_size": 16, "dtype": dtype, **kwargs}
        self.eager, self.memory = enforce_eager, gpu_memory_utilization
        self.cached: set[tuple[int, ...]] = set()
        self.calls: list[tuple[int, int]] = []

    def apply_model(self, func: Callable[[Any], Any]) -> list[Any]:
        return [func(self.inside)]

    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        sampling_params: SamplingParams | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: Any = None,
        priority: list[int] | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        asked = sampling_params or SamplingParams()
        assert asked.max_tokens
        assert self.tokenizer or not asked.detokenize
        assert asked.temperature == 0, "only what is greedy has one answer"
        self.calls.append((len(prompts[0]["prompt_token_ids"]), asked.max_tokens))
        return [self._answer(prompt["prompt_token_ids"], asked) for prompt in prompts]

    def _answer(self, prompt: list[int], asked: SamplingParams) -> Any:
        assert prompt
        assert all(isinstance(token, int) for token in prompt)
        assert len(prompt) + asked.max_tokens <= self.options["max_model_len"]
        cached = self._cached(prompt)
        decoder = build(MATMUL, Model(self.inside.weights), batch=1, capacity=len(prompt) + asked.max_tokens)
        decoder.prefill(torch.tensor([prompt]))
        logprobs = None if asked.logprobs is None else [self._logprobs(decoder.logits[0], asked.logprobs)]
        for _ in range(asked.max_tokens - 1):
            decoder.step()
            if logprobs is not None:
                logprobs.append(self._logprobs(decoder.logits[0], asked.logprobs))
        text = decoder.tokens[0, : len(prompt) + asked.max_tokens].tolist()
        block = self.options["block_size"]
        read = len(text) - 1
        self.cached |= {tuple(text[:end]) for end in range(block, read + 1, block)}
        output = SimpleNamespace(index=0, token_ids=text[len(prompt) :], logprobs=logprobs)
        return SimpleNamespace(prompt_token_ids=prompt, outputs=[output], finished=True, num_cached_tokens=cached)

    def _cached(self, prompt: list[int]) -> int:
        block, found = self.options["block_size"], 0
        if self.options["enable_prefix_caching"]:
            while found + block < len(prompt) and tuple(prompt[: found + block]) in self.cached:
                found += block
        return found

    def _logprobs(self, logits: torch.Tensor, count: int | None) -> dict[int, Any]:
        assert count == -1, "all of them, or they are not logits"
        assert self.options["max_logprobs"] == -1
        raw = self.options["logprobs_mode"] == "raw_logits"
        values = logits if raw else logits.log_softmax(-1)
        order = values.argsort(descending=True).tolist()  # as vLLM has them: the likeliest first
        return {i: SimpleNamespace(logprob=values[i].item(), rank=n + 1) for n, i in enumerate(order)}
