"""The fused kernels, run from their own source on the host, against the reference rung on the same weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from attnkit.llama import Config, Packed, Plain, Sampling, Weights, generate
from attnkit.llama.fused import Fused, Launch
from attnkit.llama.plain import cut
from attnkit.llama.sampling import pick
from attnkit.llama.sizes import Form
from attnkit.variants import naive
from tests.attnkit.llama import on_host

NAIVE = naive.VARIANT.attention
# an epsilon that is seen where it is left out
BASE = Config(hidden=64, intermediate=96, layers=2, hq=4, vocab=50, positions=64, epsilon=0.1)
SMALL = Form(warps=2, chunk=512, depth=3)
FIXED = dataclasses.replace(SMALL, fixed=True)
LONE = dataclasses.replace(SMALL, depth=1)


def fused(
    weights: Weights, batch: int, launch: Launch, *, int8: bool = False, blocks: int = 3, **options: object
) -> Fused:
    packed = Packed.of(weights, int8=int8)
    options = {"form": SMALL, "compile": on_host.compile, "prefill": NAIVE} | options
    return Fused(packed, batch, 32, launch=launch, blocks=blocks, **options)  # type: ignore[arg-type]


def reference(weights: Weights, batch: int, **options: object) -> Plain:
    return Plain(weights, batch, 32, attention=cut(NAIVE), prefill=NAIVE, **options)  # type: ignore[arg-type]


def text(config: Config, batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, config.vocab, (batch, length), generator=torch.Generator().manual_seed(3))


CASES = {
    "one-head-a-head": (BASE, 1, False),
    "int8": (BASE, 1, True),
    "groups-of-heads": (dataclasses.replace(BASE, hkv=1, d=32, hidden=80), 1, False),
    "a-batch": (dataclasses.replace(BASE, hkv=2, d=16, intermediate=80), 3, False),
    "a-batch-in-int8": (dataclasses.replace(BASE, hkv=2, layers=1, intermediate=1104), 2, True),
    "rows-longer-than-a-ring": (dataclasses.replace(BASE, intermediate=1104, layers=1), 1, False),
    "rows-of-several-chunks": (dataclasses.replace(BASE, hidden=288, hq=2, hkv=2, d=64, layers=1), 1, False),
}


@pytest.mark.parametrize("launch", ["stages", "persistent"])
@pytest.mark.parametrize(
    ("case", "form"), [(case, SMALL) for case in CASES] + [(case, FIXED) for case, (*_, int8) in CASES.items() if int8]
)
def test_logits_are_those_of_the_reference(case: str, form: Form, launch: Launch) -> None:
    config, batch, int8 = CASES[case]
    weights = Weights.random(config, seed=1)
    ours = fused(weights, batch, launch, int8=int8, form=form)
    truth = reference(ours.weights.unpacked(torch.float32), batch)
    plain = reference(ours.weights.unpacked(torch.bfloat16), batch)
    prompt = text(config, batch, 9)
    for decoder in (ours, truth, plain):
        decoder.prefill(prompt[:, :4])
    for i in range(4, 9):
        for decoder in (ours, truth, plain):
            decoder.tokens[:, i] = prompt[:, i]
            decoder.step()
        error = (ours.logits - truth.logits).norm() / truth.logits.norm()
        allowed = (plain.logits - truth.logits).norm() / truth.logits.norm()
        # both round to bfloat16: plain after every operation, ours before products alone; plain rounds int8 weights too
        assert error <= 1.2 * allowed
        assert torch.equal(ours.logits.argmax(-1), ours.tokens[:, i + 1].long())


def test_fixed_point_activations_are_for_int8_weights() -> None:
    with pytest.raises(ValueError, match="fixed-point activations are for int8 weights, got bfloat16"):
        fused(Weights.random(BASE), 1, "stages", form=FIXED)


def test_what_is_not_finite_is_seen_in_fixed_point_too() -> None:
    weights = Weights.random(BASE, seed=1)
    for poison in (float("nan"), float("inf")):
        weights.layers[0].mlp_norm[3] = poison
        ours = fused(weights, 1, "stages", int8=True, form=FIXED)
        ours.prefill(text(BASE, 1, 2))
        ours.step()
        assert not ours.logits.isfinite().any()


@pytest.mark.parametrize("launch", ["stages", "persistent"])
def test_sampled_text_is_that_of_the_reference(launch: Launch) -> None:
    weights = Weights.random(BASE, seed=2)
    sampling = Sampling(temperature=1.5, seed=7)
    ours = fused(weights, 2, launch, sampling=sampling)
    prompt = text(BASE, 2, 3)
    ours.prefill(prompt)
    for position in range(3, 9):
        ours.step()
        expected = pick(ours.logits, sampling, torch.tensor([position]))
        assert torch.equal(ours.tokens[:, position + 1].long(), expected)


@pytest.mark.parametrize(("batch", "options"), [(1, {}), (2, {"int8": True, "form": FIXED}), (1, {"form": LONE})])
def test_several_tokens_of_one_launch_are_those_of_several_launches(batch: int, options: dict[str, Any]) -> None:
    weights = Weights.random(BASE, seed=4)
    prompt = text(BASE, batch, 3)
    one, many = (fused(weights, batch, "persistent", **options) for _ in range(2))
    expected = generate(one, prompt, 6)
    many.prefill(prompt)
    many._run("decode", 5, together=True)
    assert torch.equal(many.tokens[:, 3:9].long(), expected.long())
    assert int(many.position) == 8
    assert torch.equal(many.k_cache, one.k_cache)


@pytest.mark.parametrize("blocks", [1, 2, 5, 20])
def test_any_number_of_blocks_gives_the_same_text(blocks: int) -> None:
    weights = Weights.random(BASE, seed=5)
    prompt = text(BASE, 1, 5)
    expected = generate(fused(weights, 1, "stages"), prompt, 6)
    assert torch.equal(generate(fused(weights, 1, "persistent", blocks=blocks), prompt, 6), expected)
