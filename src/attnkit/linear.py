"""Linear layers whose weights are int8, and whose activations may be rounded to int8 on the way.

    scale_n = max_k |w_nk| / 127        q_nk = round(w_nk / scale_n)        out = (x qᵀ) · scale + bias

One scale for each output channel, symmetric about zero, so that it can be applied to the finished sum: the product
itself is x with small integers, which 16-bit floats hold exactly (vector-wise quantisation of weights as in LLM.int8(),
Dettmers et al., 2022, with the activations left alone). A weight is off by half a scale at most.

Where compute is what takes time, for a prompt, integers can be multiplied by integers: with ``activations="int8"`` each
row of x is rounded to 127 steps of its largest element as it comes, if there are more than eight rows. That costs more
than the weights' rounding does, and most where one feature of x is far larger than the others, so it is never the
default.

`of_norm` and `plus_residual` are what stands around such layers in a transformer. Any layers will do; those that round
what they multiply then need no kernel for a norm and none for a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from attnkit.product import misfit_norm, misfit_residual
from attnkit.products import Activations, choose, rounding, rounds

__all__ = ["LARGEST", "Int8Linear", "dequantize", "of_norm", "plus_residual", "quantize", "quantize_"]

LARGEST = 127
"""Steps of a row's largest element."""


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise weight ``[n, k]``: int8 ``[n, k]`` and scale ``[n]`` in float32.

    A channel of zeros stays one. The scale is at least the smallest normal float32.

    Raises:
        ValueError: If weight is not a floating-point matrix, or holds what is not finite.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(f"expected a floating-point weight [n, k], got {weight.dtype} {list(weight.shape)}")
    exact = weight.detach().float()
    if not exact.isfinite().all():
        rows = (~exact.isfinite()).any(1).nonzero().flatten().tolist()
        raise ValueError(f"weight must be finite to be quantised, got inf or nan in {len(rows)} rows, first {rows[0]}")
    largest = exact.abs().amax(1) if weight.shape[1] else exact.new_zeros(weight.shape[0])
    scale = (largest / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return (exact / scale[:, None]).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def dequantize(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The inverse of `quantize` but for rounding: int8 ``[n, k]`` and scale ``[n]`` to float32 ``[n, k]``."""
    return weight.float() * scale[:, None]


class Int8Linear(nn.Module):
    """A linear layer with int8 weights: x ``[..., k]`` to out ``[..., n]`` in x's dtype. For inference.

    Casting the module leaves weight and scale as they are. Where x needs a gradient the product is torch's own, and x
    stays as it is.

    Args:
        weight: ``[n, k]`` in int8.
        scale: ``[n]`` in float32.
        bias: ``[n]``, or None.
        activations: "int8" to round the rows of x, where they are more than eight; None to leave them as they are.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        activations: Activations = None,
    ) -> None:
        super().__init__()
        checked(activations)
        if weight.dtype != torch.int8 or weight.ndim != 2:
            raise ValueError(f"expected an int8 weight [n, k], got {weight.dtype} {list(weight.shape)}: see quantize")
        if scale.dtype != torch.float32 or scale.shape != weight.shape[:1]:
            raise ValueError(
                f"expected a float32 scale [{len(weight)}], one a row of weight, got {scale.dtype} {list(scale.shape)}"
            )
        if bias is not None and bias.shape != scale.shape:
            raise ValueError(f"expected a bias {list(scale.shape)}, got {list(bias.shape)}: one a row of weight")
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.out_features, self.in_features = weight.shape
        self.activations: Activations = activations

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, activations: Activations = None) -> Int8Linear:
        """Quantise a linear layer; the layer stays as it is.

        Raises:
            ValueError: If its weight holds what is not finite.
        """
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return cls(*quantize(linear.weight), bias, activations=activations).train(linear.training)

    @property
    def operands(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """What x is multiplied by: weight, scale and bias."""
        return self.weight, self.scale, self.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply.

        Raises:
            ValueError: If x is not ``[..., k]``.
        """
        if x.shape[-1] != self.in_features:
            raise ValueError(f"expected x [..., {self.in_features}], got {list(x.shape)}")
        rows = flat(x)
        out = choose(rows, *self.operands, activations=self.activations).multiply(rows, *self.operands)
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes, as nn.Linear shows them."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return sizes if self.activations is None else f"{sizes}, activations={self.activations}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Int8Linear:
        # a cast of the module to 16 bits is meant for activations: the scales stay exact
        scale = self.scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call] # torch leaves it untyped
        if self.scale.dtype != torch.float32:
            self.scale = scale.to(self.scale.device)
        return self


def checked(activations: Activations) -> None:
    """Raise ValueError unless activations are known."""
    if activations not in (None, "int8"):
        raise ValueError(f"activations must be None or 'int8', got {activations!r}")


def of_norm(layers: Iterable[nn.Module], norm: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """``layer(norm(x))`` for each of the layers.

    Where norm is a LayerNorm and the layers round what they multiply, its result is rounded where it is computed, once
    for all layers: it is never in memory.
    """
    layers = list(layers)
    if (ours := rounding_layers(layers, x)) and type(norm) is nn.LayerNorm and not hooked(norm):
        rows = flat(x)
        way = rounding(rows, *(layer.operands for layer in ours))
        if way is not None and misfit_norm(rows, norm) is None:
            steps, unit = way.rounded(rows, norm)
            outs = [way.multiply(steps, unit, *layer.operands, dtype=x.dtype) for layer in ours]
            return [out.view(*x.shape[:-1], out.shape[1]) for out in outs]
    h = norm(x)
    return [layer(h) for layer in layers]


def plus_residual(layer: nn.Module, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """``residual + layer(x)``.

    Where the layer rounds what it multiplies, the residual is added to its sums in float32, before they are rounded.
    """
    if (ours := rounding_layers([layer], x)) and residual.shape == (*x.shape[:-1], ours[0].out_features):
        rows, added, operands = flat(x), flat(residual).contiguous(), ours[0].operands
        way = rounding(rows, operands)
        if way is not None and misfit_residual(rows, operands[0], added, x.dtype) is None:
            steps, unit = way.rounded(rows)
            return way.multiply(steps, unit, *operands, dtype=x.dtype, residual=added).view(residual.shape)
    return residual + layer(x)


def rounding_layers(layers: Iterable[nn.Module], x: torch.Tensor) -> list[Int8Linear]:
    """The layers, if all of them round x and nothing else happens when they are called; else none."""
    kind = x.device.type
    # of meta and of others without it torch does not even answer
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return []
    many, ours = x.shape[:-1].numel(), []
    for layer in layers:
        if type(layer) is not Int8Linear or layer.in_features != x.shape[-1] or hooked(layer):
            return []
        if not rounds(layer.activations, many):
            return []
        ours.append(layer)
    return ours


def flat(x: torch.Tensor) -> torch.Tensor:
    """x ``[..., k]`` as rows ``[m, k]``."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def hooked(module: nn.Module) -> bool:
    """Whether something wants to see each call of the module, or of every module, or has put its own in its place."""
    watching = (module._forward_hooks, module._forward_pre_hooks, _global_forward_hooks, _global_forward_pre_hooks)
    return any(watching) or "forward" in vars(module)


def quantize_(
    model: nn.Module,
    keep: Callable[[str, nn.Linear], bool] = lambda name, linear: False,
    *,
    activations: Activations = None,
) -> list[str]:
    """Replace every nn.Linear inside a model by an Int8Linear, in place; subclasses of nn.Linear are left alone.

    A layer that is in the model twice is one layer afterwards too. What shares its weight with a layer keeps it.

    Args:
        model: What holds the layers.
        keep: Says of a layer, by its name and itself, that it is to stay as it is.
        activations: What becomes of x on its way into each layer: see Int8Linear.

    Returns:
        The names of the layers that were replaced.

    Raises:
        ValueError: If the model is itself a linear layer, a weight is not finite, or activations are unknown; nothing
            is replaced then.
    """
    checked(activations)
    if type(model) is nn.Linear:
        raise ValueError("a linear layer cannot be replaced in itself: take Int8Linear.from_linear(layer)")
    found: dict[str, nn.Linear] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) is nn.Linear and not keep(name, module):
            found[name] = module
    made: dict[nn.Linear, Int8Linear] = {}
    for name, linear in found.items():
        if linear not in made:
            try:
                made[linear] = Int8Linear.from_linear(linear, activations=activations)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    for name, linear in found.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[linear])
    return list(found)
