"""triton_flash: what its two ways to load, its tiles and its table must keep. The parity suite draws problems.

Without a GPU the kernels run in Triton's interpreter, which knows neither the compiler's limits nor its rounding of
tf32: test_triton_compile.py has the one, a GPU the other.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Literal, get_args

import pytest
import torch

pytest.importorskip("triton")

from attnkit import oracle
from attnkit.mask import Boolean, Documents, Prefix, Window
from attnkit.parity import parity
from attnkit.problem import Dtype, Layout, Problem, Varlen
from attnkit.variants import naive, triton_flash, triton_flash_tiles, variant
from attnkit.variants.triton_flash import attention, attention_with_lse
from attnkit.variants.triton_flash_tiles import (
    MAX_D,
    MAX_ROW_STRIDE,
    ROW_PADDING,
    TABLE,
    Config,
    Form,
    Kernel,
    choose,
    copyable,
    form_here,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KERNELS = ("forward", "dkdv", "dq")
LOADS = ("pointer", "tma")
BY_QUERIES = [key for key in TABLE[90] if key[:3] == ("forward", "half", "tma") and key[4:] in ((), ("few",))]
"""Rows of the table of which the number of queries takes one."""

PROBLEMS = [
    Problem(b=2, hq=2, sq=64, d=32, dtype="fp32"),
    Problem(b=1, hq=4, hkv=2, sq=77, d=32, dtype="fp32", mask="causal"),
    Problem(b=1, hq=3, hkv=1, sq=77, skv=45, d=16, dtype="fp16", mask="causal"),
    Problem(b=1, hq=2, sq=45, skv=77, d=24, dtype="bf16", mask="causal"),
    Problem(b=2, hq=2, sq=33, skv=50, d=40, dtype="bf16", layout="bhsd"),
    Problem(b=2, hq=2, sq=1, skv=50, d=64, dtype="fp16", layout="padded", mask="causal"),
    Problem(b=2, hq=2, sq=65, d=16, dtype="fp32", scale=0.7, layout="packed", mask="causal"),
    Problem(b=1, hq=2, sq=65, skv=100, d=32, dv=16, dtype="bf16", mask="causal"),
    Problem(b=1, hq=2, sq=65, skv=100, d=16, dv=40, dtype="fp32"),
    Problem(b=1, hq=2, hkv=1, sq=100, skv=64, d=16, dtype="fp32", mask="causal-top-left"),
    Problem(b=1, hq=2, hkv=1, sq=65, skv=100, d=16, dtype="fp32", mask=Window(20, 3)),
    Problem(b=1, hq=2, sq=96, skv=64, d=16, dtype="bf16", mask=Window(None, 40)),
    Problem(b=1, hq=2, sq=64, skv=96, d=16, dtype="fp32", mask=Window(10, None)),
    Problem(b=1, hq=2, sq=100, skv=80, d=16, dtype="fp32", mask=Prefix(37)),
    Problem(b=1, hq=2, sq=100, d=16, dtype="fp32", mask=Documents((30, 1, 60, 9))),
    Problem(b=1, hq=2, sq=96, d=16, dtype="bf16", mask=Documents((48, 48), causal=False)),
    Problem(b=1, hq=2, hkv=1, sq=65, skv=50, d=16, dtype="fp32", mask=Boolean(0.05)),
    Problem(b=1, hq=3, sq=65, skv=50, d=16, dtype="fp32", mask="causal", softcap=2.0),
    Problem(b=1, hq=4, hkv=2, sq=65, skv=80, d=16, dtype="fp32", alibi=True),
    Problem(b=2, hq=4, hkv=2, sq=65, skv=50, d=16, dtype="fp32", mask="causal", sink=True),
    Problem(b=1, hq=3, sq=65, skv=80, d=16, dtype="bf16", mask=Window(30, 0), softcap=2.0, alibi=True, sink=True),
    Problem(b=1, hq=2, sq=65, skv=80, d=16, dtype="fp32", mask="causal", scale=-0.3),
    Problem(b=1, hq=2, sq=65, skv=50, d=16, dtype="fp32", mask="causal", scale=0.0),
]


def configs(loads: str, split: bool = False) -> dict[str, Config]:
    """Tiles small enough that these problems have several, some of them ragged, some on the diagonal."""
    return {
        "forward": Config(32, 16, 4, 2, loads),
        "dkdv": Config(16, 32, 4, 2, loads, split=split),
        "dq": Config(32, 16, 4, 2, loads),
    }


def error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float((value.detach().double() - truth).norm() / truth.norm().clamp_min(1e-30))


def close(ours: torch.Tensor, theirs: torch.Tensor, truth: torch.Tensor) -> bool:
    """Both round P and the result once: over a whole tensor the errors of two right ways are the same within noise."""
    return error(ours, truth) <= 1.5 * error(theirs, truth) + 1e-6


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.parametrize("loads", LOADS)
def test_every_way_to_load_gives_attention(loads: str, problem: Problem) -> None:
    q, k, v, dout = problem.inputs(DEVICE, requires_grad=True)
    if loads != "pointer" and not all(map(copyable, (q, k, v))):
        pytest.skip(f"the copy engine cannot load {problem.name}")
    options = problem.options(DEVICE, requires_grad=True)
    leaves = [q, k, v, *([options["sink"]] if problem.sink else [])]
    out, lse = attention_with_lse(q, k, v, **options, configs=configs(loads))
    gradients = torch.autograd.grad(out, leaves, dout)
    textbook = naive.VARIANT.attention(q, k, v, **options)
    theirs = torch.autograd.grad(textbook, leaves, dout)

    data = [t.detach() for t in (q, k, v)]
    truth, truth_lse = oracle.forward(*data, **options)
    truths = list(oracle.gradients(*data, dout, **options))
    if problem.sink:
        truths.append(oracle.sink_gradient(*data, dout, **options)[0])
    assert close(out, textbook, truth)
    for name, mine, other, exact in zip(("dq", "dk", "dv", "dsink"), gradients, theirs, truths, strict=False):
        assert close(mine, other, exact), name
    live = torch.isfinite(truth_lse)
    assert torch.equal(torch.isfinite(lse), live)
    # scores are float32 sums of products of the inputs: what is left is float32's rounding of numbers of this size
    torch.testing.assert_close(lse[live].double(), truth_lse[live], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.parametrize("loads", LOADS)
def test_every_way_to_load_gives_attention_in_fp8(loads: str, problem: Problem) -> None:
    problem = dataclasses.replace(problem, dtype="fp8")
    q, k, v, _ = problem.inputs(DEVICE)
    if loads != "pointer" and not all(map(copyable, (q, k, v))):
        pytest.skip(f"the copy engine cannot load {problem.name}")
    # the tensor cores multiply fp8 by 32 keys at least
    options, tiles = problem.options(DEVICE), {"forward": Config(64, 32, 4, 2, loads)}
    out, lse = attention_with_lse(q, k, v, **options, configs=tiles)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    way = dataclasses.replace(triton_flash.VARIANT, attention=functools.partial(attention, configs=tiles))
    assert parity(way, problem, DEVICE, "fwd").failures == []

    _, truth = oracle.forward(q, k, v, **options)
    live = torch.isfinite(truth)
    assert torch.equal(torch.isfinite(lse), live)
    q, k = (x.float().transpose(1, 2) for x in (q, k))
    scale = problem.d**-0.5 if problem.scale is None else problem.scale
    sizes = q.abs() @ k.abs().repeat_interleave(problem.group, 1).mT * abs(scale)
    # scores are summed in float32, but Hopper's tensor cores keep 13 bits behind the point of a sum of fp8 products
    atol = 2**-12 * float(sizes.max()) + 1e-5 if DEVICE.type == "cuda" else 1e-5
    torch.testing.assert_close(lse[live].double(), truth[live], rtol=1e-5, atol=atol)


@pytest.mark.parametrize(
    ("layout", "d", "dv"),
    [("padded", 128, 128), ("padded", 128, 32), ("padded", 16, 16), ("packed", 128, 128), ("packed", 16, 16)],
)
def test_fp8_between_gaps_gives_attention(layout: Layout, d: int, dv: int) -> None:
    """By pointer V is transposed in shared memory: ptxas has lost places there that were read in two ways."""
    varlen = Varlen((70, 0, 58), (70, 0, 58))
    problem = Problem(b=1, hq=2, hkv=1, sq=128, d=d, dv=dv, dtype="fp8", mask="causal", layout=layout, varlen=varlen)
    assert parity(triton_flash.VARIANT, problem, DEVICE, "fwd").failures == []


def test_small_weights_are_not_lost_in_fp8() -> None:
    q, k, v = (torch.zeros(1, s, 1, 32, device=DEVICE) for s in (1, 513, 513))
    # the first key outweighs each other one by 2^12, which is more than e4m3 has below 1
    q[..., 0], k[:, 0, :, 0], v[:, 1:] = 1.0, 12.0, 1.0
    q, k, v = (x.to(torch.float8_e4m3fn) for x in (q, k, v))
    for way in (naive.VARIANT, triton_flash.VARIANT):
        out = way.attention(q, k, v, mask="full", scale=math.log(2)).float()
        # weights that are powers of two are rounded to themselves, but for what float32 makes of an exponent
        torch.testing.assert_close(out, torch.full_like(out, 512 / (512 + 2**12)), rtol=2**-8, atol=0)


@pytest.mark.parametrize(("capability", "taken"), [((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True)])
def test_fp8_wants_tensor_cores_that_have_it(
    capability: tuple[int, int], taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    problem, cuda = Problem(b=1, hq=1, sq=8, d=32, dtype="fp8"), torch.device("cuda")
    said = triton_flash.VARIANT.rejects(problem, cuda, "fwd")
    assert (said is None) == taken
    assert taken or said == "needs compute capability 8.9 or later, got {}.{}".format(*capability)
    assert triton_flash.VARIANT.rejects(dataclasses.replace(problem, dtype="bf16"), cuda, "fwd") is None


def test_fp8_is_forward_only() -> None:
    problem = Problem(b=1, hq=1, sq=8, d=32, dtype="fp8")
    for way in (naive.VARIANT, triton_flash.VARIANT):
        assert way.rejects(problem, DEVICE, "fwd+bwd") == "fp8 is forward only"
    q, k, v, _ = problem.inputs(DEVICE, requires_grad=True)
    with pytest.raises(ValueError, match="float8_e4m3fn is forward only, got inputs that want gradients"):
        attention(q, k, v)
    with torch.no_grad():
        assert attention(q, k, v).isfinite().all()


def test_dk_and_dv_are_the_same_from_one_launch_and_from_two() -> None:
    problem = Problem(b=1, hq=4, hkv=2, sq=50, skv=70, d=32, dtype="fp32", mask="causal")
    q, k, v, dout = problem.inputs(DEVICE, requires_grad=True)
    one, two = (
        torch.autograd.grad(attention(q, k, v, mask="causal", configs=configs("pointer", split)), (k, v), dout)
        for split in (False, True)
    )
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_tiles_do_not_matter() -> None:
    problem = Problem(b=1, hq=2, sq=100, skv=130, d=32, dtype="fp32", mask="causal")
    q, k, v, _ = problem.inputs(DEVICE)
    first, *others = (
        attention(q, k, v, mask="causal", configs={"forward": Config(block_m, block_n, 4, 1)})
        for block_m, block_n in ((16, 16), (64, 16), (16, 64), (128, 128))
    )
    for other in others:
        torch.testing.assert_close(other, first)


@pytest.mark.parametrize("loads", LOADS)
def test_a_query_without_a_live_key_gives_zero_and_takes_part_in_nothing(loads: str) -> None:
    problem = Problem(b=1, hq=2, sq=70, skv=20, d=32, dtype="fp16", mask="causal")
    q, k, v, dout = problem.inputs(DEVICE, requires_grad=True)
    out, lse = attention_with_lse(q, k, v, mask="causal", configs=configs(loads))
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), dout)
    assert torch.equal(out[:, :50], torch.zeros_like(out[:, :50]))
    assert torch.equal(dq[:, :50], torch.zeros_like(dq[:, :50]))
    assert torch.equal(lse[..., :50], torch.full_like(lse[..., :50], float("-inf")))
    dout[:, :50] = 1e4
    again = torch.autograd.grad(attention(q, k, v, mask="causal", configs=configs(loads)), (q, k, v), dout)
    for a, b in zip((dq, dk, dv), again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("loads", LOADS)
def test_keys_behind_the_mask_do_not_matter(loads: str) -> None:
    q, k, v, _ = Problem(b=1, hq=2, sq=60, skv=70, d=32, dtype="fp16", mask="causal").inputs(DEVICE)
    before = attention(q, k, v, mask="causal", configs=configs(loads))
    # query 29 is the last of the first half; it sees key 39
    k[:, 40:], v[:, 40:] = 1e4, 1e4
    after = attention(q, k, v, mask="causal", configs=configs(loads))
    assert torch.equal(before[:, :30], after[:, :30])
    assert not torch.equal(before[:, 30:], after[:, 30:])


@pytest.mark.parametrize("loads", LOADS)
def test_every_element_is_written(loads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def poisoned(*size: object, **options: object) -> torch.Tensor:
        t = empty(*size, **options)
        return t.fill_(float("nan")) if t.is_floating_point() else t

    q, k, v, dout = Problem(b=2, hq=4, hkv=2, sq=37, skv=51, d=24, dtype="fp16", mask="causal").inputs(
        DEVICE, requires_grad=True
    )
    monkeypatch.setattr(torch, "empty", poisoned)
    out, lse = attention_with_lse(q, k, v, mask="causal", configs=configs(loads))
    for t in (out, lse, *torch.autograd.grad(out, (q, k, v), dout)):
        assert torch.isfinite(t).all()


@pytest.mark.parametrize(
    "problem",
    [
        Problem(b=2, hq=4, hkv=2, sq=130, d=32, dtype="fp16", mask="causal"),
        # many programs at once, each with a tile that is mostly padding
        Problem(b=4, hq=4, sq=17, d=64, dtype="fp32", mask="causal"),
        Problem(b=4, hq=4, sq=17, d=128, dtype="fp32", mask="causal"),
        Problem(b=4, hq=4, sq=17, d=256, dtype="fp32", mask="causal"),
    ],
    ids=lambda problem: problem.name,
)
def test_the_same_input_gives_the_same_bits(problem: Problem) -> None:
    q, k, v, dout = problem.inputs(DEVICE, requires_grad=True)
    runs = []
    for _ in range(3):
        out = attention(q, k, v, mask="causal")
        runs.append((out, *torch.autograd.grad(out, (q, k, v), dout)))
    for tensors in zip(*runs, strict=True):
        assert all(torch.equal(tensors[0], t) for t in tensors[1:])


def test_a_last_dimension_that_is_not_contiguous_is_copied() -> None:
    q, k, v, dout = Problem(b=1, hq=2, sq=40, d=32, dtype="fp32").inputs(DEVICE)
    want = attention(q, k, v)
    got = attention(*(t.mT.contiguous().mT for t in (q, k, v)))
    assert torch.equal(got, want)
    q.requires_grad_()
    # the gradient of a sum is one number with stride 0 everywhere
    (expanded,) = torch.autograd.grad(attention(q, k, v).sum(), q)
    (dense,) = torch.autograd.grad(attention(q, k, v), q, torch.ones_like(dout))
    assert torch.equal(expanded, dense)


def test_batches_may_lie_more_than_two_to_the_31_elements_apart() -> None:
    q, k, v, _ = Problem(b=3, hq=1, sq=20, d=16, dtype="fp16").inputs(DEVICE)
    # memory that is never touched is never taken
    far = torch.empty(2**31 + q[0].numel(), dtype=q.dtype, device=DEVICE).as_strided(q.shape, (2**30, *q.stride()[1:]))
    far.copy_(q)
    assert torch.equal(attention(far, k, v, configs=configs("pointer")), attention(q, k, v, configs=configs("pointer")))


@pytest.mark.parametrize("name", ["triton_flash", "triton_fa1"])
def test_packed_rows_may_lie_more_than_two_to_the_31_elements_apart(name: str) -> None:
    packed = Varlen((260, 20), (260, 30))
    problem = Problem(b=1, hq=1, sq=280, skv=290, d=16, dtype="fp16", mask="causal", varlen=packed)
    near, far = problem.inputs(DEVICE), []
    stride = 2**31 // 258 // 8 * 8
    # memory that is never touched is never taken
    memory = torch.empty(290 * stride, dtype=torch.float16, device=DEVICE)
    for i, x in enumerate(near):
        far.append(memory.as_strided(x.shape, (0, stride, 16, 1), 16 * i))
        far[-1].copy_(x)

    def computed(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        q, k, v = (x.detach().requires_grad_() for x in inputs[:3])
        out = variant(name).attention(q, k, v, mask="causal", varlen=packed)
        return [out, *torch.autograd.grad(out, (q, k, v), inputs[3])]

    for one, other in zip(computed(far), computed(near), strict=True):
        assert torch.equal(one, other)


def test_packed_sequences_are_not_for_the_copy_engine() -> None:
    q, k, v, _ = Problem(b=1, hq=1, sq=8, d=16).inputs(DEVICE)
    with pytest.raises(ValueError, match="packed sequences take tiles by pointer, got tma"):
        attention(q, k, v, varlen=Varlen((3, 5), (3, 5)), configs=configs("tma"))


def test_rows_too_far_apart_for_offsets_of_32_bits_are_copied() -> None:
    memory = torch.zeros(MAX_ROW_STRIDE + 1)
    near, far = (memory.as_strided((1, 2, 1, 1), (1, stride, 1, 1)) for stride in (MAX_ROW_STRIDE - 1, MAX_ROW_STRIDE))
    assert triton_flash_tiles.loadable(near) is near
    assert triton_flash_tiles.loadable(far) is not far


def test_the_copy_engine_wants_multiples_of_16_bytes_and_nothing_broadcast() -> None:
    t = torch.zeros(2, 8, 3, 24, dtype=torch.float16)
    assert copyable(t)
    assert copyable(t[:, :, :, :16])  # rows of 24 elements are 48 bytes apart
    assert not copyable(t[:, :, :, 1:17])  # begins 2 bytes too late
    assert not copyable(torch.zeros(2, 8, 3, 20, dtype=torch.float16))  # rows of 40 bytes
    assert not copyable(t[:1].expand(2, -1, -1, -1))
    assert copyable(t[:1])  # the stride of a dimension of one is never used


@pytest.mark.parametrize("arch", TABLE)
def test_the_table_serves_every_call(arch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_flash_tiles, "family", lambda device: arch)
    choices = itertools.product(
        KERNELS, (torch.float16, torch.float32, torch.float8_e4m3fn), range(1, MAX_D + 1), get_args(Form), (False, True)
    )
    for kernel, dtype, d, form, can_copy in choices:
        config = choose(kernel, DEVICE, dtype, d, form, can_copy)
        assert can_copy or config.loads == "pointer"


def test_few_queries_are_few_for_this_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(multi_processor_count=132))
    assert [form_here("full", queries, gpu) for queries in (1, 128 * 132, 128 * 132 + 1)] == ["few", "few", "full"]
    assert [form_here("causal", queries, gpu) for queries in (256 * 132, 256 * 132 + 1)] == ["few", "causal"]
    assert [form_here(form, 1, gpu) for form in ("boolean", "other")] == ["boolean", "other"]
    assert form_here("full", 1, torch.device("cpu")) == "full"


def test_the_queries_of_all_heads_are_counted_for_the_forward_pass_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def usual(form: Form, queries: int, device: torch.device) -> Form:
        asked.append((form, queries))
        return form

    monkeypatch.setattr(triton_flash, "form_here", usual)
    q, k, v, dout = Problem(b=2, hq=4, hkv=1, sq=5, skv=9, d=16).inputs(DEVICE, requires_grad=True)
    torch.autograd.grad(attention(q, k, v, mask="causal"), (q, k, v), dout)
    assert asked == [("causal", 2 * 4 * 5)]


@pytest.mark.skipif(DEVICE.type == "cuda" and triton_flash_tiles.family(DEVICE) != 90, reason="needs a Hopper")
@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
@pytest.mark.parametrize("key", BY_QUERIES, ids=str)
def test_tiles_for_few_queries_and_for_many_are_right(
    key: tuple[str | int, ...], dtype: Dtype, mask: Literal["full", "causal"]
) -> None:
    """A problem of a test has few, so what many queries get has to be asked for."""
    way = dataclasses.replace(
        triton_flash.VARIANT, attention=functools.partial(attention, configs={"forward": TABLE[90][key]})
    )
    problem = Problem(b=1, hq=2, hkv=1, sq=150, skv=170, d=int(key[3]), dtype=dtype, mask=mask)
    assert parity(way, problem, DEVICE, "fwd").failures == []


@pytest.mark.parametrize(
    ("arch", "key"), [(arch, key) for arch, rows in TABLE.items() for key in rows], ids=lambda part: str(part)
)
def test_a_row_of_the_table_is_a_form_the_kernels_have(arch: int, key: tuple[str | int, ...]) -> None:
    config = TABLE[arch][key]
    kernel, _, loads, _, *_ = key
    assert (config.loads == "pointer") == (loads == "pointer")
    assert kernel == "forward" or ROW_PADDING % config.block_m == 0
    assert kernel == "dkdv" or not config.split


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_two_warp_groups_share_rows_of_float32_on_hopper(kernel: Kernel) -> None:
    """Triton 3.6 lets them read past the end of shared memory: right in the interpreter, anything on a GPU."""
    configs = [config for (of, dtype, *_), config in TABLE[90].items() if of == kernel and dtype == "fp32"]
    assert configs
    for config in configs:
        rows = config.block_n if kernel == "dkdv" else config.block_m
        assert rows < 64 or config.warps * 16 <= rows


@pytest.mark.parametrize(
    ("problem", "seed"),
    [
        (
            Problem(
                b=1, hq=5, hkv=1, sq=63, d=256, dv=16, dtype="fp16", scale=-0.2, layout="padded",
                varlen=Varlen((63, 0, 0, 0), (63, 0, 0, 0)),
            ),
            1,
        ),
        pytest.param(
            Problem(
                b=1, hq=5, hkv=1, sq=546, d=256, dv=16, dtype="fp16", mask=Prefix(1), alibi=True,
                varlen=Varlen((273, 273), (273, 273)),
            ),
            273,
            marks=pytest.mark.skipif(DEVICE.type != "cuda", reason="takes the interpreter half a minute: needs a GPU"),
        ),
        (Problem(b=1, hq=2, hkv=1, sq=90, d=256, dv=32, dtype="fp16", varlen=Varlen((70, 20), (70, 20))), 1),
        (Problem(b=1, hq=2, hkv=1, sq=90, d=16, dv=256, dtype="bf16", varlen=Varlen((70, 20), (70, 20))), 1),
        (Problem(b=2, hq=1, sq=70, d=192, dv=24, dtype="bf16", mask="causal", layout="broadcast"), 1),
        (
            Problem(
                b=1, hq=2, hkv=1, sq=254, d=96, dv=16, dtype="fp16", mask="causal", softcap=2.0, layout="padded",
                magnitude=0.25, varlen=Varlen((127, 0, 127, 0), (127, 0, 127, 0)),
            ),
            353,
        ),
        (
            Problem(
                b=1, hq=5, hkv=1, sq=128, d=128, dv=16, mask=Window(0, 0), layout="padded",
                varlen=Varlen((0, 0, 128), (0, 0, 128)),
            ),
            4473,
        ),
        (Problem(b=1, hq=1, sq=90, d=32, dv=16, layout="padded", varlen=Varlen((70, 20), (70, 20))), 1),
        (Problem(b=1, hq=1, sq=90, d=16, dv=40, layout="padded", varlen=Varlen((70, 20), (70, 20))), 1),
    ],
    ids=[
        "fuzzed full", "fuzzed prefix", "dv32", "d16", "not packed",
        "fuzzed causal", "fuzzed window", "d32 dv16", "d16 dv40",
    ],
)  # fmt: skip
def test_one_head_dim_may_be_wide_and_the_other_narrow(problem: Problem, seed: int) -> None:
    """By pointer, in one stage or with gaps between rows: four are as the fuzz found them wrong on an H200."""
    assert parity(triton_flash.VARIANT, problem, DEVICE, "fwd+bwd", seed=seed).ok


def test_what_it_cannot_do_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    rejects = triton_flash.VARIANT.rejects
    assert "256" in (rejects(Problem(b=1, hq=1, sq=8, d=264), DEVICE, "fwd") or "")
    assert "256" in (rejects(Problem(b=1, hq=1, sq=8, d=32, dv=264), DEVICE, "bwd") or "")
    assert rejects(Problem(b=1, hq=1, sq=8, d=32), DEVICE, "fwd+bwd") is None


def test_a_wrong_argument_is_named() -> None:
    q, k, v, _ = Problem(b=1, hq=3, sq=8, d=16, dtype="fp32").inputs(DEVICE)
    with pytest.raises(ValueError, match="softcap must be positive, or None for none, got 0"):
        attention(q, k, v, softcap=0.0)
    with pytest.raises(ValueError, match=r"sink must be \[3\], float32 on .*, got \[2\]"):
        attention(q, k, v, sink=torch.zeros(2, device=DEVICE))
    with pytest.raises(ValueError, match=r"alibi must be \[3\], float32 on .*, got \[3\], torch.float16"):
        attention(q, k, v, alibi=torch.zeros(3, dtype=torch.float16, device=DEVICE))
    with pytest.raises(ValueError, match="lengths of documents must sum to sq = skv"):
        attention(q, k, v, mask=Documents((3, 4)))
    with pytest.raises(ValueError, match=r"v \[b, skv, hkv, dv\], got"):
        attention(q, k, v[:, :4])
    with pytest.raises(ValueError, match="one dtype"):
        attention(q, k.half(), v)
    with pytest.raises(ValueError, match="hkv must divide hq"):
        attention(q, k[:, :, :2], v[:, :, :2])
