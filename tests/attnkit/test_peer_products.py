"""Others' int8 products: absent they say so, and present they are given our weights in their terms."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch._dynamo.config

from attnkit.agreement import agreement
from attnkit.linear import quantize
from attnkit.products import choose, product, torchao_product

NAMES = ("bitsandbytes", "bitsandbytes_6", "torchao")


def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(3, 64).bfloat16()
    x[:, 5] = 20  # a feature beyond the threshold
    return x, *quantize(torch.randn(32, 64)), torch.randn(32).bfloat16()


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have packages be there, or not."""

    def have(**modules: ModuleType | None) -> None:
        find = importlib.util.find_spec
        top = {name.split("__")[0]: module for name, module in modules.items()}

        def found(name: str, package: str | None = None) -> Any:
            return top[name] and object() if name in top else find(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", found)
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name.replace("__", "."), module)

    return have


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_package_is_said_with_the_remedy(name: str, pretend: Any) -> None:
    pretend(bitsandbytes=None, torchao=None)
    way, package = product(name), name.partition("_")[0]
    reason = f"the package {package} is not installed: pip install {package}"
    assert way.rejects(*operands()) == reason
    with pytest.raises(ValueError, match=reason):
        way.multiply(*operands())


def test_an_old_torchao_is_said(pretend: Any) -> None:
    old = ModuleType("torchao")
    pretend(torchao=old, torchao__quantization=ModuleType("torchao.quantization"))
    assert "pip install 'torchao>=0.18'" in str(product("torchao").rejects(*operands()))


@pytest.mark.parametrize(("name", "threshold"), [("bitsandbytes", 0.0), ("bitsandbytes_6", 6.0)])
def test_bitsandbytes_gets_our_weights_in_its_terms(name: str, threshold: float, pretend: Any) -> None:
    package, autograd, functions = (ModuleType("bitsandbytes") for _ in range(3))
    seen: list[Any] = []

    def matmul(x: torch.Tensor, weight: torch.Tensor, state: Any, bias: torch.Tensor) -> torch.Tensor:
        seen.append(state)
        return (x.float() @ (state.CB.float() * state.SCB[:, None] / 127).T + bias.float()).to(x.dtype)

    package.matmul, functions.MatmulLtState = matmul, type("MatmulLtState", (), {})  # type: ignore[attr-defined]
    pretend(bitsandbytes=package, bitsandbytes__autograd=autograd, bitsandbytes__autograd___functions=functions)
    given = operands()
    assert agreement(product(name).multiply(*given), *given).wrong == 0
    assert (seen[0].threshold, seen[0].has_fp16_weights) == (threshold, False)


def test_torchao_gets_our_weights_in_its_terms(pretend: Any) -> None:
    def made(qdata: torch.Tensor, scale: torch.Tensor, block_size: list[int], dtype: torch.dtype) -> torch.Tensor:
        assert block_size == [1, qdata.shape[1]]
        return (qdata.double() * scale).to(dtype)

    quantization = ModuleType("torchao.quantization")
    quantization.Int8Tensor = made  # type: ignore[attr-defined]
    pretend(torchao=ModuleType("torchao"), torchao__quantization=quantization)
    given, way = operands(), product("torchao")
    assert way.explains is not None
    assert agreement(way.multiply(*given), *given, explained=way.explains(*given)).wrong == 0


def test_torchao_is_compiled_for_more_shapes_than_torch_would_have(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, *, mode, **options: compiler(call, backend="eager", **options))
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    monkeypatch.setattr(torchao_product, "linear", lambda x: x + 1)
    call = torchao_product.compiled.__wrapped__()
    for rows in range(2, 13):
        assert call(torch.zeros(rows)).sum() == rows


@pytest.mark.parametrize("name", NAMES)
def test_sixteen_bit_weights_are_not_theirs(name: str, pretend: Any) -> None:
    quantization = ModuleType("torchao.quantization")
    quantization.Int8Tensor = object  # type: ignore[attr-defined]
    there = ModuleType("there")
    pretend(bitsandbytes=there, torchao=there, torchao__quantization=quantization)
    x = torch.randn(3, 64).bfloat16()
    assert "weight must be int8 with a scale, got torch.bfloat16" in str(product(name).rejects(x, x, None, None))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_explained_is_no_blank_cheque(name: str) -> None:
    given, way = operands(), product(name)
    x, weight, scale, bias = given
    assert way.explains is not None
    # x rounded as bitsandbytes does passes; a feature that was left out does not
    step = x.float().abs().amax(1, keepdim=True) / 127
    rounded = (x.float() / step).round() * step
    exact = weight.float() * scale[:, None]
    out = (rounded @ exact.T + bias.float()).bfloat16()
    if name != "torchao":
        assert agreement(out, *given, explained=way.explains(*given)).wrong == 0
    without = x.clone()
    without[:, 5] = 0
    out = (without.float() @ exact.T + bias.float()).bfloat16()
    assert agreement(out, *given, explained=way.explains(*given)).wrong > out.numel() / 2


@pytest.mark.parametrize("name", NAMES)
def test_the_package_itself(name: str) -> None:
    given, way = operands(), product(name)
    if reason := way.rejects(*given):
        pytest.skip(reason)
    assert way.explains is not None
    out = way.multiply(*given)
    assert agreement(out, *given, explained=way.explains(*given)).wrong == 0
    assert choose(*given) is not way
