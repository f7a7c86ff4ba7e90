"""Inputs that hold one number each are told from data, wherever the data is among them."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from perfgate import constant

N = constant.LARGE


class Tagged(torch.Tensor):
    """A tensor of a kind that nobody knows."""


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
        (torch.zeros(N), torch.arange(N)),
        (torch.zeros(N), torch.zeros(N, dtype=torch.int8)),
        (torch.zeros(N, dtype=torch.complex64),),
        (torch.cat([torch.full((N // 2,), torch.nan), torch.ones(N // 2)]),),
        (torch.cat([torch.zeros(N), -torch.zeros(N)]).to(torch.float8_e4m3fn),),
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
        (torch.zeros(N), DATA[:10]),
        (torch.zeros(N), torch.arange(100, dtype=torch.int8)),
        (torch.zeros(N), DATA[: N // 2].view(torch.complex64)),
        (torch.zeros(N).to_sparse(),),
        (torch.zeros(N, device="meta"),),
        (torch.zeros(N).as_subclass(Tagged),),
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


def test_where_tensors_are_made_by_default_does_not_matter() -> None:
    with torch.device("meta"):
        assert constant.of_inputs((DATA,)) is None


@pytest.mark.filterwarnings("ignore:.*(beta state|prototype stage):UserWarning")
def test_tensors_that_cannot_be_looked_at_are_left_alone() -> None:
    rows = [torch.zeros(N), torch.zeros(N)]
    for x in (
        torch.zeros(128, 128).to_sparse_csr(),
        torch.nested.nested_tensor(rows),
        torch.nested.nested_tensor(rows, layout=torch.jagged),
    ):
        assert constant.of_inputs((x,)) is None


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4, 5), (2, 1, 9)])
def test_elements_are_counted_as_torch_counts_them(shape: tuple[int, ...]) -> None:
    places = torch.arange(math.prod(shape))
    for found, known in zip(constant._at(places, shape), torch.unravel_index(places, shape), strict=True):
        assert torch.equal(found, known)


def test_looking_imports_nothing_that_takes_long() -> None:
    code = "import sys, torch; from perfgate import constant; before = set(sys.modules); "
    code += f"constant.of_inputs((torch.zeros({N}),)); print(len(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20
