"""triton_flash as an operator: torch's own checks of it, and that compiled and eager calls agree to the bit."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton")

from attnkit.mask import Documents, Window
from attnkit.operators import flash
from attnkit.problem import Inputs, Mask, Problem
from attnkit.variants import triton_flash

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROBLEMS = [
    Problem(b=2, hq=4, hkv=2, sq=33, skv=40, d=16, mask="causal"),
    Problem(b=1, hq=2, sq=20, d=24, dv=16, dtype="fp32", mask=Window(7, 0), softcap=2.0),
    Problem(
        b=1, hq=3, hkv=1, sq=20, d=16, dtype="fp16", mask=Documents((5, 15)), alibi=True, sink=True, layout="packed"
    ),
    Problem(b=2, hq=2, sq=17, skv=5, d=16, dtype="fp32", layout="broadcast", sink=True),
]
problems = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
Given = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]


def given(problem: Problem) -> tuple[Inputs, Given]:
    inputs = problem.inputs(DEVICE, requires_grad=True)
    options = problem.options(DEVICE, requires_grad=True)
    return inputs, (*inputs[:3], options.get("alibi"), options.get("sink"))


def differentiated(out: torch.Tensor, arguments: Given, dout: torch.Tensor) -> list[torch.Tensor]:
    leaves = [x for x in arguments if x is not None and x.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def scale_of(problem: Problem) -> tuple[Mask, float | None, float | None]:
    return problem.mask, problem.scale, problem.softcap


@problems
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_function_takes_it_whole_and_agrees_with_the_variant_to_the_bit(
    problem: Problem, backend: str
) -> None:
    inputs, arguments = given(problem)
    attend = flash(*scale_of(problem))

    def twice(*arguments: torch.Tensor | None) -> torch.Tensor:
        return 2 * attend(*arguments)

    torch._dynamo.reset()
    out = torch.compile(twice, backend=backend, fullgraph=True)(*arguments)
    options = problem.options(DEVICE)
    options["sink"] = arguments[4] if problem.sink else None
    eager = 2 * triton_flash.attention(*arguments[:3], **{k: x for k, x in options.items() if x is not None})
    found, expected = (differentiated(x, arguments, inputs.dout) for x in (out, eager))
    assert [torch.equal(a, b) for a, b in zip(found, expected, strict=True)] == [True] * len(expected)


@problems
def test_torch_finds_nothing_wrong_with_it(problem: Problem) -> None:
    """Its schema, its autograd, its fake tensors, and what torch.compile makes of it for sizes that change."""
    _, arguments = given(problem)
    result = torch.library.opcheck(flash(*scale_of(problem)).operator, arguments)
    assert set(result.values()) == {"SUCCESS"}


@problems
def test_fake_tensors_have_the_shapes_dtypes_and_strides_of_real_ones(problem: Problem) -> None:
    inputs, arguments = given(problem)
    attend = flash(*scale_of(problem))
    real = differentiated(attend(*arguments), arguments, inputs.dout)
    with FakeTensorMode() as mode:
        fakes = [None if x is None else mode.from_tensor(x) for x in arguments]
        fake = differentiated(attend(*fakes), tuple(fakes), mode.from_tensor(inputs.dout))  # type: ignore[arg-type]
    for x, y in zip(real, fake, strict=True):
        assert (x.shape, x.dtype, x.stride(), x.device) == (y.shape, y.dtype, y.stride(), y.device)


def test_there_is_one_for_each_mask_and_no_more() -> None:
    assert flash("causal") is flash("causal")
    assert flash("causal") is not flash("full")


def test_what_the_variant_refuses_it_refuses() -> None:
    q, k, v, _ = Problem(b=1, hq=3, sq=8, d=16, dtype="fp32").inputs(DEVICE)
    with pytest.raises(ValueError, match="hkv must divide hq"):
        flash()(q, k[:, :, :2], v[:, :, :2])
