"""Inputs that hold one number each are told from data, wherever the data is among them."""

from __future__ import annotations

import pytest
import torch

from perfgate import constant

N = constant.LARGE
DATA = torch.randn(N, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "args",
    [
        (torch.zeros(N),),
        (torch.full((N,), 0.3), torch.ones(2, N, dtype=torch.bfloat16)),
        ((torch.zeros(N),), {"weight": [torch.ones(N)]}),
        (torch.zeros(N).to(torch.float8_e4m3fn),),
        (torch.full((N,), torch.nan),),
        (torch.ones(1).expand(N),),
        (torch.zeros(N, requires_grad=True),),
        (torch.zeros(N), torch.arange(N), DATA[:10]),
    ],
    ids=lambda args: None,
)
def test_tensors_of_one_number_are_said(args: object) -> None:
    said = constant.of_inputs(args)
    assert said is not None
    assert "draw them at random" in said


@pytest.mark.parametrize(
    "args",
    [
        (),
        (DATA,),
        (torch.zeros(N), DATA),
        (torch.zeros(N), {"weight": (3, [DATA])}),
        (DATA.to(torch.float8_e4m3fn),),
        (DATA.view(128, -1).T,),
        (DATA.clone().requires_grad_(),),
        (torch.zeros(N - 1),),
        (torch.zeros(N, dtype=torch.int8), torch.zeros(N, dtype=torch.int32)),
        (3.0, "words", None),
    ],
    ids=lambda args: None,
)
def test_data_is_not_nor_is_what_may_be_constant(args: object) -> None:
    assert constant.of_inputs(args) is None


def test_it_is_said_which_tensors() -> None:
    said = constant.of_inputs(tuple(torch.zeros(128, 128) for _ in range(5)))
    assert said is not None
    assert said.startswith("its inputs hold one number each ([128, 128], [128, 128], [128, 128]): ")
