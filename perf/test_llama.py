"""The Llama ladder: how long a few tokens take, text to host, on every rung and with peers.

A case decodes STEPS tokens from a context and reads them on the host, as a server does that streams text. What launches
cost is in it: the host waits once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from attnkit.llama import BATCHED, LADDER, LLAMA_2_7B, Config, Decoder, Model, Rung, Weights, build, rung
from perf.peers import PEERS
from perfgate import Work
from perfgate.plugin import GpuBenchmark

STEPS = 32
TINY = Config(hidden=256, intermediate=688, layers=2, hq=4, vocab=512, positions=2048)
MODELS = {"llama-2-7b": LLAMA_2_7B, "tiny": TINY}
NAMES = (*(entry.name for entry in LADDER), *PEERS)


def sizes(config: pytest.Config) -> list[tuple[str, int, int]]:
    """The models with batch and context that are timed."""
    if not torch.cuda.is_available() or config.getoption("perf_device") == "cpu":
        return [("tiny", 1, 128)]
    chosen = [("llama-2-7b", 1, 256), ("llama-2-7b", 1, 2048), ("llama-2-7b", 4, 256)]
    if config.getoption("perf_suite") == "full":
        chosen += [("llama-2-7b", 1, 128), ("llama-2-7b", 1, 4000), ("llama-2-7b", 2, 512)]
    return chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every way to decode, at every size; more sequences than the fused kernels take in one of them."""
    if "way" not in metafunc.fixturenames:
        return
    cases = [(size, name) for size in sizes(metafunc.config) for name in NAMES]
    if torch.cuda.is_available():
        many = [("llama-2-7b", batch, 256) for batch in (16, 64)]
        cases += [(size, name) for size in many for name in ("matmul", BATCHED.name, *PEERS)]
    ids = [f"{name}-{model}-b{batch}-c{context}" for (model, batch, context), name in cases]
    metafunc.parametrize(("size", "way"), cases, ids=ids)


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


@pytest.fixture(scope="module")
def expected() -> dict[tuple[str, int, int], torch.Tensor]:
    """Logits of the first rung, by size."""
    return {}


def tolerance(dtype: torch.dtype, int8: bool) -> float:
    """How far logits may be from the first rung's, relative to their norm: roundings of the weights and of every step."""
    return 0.15 if int8 else 0.05 if dtype == torch.bfloat16 else 1e-4


def test_decoding(
    gpu_benchmark: GpuBenchmark,
    size: tuple[str, int, int],
    way: str,
    models: Callable[[str], Model],
    expected: dict[tuple[str, int, int], torch.Tensor],
) -> None:
    name, batch, context = size
    model = models(name)
    weights, config = model.weights, model.weights.config
    entry: Rung | None = None
    if way in PEERS:
        if reason := PEERS[way].absent(weights):
            pytest.skip(f"{way} cannot: {reason}")
    else:
        entry = rung(way)
        if reason := entry.why_not(config, batch, weights.device, weights.dtype):
            pytest.skip(f"{way} cannot: {reason}")
    capacity = context + STEPS
    prompt = torch.randint(0, config.vocab, (batch, context), generator=torch.Generator().manual_seed(0))

    def logits(decoder: Decoder) -> torch.Tensor:
        """Those of the step after the prompt, whose token is given: rungs may choose others among equals."""
        decoder.prefill(prompt.to(weights.device))
        decoder.tokens[:, context] = prompt[:, 0].to(weights.device)
        decoder.step()
        return decoder.logits.clone()

    if size not in expected:
        expected[size] = logits(build(rung("matmul"), model, batch=batch, capacity=capacity))
    if entry is None:
        decoder = PEERS[way].build(weights, batch, capacity)
    else:
        decoder = build(entry, model, batch=batch, capacity=capacity)
    found = logits(decoder)
    decoder.rewind(context)

    def decode() -> torch.Tensor:
        decoder.rewind(context)
        for _ in range(STEPS):
            decoder.step()
        return decoder.tokens[:, context + 1 : context + 1 + STEPS].cpu()

    def check(_: torch.Tensor) -> dict[str, float]:
        error = float((found - expected[size]).norm() / expected[size].norm())
        allowed = tolerance(weights.dtype, entry is not None and entry.int8)
        if not error <= allowed:
            pytest.fail(f"{way} is wrong at {name}: logits differ by {error:.3g}, allowed {allowed}", pytrace=False)
        return {"logits": error}

    weight_bytes = 1 if entry is not None and entry.int8 else weights.dtype.itemsize
    token_bytes = config.bytes_per_token(
        context + (STEPS + 1) / 2, batch, weight_bytes=weight_bytes, cache_bytes=weights.dtype.itemsize
    )
    gpu_benchmark(
        decode,
        work=Work(
            flops=2 * config.streamed * batch * STEPS,
            bytes=token_bytes * STEPS,
            tokens=batch * STEPS,
            dtype="bf16" if weights.dtype == torch.bfloat16 else "fp32",
        ),
        name=f"llama/{way}/{name}-b{batch}-c{context}",
        group=f"llama/{name}-b{batch}-c{context}",
        reference=way == "matmul",
        check=check,
    )
