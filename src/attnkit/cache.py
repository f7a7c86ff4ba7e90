"""A cache of keys and values, as decoding has it: a batch of sequences that have grown to different lengths.

    contiguous    k [b, skv, hkv, d]             sequence n has the first lengths[n] of its skv keys
    paged         k [pages, page, hkv, d]        its keys i · page ... are page table[n, i] (Kwon et al., vLLM, 2023)

The queries of a sequence are its newest, so their own keys are its last ones and a mask is aligned with its length.
What lies behind a length is not a number, and so is the page that entries of the table behind it name: nobody may read
it.

By definition this is attention of packed sequences (varlen.py). Knows nothing of heads and scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attnkit import mask as masks
from attnkit.varlen import Varlen, runs

__all__ = ["Cache"]

SPARE_PAGES = 3  # pages that no sequence has; the first of all is one of them


@dataclass(frozen=True, slots=True)
class Cache:
    """What a cache holds.

    Attributes:
        lengths: Keys of each sequence, from none to all that there is room for.
        page: Keys of a page; None is a contiguous cache.

    Raises:
        ValueError: For what are no lengths and no page.
    """

    lengths: tuple[int, ...]
    page: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.lengths, tuple) or not any(self.lengths):
            raise ValueError(f"lengths of a cache must be a tuple with a key in it, got {self.lengths!r}")
        for length in self.lengths:
            masks.whole("length of a sequence", length, 0)
        if self.page is not None:
            masks.whole("page", self.page, 1)

    @property
    def name(self) -> str:
        """Stable: ``cache70_1x3``, or in pages ``cache70_1x3-page16``."""
        name = f"cache{runs(self.lengths)}"
        return name if self.page is None else f"{name}-page{self.page}"

    def check(self, b: int, skv: int) -> None:
        """Refuse sizes that do not have room for it.

        Raises:
            ValueError: Saying what was expected.
        """
        if len(self.lengths) != b:
            raise ValueError(f"a cache must have a length for each of b={b} sequences, got {len(self.lengths)}")
        if max(self.lengths) > skv:
            raise ValueError(f"a cache must have room for its longest sequence, {max(self.lengths)}, got skv={skv}")

    def sequences(self, sq: int) -> Varlen:
        """Return the packed sequences that this is, with so many queries each."""
        return Varlen((sq,) * len(self.lengths), self.lengths)

    def table(self, skv: int) -> torch.Tensor:
        """Return which page has which keys, int32 [b, pages of a sequence], on the CPU. Pages lie in any order."""
        b, n = len(self.lengths), -(-skv // self.keys_of_a_page)
        order = 1 + torch.randperm(b * n + SPARE_PAGES - 1, generator=torch.Generator().manual_seed(b * n))
        table = order[: b * n].view(b, n)
        used = [-(-length // self.keys_of_a_page) for length in self.lengths]
        return table.where(torch.arange(n) < torch.tensor(used)[:, None], 0).to(torch.int32)

    @property
    def keys_of_a_page(self) -> int:
        """The page, of a paged cache.

        Raises:
            ValueError: If there are no pages.
        """
        if self.page is None:
            raise ValueError("a contiguous cache has no pages")
        return self.page

    def placed(self, x: torch.Tensor) -> torch.Tensor:
        """Return keys or values [b, skv, hkv, d] as the cache has them, with what is not a number behind lengths."""
        b, skv, *row = x.shape
        lengths = torch.tensor(self.lengths, device=x.device)
        behind = torch.arange(skv, device=x.device) >= lengths[:, None]
        x = x.masked_fill(behind[..., None, None], torch.nan)
        if self.page is None:
            return x
        table = self.table(skv).to(x.device)
        pages = x.new_full((table.numel() + SPARE_PAGES, self.page, *row), torch.nan)
        whole = x.new_full((b, table.shape[1] * self.page, *row), torch.nan)
        whole[:, :skv] = x
        pages[table.flatten()] = whole.view(-1, self.page, *row)
        return pages

    def packed(self, x: torch.Tensor, skv: int) -> torch.Tensor:
        """Return keys or values of a cache as packed sequences, [1, all lengths, hkv, d]."""
        if self.page is not None:
            x = x[self.table(skv).to(x.device)].flatten(1, 2)
        return torch.cat([x[n, :length] for n, length in enumerate(self.lengths)])[None]
