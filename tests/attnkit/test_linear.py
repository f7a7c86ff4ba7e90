"""What int8 weights cost: laws of the rounding, and the perplexity of a model trained here."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attnkit.linear import Int8Linear, dequantize, quantize, quantize_
from attnkit.products import Activations, rounds

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 40))
MAGNITUDES = st.sampled_from([1e-44, 1e-38, 1e-30, 1e-3, 1.0, 1e4, 1e30, 3e38])


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    """Weights ``[n, k]`` whose rows are of very different sizes, some zero, some with an outlier."""
    n, k = draw(SIZES)
    torch.manual_seed(draw(st.integers(0, 2**16)))
    weight = torch.empty(n, k).uniform_(-1, 1)
    sizes = torch.tensor(draw(st.lists(st.one_of(MAGNITUDES, st.just(0.0)), min_size=n, max_size=n)))
    if draw(st.booleans()):
        weight[:, draw(st.integers(0, k - 1))] = 1.0
        weight[:, : k // 2] *= 0.001
    return weight * sizes[:, None]


@given(weight=weights())
def test_a_weight_is_off_by_half_a_scale_at_most(weight: torch.Tensor) -> None:
    q, scale = quantize(weight)
    error = (dequantize(q, scale).double() - weight.double()).abs()
    # float32 rounds the scale, the quotient and their product: three units of the weight itself
    slack = 3 * 2.0**-24 * weight.double().abs() + 2.0**-149
    assert (error <= scale[:, None].double() / 2 * (1 + 1e-6) + slack).all()
    assert q.dtype == torch.int8
    assert q.abs().max() <= 127
    assert (scale > 0).all()


@given(weight=weights())
def test_the_largest_weight_of_a_channel_uses_the_whole_range(weight: torch.Tensor) -> None:
    q, _ = quantize(weight)
    largest = weight.abs().amax(1)
    normal = largest > 127 * torch.finfo(torch.float32).tiny
    assert (q.int().abs().amax(1)[normal] == 127).all()
    assert (q[largest == 0] == 0).all()


@given(weight=weights(), exponent=st.integers(-20, 20))
def test_the_unit_of_a_channel_does_not_matter(weight: torch.Tensor, exponent: int) -> None:
    weight = weight[(weight.abs().amax(1) > 1e-20) & (weight.abs().amax(1) < 1e20)]
    if len(weight):
        (q, scale), (again, scaled) = quantize(weight), quantize(weight * 2.0**exponent)
        assert torch.equal(q, again)
        assert torch.equal(scale * 2.0**exponent, scaled)


@given(weight=weights())
def test_what_was_quantised_is_quantised_to_itself(weight: torch.Tensor) -> None:
    # below, scales are at their least and the largest weight need not use the range
    q, scale = quantize(weight[weight.abs().amax(1) > 1e-30])
    assert torch.equal(quantize(dequantize(q, scale))[0], q)


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@settings(max_examples=40)
@given(data=st.data())
def test_outputs_are_off_by_what_weights_and_activations_are(
    dtype: torch.dtype, activations: Activations, data: st.DataObject
) -> None:
    n, k = data.draw(SIZES)
    shape = data.draw(st.lists(st.integers(1, 4), max_size=2))
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    linear = nn.Linear(k, n, bias=data.draw(st.booleans())).to(dtype).requires_grad_(False)
    layer = Int8Linear.from_linear(linear, activations=activations)
    x = torch.randn(*shape, k).to(dtype)
    x[..., data.draw(st.integers(0, k - 1))] *= data.draw(st.sampled_from([1, 1000]))
    out = layer(x)
    assert out.dtype == dtype
    assert out.shape == (*shape, n)
    bias = 0.0 if linear.bias is None else linear.bias.detach().double()
    truth = x.double() @ linear.weight.detach().double().T + bias
    size = x.double().abs() @ linear.weight.detach().double().abs().T
    allowed = x.double().abs().sum(-1, keepdim=True) * layer.scale.double() / 2 * (1 + 1e-6)
    allowed = allowed + truth.abs() * torch.finfo(dtype).eps + (size + 1) * (k + 4) * 2.0**-24
    if rounds(activations, x.shape[:-1].numel()):
        # an element of x is off by half a step of its row, and is multiplied by a weight that is off itself
        step = x.double().abs().amax(-1, keepdim=True) / 127
        weights = linear.weight.double().abs().sum(1) + k * layer.scale.double() / 2
        allowed = allowed + step / 2 * weights * (1 + 2.0**-11)
    assert ((out.double() - truth).abs() <= allowed).all()


@pytest.mark.parametrize("activations", [None, "int8"])
def test_rows_and_columns_that_are_not_there_give_none(activations: Activations) -> None:
    def layer(n: int, k: int) -> Int8Linear:
        return Int8Linear(*quantize(torch.ones(n, k)), torch.arange(n).float(), activations=activations)

    assert layer(3, 8)(torch.randn(2, 0, 8)).shape == (2, 0, 3)
    assert layer(0, 8)(torch.randn(2, 10, 8)).shape == (2, 10, 0)
    # of nothing the sum is zero
    assert torch.equal(layer(3, 0)(torch.randn(2, 10, 0)), torch.arange(3).float().expand(2, 10, 3))


def test_a_cast_leaves_the_scales_exact() -> None:
    linear = nn.Linear(16, 4)
    layer = Int8Linear.from_linear(linear).to(torch.bfloat16)
    assert layer.scale.dtype == torch.float32
    assert torch.equal(layer.scale, quantize(linear.weight)[1])
    assert layer.weight.dtype == torch.int8
    assert layer.bias is not None
    assert layer.bias.dtype == torch.bfloat16


def test_what_was_saved_loads() -> None:
    first, second = (Int8Linear.from_linear(nn.Linear(16, 4)) for _ in range(2))
    second.load_state_dict(first.state_dict())
    x = torch.randn(3, 16)
    assert torch.equal(first(x), second(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.again = self.inner[0]
        self.attention = nn.MultiheadAttention(8, 2)


def test_every_linear_layer_of_a_model_is_replaced() -> None:
    model = Tied()
    before = model.embedding.weight.detach().clone()
    assert quantize_(model, keep=lambda name, _: name == "inner.2") == ["head", "inner.0", "again"]
    assert isinstance(model.head, Int8Linear)
    assert model.again is model.inner[0]
    assert type(model.inner[2]) is nn.Linear
    assert torch.equal(model.embedding.weight, before)
    assert not isinstance(model.attention.out_proj, Int8Linear)


def test_what_cannot_be_quantised_is_said_and_nothing_is_replaced() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight[2, 1] = float("nan")
    with pytest.raises(ValueError, match="1: weight must be finite to be quantised, got inf or nan in 1 rows, first 2"):
        quantize_(model)
    assert type(model[0]) is nn.Linear
    with pytest.raises(ValueError, match=r"Int8Linear.from_linear\(layer\)"):
        quantize_(model[0])
    with pytest.raises(ValueError, match=r"expected a floating-point weight \[n, k\], got torch.int8"):
        quantize(torch.zeros(2, 2, dtype=torch.int8))
    q, scale = quantize(torch.randn(3, 4))
    with pytest.raises(
        ValueError, match=r"expected a float32 scale \[3\], one a row of weight, got torch.float32 \[4\]"
    ):
        Int8Linear(q, torch.ones(4))
    with pytest.raises(ValueError, match=r"expected a bias \[3\], got \[4\]"):
        Int8Linear(q, scale, torch.ones(4))
    with pytest.raises(ValueError, match="expected an int8 weight"):
        Int8Linear(q.float(), scale)
    with pytest.raises(ValueError, match=r"expected x \[..., 4\], got \[2, 5\]"):
        Int8Linear(q, scale)(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="activations must be None or 'int8', got 'int4'"):
        Int8Linear(q, scale, activations="int4")  # type: ignore[arg-type]
    good = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="activations must be None or 'int8', got True"):
        quantize_(good, activations=True)  # type: ignore[arg-type]
    assert type(good[0]) is nn.Linear


def test_a_few_rows_are_multiplied_as_they_are() -> None:
    linear = nn.Linear(64, 16).requires_grad_(False)
    plain, rounding = (Int8Linear.from_linear(linear, activations=kind) for kind in (None, "int8"))
    x = torch.randn(3, 4, 64)
    assert torch.equal(rounding(x[0]), plain(x[0]))
    assert not torch.equal(rounding(x), plain(x))
    # where a gradient is wanted, too: it is that of what was computed
    x.requires_grad_()
    rounding(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, dequantize(plain.weight, plain.scale).sum(0).expand(3, 4, 64))
    assert "activations=int8" in repr(rounding)
    assert "activations" not in repr(plain)


class Speller(nn.Module):
    """Guesses a letter from the CONTEXT before it."""

    CONTEXT, WIDTH = 6, 24

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, self.WIDTH)
        self.layers = nn.Sequential(
            nn.Linear(self.CONTEXT * self.WIDTH, 192), nn.GELU(), nn.Linear(192, 192), nn.GELU(), nn.Linear(192, 128)
        )

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        return self.layers(self.embedding(letters).flatten(1))


def windows(text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every stretch of letters, and the letter after it."""
    pieces = text.unfold(0, Speller.CONTEXT + 1, 1)
    return pieces[:, :-1], pieces[:, -1]


def perplexity(model: nn.Module, text: torch.Tensor) -> float:
    letters, targets = windows(text)
    with torch.no_grad():
        return math.exp(nn.functional.cross_entropy(model(letters), targets))


@pytest.fixture(scope="module")
def trained() -> tuple[Speller, torch.Tensor]:
    """A model of the documentation that ships with Python, and a part of it that the model has not seen."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "ignore")[:400_000]
    letters = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    seen, unseen = letters[:-20_000], letters[-20_000:]
    inputs, targets = windows(seen)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = Speller()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400):
        batch = torch.randint(len(targets), (512,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    return model, unseen


def test_perplexity_stays(trained: tuple[Speller, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    model, unseen = trained
    before = perplexity(model, unseen)
    frequencies = unseen.bincount(minlength=128).double() / len(unseen)
    without_context = math.exp(-(frequencies * frequencies.clamp(min=1e-9).log()).sum())
    assert before < without_context / 2, "the model has not learned: nothing can be said of its quantisation"
    logits = model(windows(unseen)[0]).detach()

    rounded = Speller()
    rounded.load_state_dict(model.state_dict())
    assert quantize_(rounded) == ["layers.0", "layers.2", "layers.4"]
    change = perplexity(rounded, unseen) / before - 1
    error = float((rounded(windows(unseen)[0]).detach() - logits).norm() / logits.norm())
    print(f"perplexity {before:.3f}, {change:+.3%} with int8 weights; logits are off by {error:.2%}")
    # a rounding is spread evenly over a step, 0.3 of it in the mean; a channel whose largest weight is three or
    # four times the usual one has 127 / 4 steps there: under 1 % a layer, and there are three
    assert error < 3 * 0.01
    assert abs(change) < 0.002

    both = Speller()
    both.load_state_dict(model.state_dict())
    quantize_(both, activations="int8")
    with torch.no_grad():
        further = float((both(windows(unseen)[0]) - logits).norm() / logits.norm())
    more = perplexity(both, unseen) / before - 1
    print(f"{more:+.3%} with activations in int8, too; logits are off by {further:.2%}")
    # a row's steps are as coarse as a channel's: of the same size in each layer, beside the weights'
    assert error < further < 3 * (0.01 + 0.01)
    assert abs(more) < 0.004

    # the same with 3 bits is seen: the measure is not blind
    monkeypatch.setattr("attnkit.linear.LARGEST", 3)
    crude = Speller()
    crude.load_state_dict(model.state_dict())
    quantize_(crude)
    assert perplexity(crude, unseen) / before - 1 > 0.02
