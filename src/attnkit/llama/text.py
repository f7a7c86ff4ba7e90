"""Text in and text out: the tokenizer of a Hugging Face folder, and what a decoder writes, as it writes it.

    tokenizer = Tokenizer.from_folder(folder)
    decoder = build(rung("persistent"), Model(Weights.from_folder(folder, "cuda")), batch=1, capacity=1024)
    for piece in write(decoder, tokenizer, "Once upon a time", 128):
        print(piece, end="", flush=True)

The prompt's tokens are those that transformers makes of it, and text ends where transformers' `generate` would end it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attnkit.llama.config import read
from attnkit.llama.decoder import Decoder, stream

__all__ = ["Spelling", "Tokenizer", "write"]

CUT = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers make of bytes that are no character, or not yet."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The tokens of a folder.

    Attributes:
        tokenizer: Of the package tokenizers.
        ends: Tokens that end a text.
    """

    tokenizer: Any
    ends: frozenset[int]

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read ``tokenizer.json``, and which tokens begin and end a text.

        A prompt begins with what ``tokenizer.json`` puts before it. Texts end with ``eos_token_id`` of
        ``generation_config.json``, or of ``config.json`` where there is no such file; where that names none, with the
        ``eos_token`` of ``tokenizer_config.json``.

        Raises:
            ImportError: If the package tokenizers is missing.
            ValueError: If there is no tokenizer.json, or one of these files is not what it should be.
        """
        try:
            import tokenizers
        except ImportError:
            raise ImportError("reading text needs the package tokenizers: pip install tokenizers") from None
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"a Hugging Face folder has a tokenizer.json, got {str(folder)!r} without one")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises no other
            raise ValueError(f"{path} must be a tokenizer, got {error}") from None
        # some were saved with those of their training
        tokenizer.no_truncation()
        tokenizer.no_padding()
        generation = Path(folder) / "generation_config.json"
        file = generation.name if generation.is_file() else "config.json"
        found = _settings(folder, file).get("eos_token_id")
        if found is None:
            name = _settings(folder, "tokenizer_config.json").get("eos_token")
            found = [] if name is None else _number(tokenizer, name)
        ends = found if isinstance(found, list) else [found]
        if not all(type(end) is int for end in ends):
            raise ValueError(f"eos_token_id of {file} must be a token's number or a list of such, got {found!r}")
        return cls(tokenizer, frozenset(ends))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt.

        Raises:
            ValueError: If it is not Unicode, as an argument of other bytes is not.
        """
        text.encode()  # says what is wrong with it, which the package does not
        return self.tokenizer.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without those that are no text."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)


class Spelling:
    """The text of tokens that come a few at a time: what was given out stays as it is, and no character is cut."""

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        """Begin behind a prompt, whose own text is not given out."""
        self._decode = decode
        # a token's text may depend on those before it: the last that were given out are decoded again with the new ones
        self._ids, self._known = list(prompt), len(prompt)

    def add(self, ids: Sequence[int]) -> str:
        """Take tokens; return the text that they add, or nothing while its last character is not whole."""
        self._ids += ids
        text = self.rest()
        if not text or text.endswith(CUT):
            return ""
        del self._ids[: self._known]
        self._known = len(self._ids)
        return text

    def rest(self) -> str:
        """Return the text that was not given out."""
        return self._decode(self._ids)[len(self._decode(self._ids[: self._known])) :]


def write(decoder: Decoder, tokenizer: Tokenizer, prompt: str, count: int, *, every: int = 16) -> Iterator[str]:
    """Continue a prompt by at most `count` tokens, and yield the text as the host gets to see it.

    Args:
        decoder: Of one sequence.
        tokenizer: Of the same folder.
        prompt: What is continued. It is not yielded.
        count: Tokens after which it ends, if it does not end before.
        every: Steps after which the host looks; see `stream`.

    Raises:
        ValueError: If prompt and tokens do not fit into the decoder, or the tokenizer is of another model.
    """
    ids = tokenizer.encode(prompt)
    vocab = decoder.logits.shape[1]
    if max(ids, default=0) >= vocab:
        raise ValueError(f"the prompt's tokens must be below the model's {vocab}, got {max(ids)}: another tokenizer's?")
    spelling = Spelling(tokenizer.decode, ids)
    tokens = torch.tensor([ids], dtype=torch.int64, device=decoder.tokens.device)
    for chunk in stream(decoder, tokens, count, ends=tokenizer.ends, every=every):
        yield spelling.add(chunk)
    yield spelling.rest()


def _settings(folder: str | Path, name: str) -> dict[str, Any]:
    path = Path(folder) / name
    return read(path) if path.is_file() else {}


def _number(tokenizer: Any, token: Any) -> int:
    """Return the number of a token of tokenizer_config.json, which is a text or a dictionary that has it."""
    text = token.get("content") if isinstance(token, dict) else token
    number = tokenizer.token_to_id(text) if isinstance(text, str) else None
    if number is None:
        raise ValueError(f"eos_token of tokenizer_config.json must be one of the tokenizer's tokens, got {token!r}")
    return number
