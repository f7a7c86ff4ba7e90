"""vLLM as a decoder: an engine that is asked for tokens, not for steps.

- `Vllm.step` counts what is owed; whoever looks at the tokens has the engine make all of them, in one call of
  ``LLM.generate``. So it may prepare a step while the device is at the one before, as it does for anyone.
- Going back is a new request, the context of which the engine finds in its prefix cache: from a context of whole blocks
  it reads the newest token alone, as every other decoder does. Each call looks at how much was found; less than all
  whole blocks is an error. That it takes up the requests, and hashes their blocks, is in the time of a case once.
- It has the same weights as all others: it draws its own, and is handed ours in their place, on the device. So its
  logits are held to the truth as all others' are. It gives them only where it is asked for all of them; such calls take
  long and are not timed.
- It runs in this process. In one of its own, which is its default, it could not be handed tensors, and no event of this
  process's streams would see its work.
- There is one engine at a time, for all sizes: it takes long to start, and its memory is never given back.

Greedy. Tokens are on the host, where the engine leaves them.
"""

from __future__ import annotations

import functools
import os
import tempfile
from typing import Any

import torch

from attnkit.llama import Weights
from attnkit.llama.decoder import check_prompt, check_rewind, check_room
from perf.peers.huggingface import of_transformers

__all__ = ["Vllm"]

BLOCK = 16
"""Tokens of a block of the cache; what is reused are whole blocks."""
SEQUENCES, TOKENS = 64, 32768
"""Sequences at most, and tokens that the caches of all of them hold."""
ROOM = 6 * 2**30
"""Bytes for what is neither weight nor cache."""


@functools.lru_cache(maxsize=1)
def engine(weights: Weights) -> Any:
    """vLLM's ``LLM`` with these weights."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # it has no other switch for this
    from vllm import LLM

    config = weights.config
    cache = 2 * config.layers * config.hkv * config.d * weights.dtype.itemsize * TOKENS
    needed = sum(weight.nbytes for weight in weights.state().values()) + cache + ROOM
    with tempfile.TemporaryDirectory() as folder:
        of_transformers(config, tied=False, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
        llm = LLM(
            folder,
            dtype=str(weights.dtype).removeprefix("torch."),
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=config.positions,
            max_num_seqs=SEQUENCES,
            gpu_memory_utilization=needed / torch.cuda.get_device_properties(weights.device).total_memory,
            enable_prefix_caching=True,
            block_size=BLOCK,
            max_logprobs=-1,
            logprobs_mode="raw_logits",
        )
    llm.apply_model(lambda model: model.load_weights(weights.state().items()))
    return llm


class Vllm:
    """A decoder of which the engine does the steps when their outcome is looked at."""

    def __init__(self, weights: Weights, batch: int, capacity: int) -> None:
        """Start the engine, if there is none of these weights.

        Raises:
            ValueError: If there are more sequences or tokens than the engine is set up for.
        """
        if batch > SEQUENCES or batch * (capacity + BLOCK) > TOKENS:
            raise ValueError(
                f"vLLM is set up for {SEQUENCES} sequences and {TOKENS} tokens, got {batch} of {capacity} tokens each"
            )
        self.batch, self.capacity, self.length = batch, capacity, 0
        self.llm = engine(weights)
        self._like = weights.norm.new_zeros((batch, weights.config.vocab), dtype=torch.float32)
        self._tokens = torch.zeros((batch, capacity + 1), dtype=torch.int64)
        self._known = 0
        self._returned = False

    def prefill(self, prompt: torch.Tensor) -> None:
        """Take a prompt."""
        check_prompt(self, prompt)
        self.length = self._known = prompt.shape[1]
        self._tokens[:, : self.length] = prompt
        self._returned = False

    def step(self) -> None:
        """Owe one token more."""
        check_room(self)
        self.length += 1

    def rewind(self, length: int) -> None:
        """Go back."""
        check_rewind(self, length)
        self._know(length + 1)
        self.length, self._known = length, length + 1
        self._returned = True

    @property
    def tokens(self) -> torch.Tensor:
        """The prompt and all that was chosen since, which the engine now does."""
        self._know(self.length + 1)
        return self._tokens

    @property
    def logits(self) -> torch.Tensor:
        """Of the token that comes next, for which the engine reads the newest one again; zeros without a prompt."""
        if not self.length:
            return self._like
        self._know(self.length)
        for row, answer in zip(self._like, self._ask(self.length, 1, logprobs=-1), strict=True):
            found = answer.outputs[0].logprobs[0]
            row[list(found)] = torch.tensor([entry.logprob for entry in found.values()], device=row.device)
        return self._like

    def _know(self, count: int) -> None:
        """Have the engine make the tokens that are missing of the first so many."""
        if 0 < self._known < count:
            answers = self._ask(self._known, count - self._known)
            self._tokens[:, self._known : count] = torch.tensor([answer.outputs[0].token_ids for answer in answers])
            self._known = count

    def _ask(self, length: int, count: int, **options: Any) -> Any:
        """Continue the first so many tokens of each sequence by `count` others."""
        from vllm import SamplingParams

        # a capture that failed within the engine would leave it with half a step
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("an engine decides on the host what comes next: no graph can hold that")
        prompts = [{"prompt_token_ids": row} for row in self._tokens[:, :length].tolist()]
        asked = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False, **options)
        answers = self.llm.generate(prompts, asked, use_tqdm=False)
        cached = min(answer.num_cached_tokens or 0 for answer in answers)
        if self._returned and cached < (length - 1) // BLOCK * BLOCK:
            raise RuntimeError(
                f"vLLM had {cached} tokens of {length} in its cache: it would be timed at reading others"
            )
        return answers
