"""The rule by which a product is right: it forgives rounding and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnkit import agreement as module
from attnkit.agreement import agreement


@given(
    m=st.integers(1, 4),
    n=st.integers(1, 40),
    k=st.integers(1, 300),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**16),
)
def test_float32_sums_in_any_order_agree(m: int, n: int, k: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight, bias = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype), torch.randn(n).to(dtype)
    order = torch.randperm(k)
    sums = torch.zeros(m, n)
    for i in order:
        sums += x[:, i, None].float() * weight[None, :, i].float()
    found = agreement((sums + bias.float()).to(dtype), x, weight, None, bias)
    assert found.wrong == 0
    assert found.largest <= 1


@pytest.mark.parametrize("rows", [3, 4096])
def test_one_wrong_element_is_found(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_AT_ONCE", rows)
    x, weight, scale = torch.randn(2, 64), torch.randint(-128, 128, (10, 64), dtype=torch.int8), torch.rand(10)
    right = (x.double() @ weight.double().T * scale.double()).float()
    assert agreement(right, x, weight, scale).wrong == 0
    for value in (float("nan"), float("inf"), float(right[1, 7]) + 0.01 + 0.001 * abs(float(right[1, 7]))):
        out = right.clone()
        out[1, 7] = value
        assert agreement(out, x, weight, scale).wrong == 1
    assert agreement(right + 1, x, weight, scale, torch.ones(10)).wrong == 0


def test_another_shape_or_dtype_is_refused() -> None:
    x, weight = torch.randn(2, 8), torch.randn(3, 8)
    with pytest.raises(ValueError, match=r"expected out \[2, 3\] in torch.float32, got \[3, 2\] in torch.float32"):
        agreement(torch.zeros(3, 2), x, weight)
    with pytest.raises(ValueError, match=r"got .* in torch.float64"):
        agreement(torch.zeros(2, 3).double(), x, weight)
