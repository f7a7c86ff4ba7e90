"""Inputs that hold one number: a GPU draws less power on them than on any data, and is faster for it.

A matrix product of zeros was seen to be 15 % faster than one of normally distributed numbers (He, Strangely, Matrix
Multiplications on GPUs Run Faster When Given "Predictable" Data!, 2024). What is measured so holds for nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

__all__ = ["of_inputs"]

LARGE = 2**14
"""Elements from which on a tensor of floating-point numbers counts: a bias or a scale may be constant."""
LOOKED_AT = 1024
"""Elements that are looked at, at places drawn once and for all."""
QUANTIZED = (torch.int8, torch.uint8)
"""Types of integers that may be data; others are lengths, indices and masks."""


def of_inputs(args: object) -> str | None:
    """What is wrong with arguments whose large tensors of floating-point numbers hold one number each; else None.

    One tensor of data is enough, of any size, for what a call writes to may hold anything; and so is one of a kind
    that cannot be looked at (sparse, nested, a subclass). What lies elsewhere than in tuples, lists and mappings is not
    seen.
    """
    given = list(_tensors(args))
    numbers = [x for x in given if x.is_floating_point() or x.is_complex() or x.dtype in QUANTIZED]
    if not all(map(_plain, numbers)):
        return None
    large = [x for x in numbers if x.dtype not in QUANTIZED and x.numel() >= LARGE]
    if not large or not all(map(_constant, numbers)):
        return None
    shapes = ", ".join(str(list(x.shape)) for x in large[:3])
    return (
        f"its inputs hold one number each ({shapes}): a GPU is faster on those than on data; draw them at random, "
        "as torch.randn does, and let the call close over what it only writes to"
    )


def _tensors(given: object) -> Iterator[torch.Tensor]:
    if isinstance(given, torch.Tensor):
        yield given
    elif isinstance(given, Mapping):
        yield from _tensors(list(given.values()))
    elif isinstance(given, list | tuple):
        for part in given:
            yield from _tensors(part)


def _plain(x: torch.Tensor) -> bool:
    known = type(x) in (torch.Tensor, torch.nn.Parameter) and not x.is_nested
    return known and x.layout is torch.strided and not x.is_meta


def _constant(x: torch.Tensor) -> bool:
    """Whether all places that are looked at hold the same number, or none."""
    if x.numel() == 0:
        return True
    generator = torch.Generator(device="cpu").manual_seed(0)
    places = torch.randint(x.numel(), (LOOKED_AT,), generator=generator, device="cpu").to(x.device)
    bits = x.detach().view(torch.uint8) if x.element_size() == 1 else x.detach()  # few operations take fp8
    found = bits[_at(places, x.shape)]
    if x.is_floating_point() and x.element_size() == 1:
        found = found.view(x.dtype).float()
    found = found[~found.isnan()]
    return found.numel() == 0 or bool((found == found[0]).all())


def _at(places: torch.Tensor, shape: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Indices of the elements with these numbers (torch.unravel_index imports sympy, which takes long)."""
    indices = []
    for size in reversed(shape):
        indices.append(places % size)
        places = places // size
    return tuple(reversed(indices))
