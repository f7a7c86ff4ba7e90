"""The Llama ladder: how long a few tokens take, text to host, on every rung and with peers.

A case of ``llama/`` decodes STEPS tokens from a context and reads them on the host, as a server does that streams text.
What launches cost is in it: the host waits once, at the end. On rungs that launch kernel by kernel the GPU waits for
the host most of that time, so what their kernels alone take is a case of its own: one token, ``llama-kernels/``. These
come first: after a peer with a stream of its own each kernel starts later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from attnkit.llama import BATCHED, LADDER, LLAMA_2_7B, Config, Decoder, Model, Weights, build, rung
from perf.conftest import kind
from perf.peers import PEERS, RoundedInt8
from perf.peers.stepwise import graphs_skipped
from perfgate import Work
from perfgate.plugin import GpuBenchmark

STEPS = 16
MODELS = {
    "llama-2-7b": LLAMA_2_7B,
    "tiny": Config(hidden=256, intermediate=688, layers=2, hq=4, vocab=512, positions=2048),
}
NAMES = (*(entry.name for entry in LADDER), *PEERS)
LAUNCHED = tuple(entry.name for entry in LADDER if not entry.graph)
QUICK = tuple(name for name in NAMES if name not in PEERS or name == "compiled")
"""Other peers take long to compile, or to start."""
AT_MANY = ("matmul", BATCHED.name, *(name for name, peer in PEERS.items() if not peer.int8))
"""What decodes more sequences than the fused kernels take."""


class Size(NamedTuple):
    """A model's name, sequences, and tokens in the cache when the clock starts."""

    model: str
    batch: int
    context: int

    def __str__(self) -> str:
        return f"{self.model}-b{self.batch}-c{self.context}"

    @property
    def capacity(self) -> int:
        """Of a cache that has room for a case."""
        return self.context + STEPS

    def prompt(self, device: torch.device) -> torch.Tensor:
        """Tokens that fill the context, the same each time: ``[batch, context]``."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, MODELS[self.model].vocab, (self.batch, self.context), generator=generator).to(device)


def cases(suite: str, device: str) -> list[tuple[Size, str]]:
    """Every way to decode at every size."""
    if device == "cpu":
        return [(Size("tiny", 1, 128), name) for name in NAMES]
    if suite == "default":  # a model of 7 billion takes seconds a case
        return [(Size("llama-2-7b", 1, 256), name) for name in QUICK]
    alone = [Size("llama-2-7b", 1, context) for context in (128, 256, 512, 2048, 4000)]
    few = [*alone, Size("llama-2-7b", 2, 512), Size("llama-2-7b", 4, 256)]
    many = [Size("llama-2-7b", batch, 256) for batch in (16, 64)]
    return [(size, name) for size in few for name in NAMES] + [(size, name) for size in many for name in AT_MANY]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = cases(metafunc.config.getoption("perf_suite"), kind(metafunc.config))
    if metafunc.function is test_kernels_alone:
        chosen = [(size, name) for size, name in chosen if name in LAUNCHED]
    metafunc.parametrize(("size", "way"), chosen, ids=[f"{name}-{size}" for size, name in chosen])


@pytest.fixture(scope="module")
def models(device: torch.device) -> Callable[[str], Model]:
    """Models by name, one at a time on the device."""
    kept: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in kept:
            kept.clear()
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            kept[name] = Model(Weights.random(MODELS[name], device, dtype))
        return kept[name]

    return get


class Truth:
    """The logits that a rung should have: float32's, of the weights it has; and how far from them it may be.

    The first rung's distance in the weights' own dtype is the measure. Others round as often but elsewhere, and the
    fused kernels less often. To what rounds activations to int8, too, the distance is added at which these roundings
    alone leave a decoder that does all else in float32.
    """

    def __init__(self) -> None:
        self._logits: dict[tuple[Size, bool], torch.Tensor] = {}
        self._distance: dict[tuple[Size, bool], float] = {}

    def logits(self, model: Model, size: Size, int8: bool = False) -> torch.Tensor:
        """Those after the prompt; float32 weights are made once for each size, and let go of again."""
        if (size, int8) not in self._logits:
            decoder = build(rung("matmul"), Model(_exact(model, int8)), batch=size.batch, capacity=size.capacity)
            self._logits[size, int8] = after_prompt(decoder, size)
        return self._logits[size, int8]

    def allowed(self, model: Model, size: Size, rounded: bool = False) -> float:
        """How far logits may be from the truth, as a part of its norm."""
        if rounded:
            return self.allowed(model, size) + 1.5 * self._far(model, size, True)
        return 1.5 * self._far(model, size, False) + 1e-5

    def _far(self, model: Model, size: Size, rounded: bool) -> float:
        if (size, rounded) not in self._distance:
            true = self.logits(model, size, rounded)  # before the decoder is there: it needs room
            decoder: Decoder
            if rounded:
                decoder = RoundedInt8(_exact(model), size.batch, size.capacity, compile=False)
            else:
                decoder = build(rung("matmul"), model, batch=size.batch, capacity=size.capacity)
            self._distance[size, rounded] = distance(after_prompt(decoder, size), true)
        return self._distance[size, rounded]


def _exact(model: Model, int8: bool = False) -> Weights:
    """The weights in float32; with `int8` those that they are rounded to."""
    weights = model.weights
    if weights.dtype == torch.float32:
        return weights
    return (model.int8 if int8 else model.packed).unpacked(torch.float32)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth()


def after_prompt(decoder: Decoder, size: Size) -> torch.Tensor:
    """The logits of one step after the prompt, on a token that is given: rungs may choose others among near equals."""
    prompt = size.prompt(decoder.logits.device)
    decoder.prefill(prompt)
    decoder.tokens[:, size.context] = prompt[:, 0]
    decoder.step()
    return decoder.logits.clone()


def distance(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found - true).norm() / true.norm())


def checked(
    size: Size, way: str, models: Callable[[str], Model], truth: Truth
) -> tuple[Decoder, Config, Callable[[object], dict[str, float]]]:
    """A decoder with the prompt read, its model's sizes, and what says whether it is right."""
    model = models(size.model)
    weights, config = model.weights, model.weights.config
    rounded = way in PEERS and PEERS[way].rounded
    if way in PEERS:
        reason = PEERS[way].absent(weights)
    else:
        reason = rung(way).why_not(config, size.batch, weights.device, weights.dtype)
    if reason:
        pytest.skip(f"{way} cannot: {reason}")
    # before the decoder is there: the truth needs room
    true, allowed = truth.logits(model, size, is_int8(way)), truth.allowed(model, size, rounded)
    skipped = graphs_skipped() if way in PEERS else 0
    if way in PEERS:
        decoder = PEERS[way].build(weights, size.batch, size.capacity)
    else:
        decoder = build(rung(way), model, batch=size.batch, capacity=size.capacity)
    error = distance(after_prompt(decoder, size), true)

    def check(_: object) -> dict[str, float]:
        if not error <= allowed:
            pytest.fail(f"{way} is wrong at {size}: logits differ by {error:.3g}, allowed {allowed:.3g}", pytrace=False)
        if way in PEERS and graphs_skipped() > skipped:
            pytest.fail(f"{way} is not timed at its best: torch.compile replays it as no graph", pytrace=False)
        return {"logits": error}

    return decoder, config, check


def is_int8(way: str) -> bool:
    """Whether its weights are int8."""
    return PEERS[way].int8 if way in PEERS else rung(way).int8


def work(config: Config, size: Size, way: str, steps: int, element: int) -> Work:
    """Operations and bytes of some steps, with elements of so many bytes."""
    mean_context = size.context + (steps + 1) / 2
    return Work(
        flops=2 * config.streamed * size.batch * steps,
        bytes=steps * config.bytes_per_token(mean_context, size.batch, 1 if is_int8(way) else element, element),
        tokens=size.batch * steps,
        dtype="bf16" if element == 2 else "fp32",
    )


def test_kernels_alone(
    gpu_benchmark: GpuBenchmark, size: Size, way: str, models: Callable[[str], Model], truth: Truth
) -> None:
    decoder, config, check = checked(size, way, models, truth)

    def step() -> torch.Tensor:
        decoder.rewind(size.context)
        decoder.step()
        return decoder.tokens

    gpu_benchmark(
        step,
        work=work(config, size, way, 1, models(size.model).weights.dtype.itemsize),
        name=f"llama-kernels/{way}/{size}",
        group=f"llama-kernels/{size}",
        reference=way == "matmul",
        check=check,
    )


def test_decoding(
    gpu_benchmark: GpuBenchmark, size: Size, way: str, models: Callable[[str], Model], truth: Truth
) -> None:
    decoder, config, check = checked(size, way, models, truth)

    def decode() -> torch.Tensor:
        decoder.rewind(size.context)
        for _ in range(STEPS):
            decoder.step()
        return decoder.tokens[:, size.context + 1 :].cpu()

    gpu_benchmark(
        decode,
        work=work(config, size, way, STEPS, models(size.model).weights.dtype.itemsize),
        name=f"llama/{way}/{size}",
        group=f"llama/{size}",
        reference=way == "matmul",
        check=check,
    )
