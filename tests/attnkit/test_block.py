"""The block: the same numbers however its projections lie, right in every variant, and no rule that passes anything."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from attnkit.block import Block
from attnkit.graph import Graphed
from attnkit.linear import Int8Linear, quantize_
from attnkit.problem import TRAINED, Dtype, Mask
from attnkit.product import Rounding
from attnkit.products import torch_dynamic, triton_dynamic
from attnkit.variants import variant
from perf import block_latency
from perf.blocks import RUNGS, Rung, Shape, error, graphed, made
from tests.perfgate.test_latency import Told

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAIVE = variant("naive").attention
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def block(hq: int = 4, hkv: int | None = None, d: int = 16, **options: object) -> Block:
    torch.manual_seed(0)
    return Block(hq * d, hq, hkv, attention=NAIVE, **options).to(DEVICE).requires_grad_(False)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(
    b=st.integers(1, 3),
    s=st.integers(1, 40),
    hkv=st.integers(1, 3),
    group=st.integers(1, 3),
    mask=st.sampled_from(["full", "causal"]),
    fused=st.booleans(),
    int8=st.booleans(),
)
def test_it_is_the_formula(b: int, s: int, hkv: int, group: int, mask: Mask, fused: bool, int8: bool) -> None:
    subject = block(hkv * group, hkv, mask=mask)
    if fused:
        subject = subject.with_fused_projections()
    if int8:
        assert len(quantize_(subject)) == (2 if fused else 4)
    x = torch.randn(b, s, subject.width, device=DEVICE)
    off, may = error(subject, subject(x), x)
    assert off <= may


def test_blocks_of_a_shape_begin_with_the_same_weights_and_share_none() -> None:
    shape = Shape(1, 8, 64, 4, "fp32")
    first, second = made(shape, DEVICE, NAIVE, fused=False), made(shape, DEVICE, abs, fused=False)
    assert (first.attention, second.attention) == (NAIVE, abs)
    for mine, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, other)
        mine.add_(1)
        assert not torch.equal(mine, other)
    again = made(shape, DEVICE, NAIVE, fused=False)
    assert all(map(torch.equal, again.parameters(), second.parameters()))
    torch.manual_seed(0)
    fresh = Block(64, 4, attention=NAIVE)
    assert all(map(torch.equal, again.parameters(), fresh.to(DEVICE).parameters()))


@pytest.mark.parametrize("dtype", TRAINED)
def test_sixteen_bits_are_right_within_their_rounding_and_a_slip_is_seen(dtype: str) -> None:
    shape = Shape(2, 70, 128, 4, dtype)  # type: ignore[arg-type]
    subject = made(shape, DEVICE, NAIVE, fused=False)
    x = shape.x(DEVICE)
    out = subject(x)
    off, may = error(subject, out, x)
    assert off <= may
    # attention to the wrong values
    q, k, v = subject.projections
    subject.projections = torch.nn.ModuleList([q, v, k])
    off, may = error(subject, out, x)
    assert off > may
    # a residual that was left out
    subject.projections = torch.nn.ModuleList([q, k, v])
    off, may = error(subject, out - x, x)
    assert off > may


def test_fusing_keeps_the_weights_and_the_block_that_it_came_from() -> None:
    separate = block(6, 2).eval()
    fused = separate.with_fused_projections()
    x = torch.randn(2, 9, separate.width, device=DEVICE)
    assert (separate.fused, fused.fused) == (False, True)
    assert not fused.projections[0].training
    assert fused.projections[0].weight.device.type == DEVICE.type
    torch.testing.assert_close(fused(x), separate(x))
    fused.output.weight.zero_()
    assert not torch.equal(fused(x), separate(x))
    again = fused.with_fused_projections()
    torch.testing.assert_close(again(x), fused(x))


def test_int8_weights_are_not_fused() -> None:
    subject = block()
    quantize_(subject)
    with pytest.raises(ValueError, match=r"only nn\.Linear can be fused, got Int8Linear: fuse before quantising"):
        subject.with_fused_projections()


def test_it_has_a_gradient() -> None:
    subject = block().requires_grad_(True)
    subject(torch.randn(2, 5, subject.width, device=DEVICE)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in subject.parameters())


def test_what_is_no_block_is_refused() -> None:
    for width, hq, hkv in ((10, 4, 4), (12, 4, 3), (0, 1, 1), (8, 0, 0)):
        with pytest.raises(ValueError, match="hq must divide width and hkv must divide hq, got width="):
            Block(width, hq, hkv, attention=NAIVE)
    with pytest.raises(ValueError, match=r"expected x \[b, s, 64\], got \[2, 64\]"):
        block()(torch.zeros(2, 64, device=DEVICE))


def test_rungs_have_the_same_weights_and_are_what_they_say() -> None:
    shape = Shape(1, 16, 64, 4, "fp32")
    blocks = {rung: graphed(rung, shape, DEVICE, "sdpa_math") for rung in RUNGS}
    assert [subject.fused for subject, _ in blocks.values()] == [False, True, True, True, True]
    assert [isinstance(call, Graphed) for _, call in blocks.values()] == [False, False, True, True, True]
    last = [blocks[rung][0].output for rung in ("int8", "int8_dynamic")]
    assert [layer.activations for layer in last if isinstance(layer, Int8Linear)] == [None, "int8"]
    x = shape.x(DEVICE)
    outs = {rung: subject(x) for rung, (subject, _) in blocks.items()}
    torch.testing.assert_close(outs["flash"], outs["standard"])
    assert torch.equal(outs["graph"], outs["flash"])
    # a weight is off by up to 1 / 254 of the largest of its channel
    assert 0 < (outs["int8"] - outs["flash"]).norm() / (outs["flash"] - x).norm() < 2 / 254
    # the truth of both has the same weights, so what is between them is the activations' rounding
    off, _ = error(blocks["int8"][0], outs["int8_dynamic"], x)
    _, may = error(blocks["int8_dynamic"][0], outs["int8_dynamic"], x)
    assert may / 10 < off <= may


@settings(max_examples=15, deadline=None)
@given(s=st.integers(1, 40), hkv=st.integers(1, 2), outlier=st.sampled_from([1, 50]), seed=st.integers(0, 99))
def test_activations_in_int8_are_as_far_off_as_their_steps_explain_and_a_slip_is_further(
    s: int, hkv: int, outlier: int, seed: int
) -> None:
    subject = block(2 * hkv, hkv)
    quantize_(subject, activations="int8")
    torch.manual_seed(seed)
    x = torch.randn(2, s, subject.width, device=DEVICE)
    x[..., 3] *= outlier
    out = subject(x)
    off, may = error(subject, out, x)
    assert off <= may
    # a tenth more of what attention adds is no rounding
    off, may = error(subject, out + (out - x) / 10, x)
    assert off > may


WAYS = [torch_dynamic.ROUNDING, triton_dynamic.ROUNDING]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.product.name)
@pytest.mark.parametrize("dtype", TRAINED)
@pytest.mark.parametrize("fused", [False, True])
def test_where_integers_are_multiplied_the_norm_and_the_sum_are_part_of_it(
    way: Rounding, dtype: Dtype, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = Shape(2, 20, 96, 4, dtype)
    subject = made(shape, DEVICE, NAIVE, fused=fused, int8=True, activations="int8")
    subject.norm.weight.uniform_(0.5, 1.5)
    subject.norm.bias.normal_()
    x = shape.x(DEVICE)
    monkeypatch.setattr("attnkit.linear.rounding", lambda rows, *operands: None)
    apart = subject(x)
    monkeypatch.setattr("attnkit.linear.rounding", lambda rows, *operands: way)
    # neither is called any more
    for kind in (torch.nn.LayerNorm, Int8Linear):
        monkeypatch.setattr(kind, "forward", None)
    rounded = []
    counted = Rounding(way.product, lambda *given: rounded.append(given) or way.rounded(*given), way.multiply)
    monkeypatch.setattr("attnkit.linear.rounding", lambda rows, *operands: counted)
    out = subject(x)
    assert [len(given) for given in rounded] == [2, 1]  # once for all projections, with a norm
    off, may = error(subject, out, x)
    assert off <= may
    # what is between them is the rounding of the output's product, which is not rounded any more, and of a few numbers
    # that a norm summed otherwise moved to another step
    assert (out - apart).float().norm() <= (may + torch.finfo(x.dtype).eps) * x.float().norm()
    # a tenth more of what attention adds is no rounding
    off, may = error(subject, out + (out - x) / 10, x)
    assert off > may


def test_a_layer_that_is_watched_or_wants_a_gradient_is_called() -> None:
    subject = block(2, 2, 16)
    quantize_(subject, activations="int8")
    x = torch.randn(1, 12, subject.width, device=DEVICE)
    wanted = subject(x)
    seen: list[str] = []
    modules = {"norm": subject.norm, "projection": subject.projections[1], "output": subject.output}
    for name, module in modules.items():
        hook = module.register_forward_hook(lambda *given, name=name: seen.append(name))
        torch.testing.assert_close(subject(x), wanted, rtol=1e-2, atol=1e-2)
        hook.remove()
        before = module.register_forward_pre_hook(lambda *given, name=name: seen.append(name))
        subject(x)
        before.remove()
    assert seen == [name for name in modules for _ in range(2)]
    # of every module, and by one that has taken its place
    names = {module: name for name, module in modules.items()}
    for watch in (register_module_forward_hook, register_module_forward_pre_hook):
        seen.clear()
        hook = watch(lambda module, *given: seen.append(names[module]) if module in names else None)
        subject(x)
        hook.remove()
        assert seen == list(modules)
    seen.clear()
    for name, module in modules.items():
        forward = module.forward
        module.forward = lambda x, name=name, forward=forward: seen.append(name) or forward(x)
        subject(x)
        del module.forward
    assert seen == list(modules)
    subject(x)
    assert seen == list(modules)
    # of the norm's weight, of x, and of both
    for parameter in subject.norm.parameters():
        parameter.requires_grad_()
    subject(x).sum().backward()
    assert all(parameter.grad is not None for parameter in subject.norm.parameters())
    subject.norm.requires_grad_(False)
    x.requires_grad_()
    subject(x).sum().backward()
    assert x.grad is not None
    assert (x.grad - 1).abs().max() > 0  # of the residual alone it would be one


def test_autocast_is_not_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = block(2, 2, 16)
    quantize_(subject, activations="int8")
    x = torch.randn(1, 12, subject.width, device=DEVICE)
    seen: list[torch.dtype] = []
    forward = torch.nn.LayerNorm.forward
    monkeypatch.setattr(torch.nn.LayerNorm, "forward", lambda self, x: seen.append(x.dtype) or forward(self, x))
    subject(x)
    assert not seen
    with torch.autocast(DEVICE.type, torch.bfloat16):
        subject(x)
    assert seen == [torch.float32]


@pytest.mark.parametrize("activations", ["int8", None])
def test_shapes_are_found_without_memory(activations: Literal["int8"] | None) -> None:
    """Of meta, torch cannot be asked whether autocast is on."""
    subject = block(2, 2, 16)
    quantize_(subject, activations=activations)
    x = torch.empty(1, 12, subject.width, device="meta")
    assert subject.to("meta")(x).shape == x.shape


@on_gpu
@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("b", [1, 4])
def test_rungs_are_right_on_a_gpu(rung: str, b: int) -> None:
    shape = Shape(b, 128, 1024, 8)
    subject, call = graphed(rung, shape, DEVICE, "sdpa_flash")  # type: ignore[arg-type]
    with torch.inference_mode():
        for seed in range(2):
            x = shape.x(DEVICE, seed)
            off, may = error(subject, call(x), x)
            assert off <= may


def test_rungs_are_asked_in_turn_at_a_rate_that_the_first_of_them_sets() -> None:
    clock, seen = Told(), []

    def request(rung: str, seconds: float) -> Callable[[], None]:
        def served() -> None:
            seen.append(rung)
            clock.time += seconds

        return served

    ladder: dict[Rung, Callable[[], None]] = {"standard": request("standard", 2.0), "flash": request("flash", 1.0)}
    latencies, rate = block_latency.asked(ladder, 123, 0.5, clock)
    assert rate == 0.25
    assert {rung: (alone.median, alone.requests) for rung, (alone, _) in latencies.items()} == {
        "standard": (2.0, 123),
        "flash": (1.0, 123),
    }
    assert latencies["standard"][1].median >= 2 > latencies["flash"][1].median
    assert [rung for rung, _ in itertools.groupby(seen)] == ["standard", "flash"] * 2 * 5


def test_the_command_times_each_rung_in_both_ways(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"{tmp_path}/latency.json"
    options = "--batches 1 --lengths 16,32 --width 64 --heads 4 --dtype fp32 --requests 100 --device cpu --out"
    assert block_latency.main([*options.split(), out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["standard", "standard", "flash", "flash"] * 2
    assert json.loads(Path(out).read_text())["attention"] == "sdpa_flash"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--load 1.5", "expected a load between 0 and 1, else requests pile up, got 1.5"),
        ("--requests 0", "a P99 needs at least 100 requests, got 0"),
        ("--heads 0", "expected heads that divide the width, got 0 for 4096"),
        ("--heads 3", "expected heads that divide the width, got 3 for 4096"),
        ("--batches 0", "argument --batches: expected whole numbers of at least 1, got 0"),
        ("--lengths 16,-1", "argument --lengths: expected whole numbers of at least 1, got 16,-1"),
        ("--device cuda", "--device cuda needs a CUDA device and found none"),
        ("--attention flash", "no variant is called 'flash': take one of "),
        ("--attention sdpa_cudnn --device cpu", "b1-s128-w4096-h32-bf16: sdpa_cudnn cannot: "),
        ("--out no/latency.json", "--out must be a file in a folder that is there, got no/latency.json"),
        ("--out .", "--out must be a file in a folder that is there, got ."),
    ],
)
def test_what_cannot_be_timed_is_said_in_a_line_before_anything_is(
    options: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(block_latency, "climb", lambda *_: pytest.fail("this was timed"))
    with pytest.raises(SystemExit) as ended:
        block_latency.main(options.split())
    assert ended.value.code == 2
    assert f"error: {message}" in capsys.readouterr().err.splitlines()[-1]


def test_above_standard_is_cudnns_attention_on_a_gpu_if_none_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []
    anything = SimpleNamespace(why_not=lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(block_latency, "variant", lambda name: anything)
    monkeypatch.setattr(block_latency, "climb", lambda shape, rungs, fast, *_: timed.append(fast) or [])
    for options in ("--device cuda", "--device cpu", "--device cuda --attention triton_flash"):
        assert block_latency.main(["--batches", "1", "--lengths", "16", *options.split()]) == 0
    assert timed == ["sdpa_cudnn", "sdpa_flash", "triton_flash"]


def test_what_was_timed_is_kept_when_a_later_shape_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = block_latency.error

    def wrong_when_long(*given: torch.Tensor) -> tuple[float, float]:
        return real(*given) if given[2].shape[1] == 16 else (1.0, 0.5)  # type: ignore[arg-type]

    monkeypatch.setattr(block_latency, "error", wrong_when_long)
    out = tmp_path / "latency.json"
    options = "--batches 1 --lengths 16,32 --width 64 --heads 4 --dtype fp32 --requests 100 --device cpu --out"
    assert block_latency.main([*options.split(), str(out)]) == 1
    assert "wrong at b1-s32" in capsys.readouterr().err
    assert {entry["shape"] for entry in json.loads(out.read_text())["record"]} == {"b1-s16-w64-h4-fp32"}
    assert [path.name for path in tmp_path.iterdir()] == ["latency.json"]


def test_a_wrong_rung_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(block_latency, "error", lambda *given: (1.0, 0.5))
    options = "--batches 1 --lengths 16 --width 64 --heads 4 --device cpu"
    assert block_latency.main(options.split()) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("standard is wrong at b1-s16-w64-h4-bf16: off by 1")
    assert err.count("\n") == 1
