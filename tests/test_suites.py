"""Which cases a command times on a GPU; none is needed to collect them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attnkit.products import product
from perf.test_linear import Case, compared
from perf.test_llama import cases

ROOT = Path(__file__).parents[1]
Collect = Callable[..., list[str]]


@pytest.fixture
def collect() -> Collect:
    def run(*arguments: str) -> list[str]:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--perf-device=cuda", *arguments]
        paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return [line for line in done.stdout.splitlines() if "::" in line]

    return run


def test_a_model_of_billions_is_timed_when_it_is_asked_for(collect: Collect) -> None:
    cases = collect("perf")
    assert [case for case in cases if "llama" in case] == []
    llama = collect("perf/test_llama.py")
    assert llama
    assert collect("perf", "-k", "llama") == llama
    assert set(collect("perf", "--perf-suite=full")) > {*cases, *llama}


def test_peers_that_take_long_to_start_are_timed_in_the_full_suite() -> None:
    slow = {"compiled_int8", "transformers", "bitsandbytes_int8", "torchao_int8", "vllm"}

    def ways(suite: str, least: int = 1) -> set[str]:
        return slow & {way for size, way in cases(suite, "cuda") if size.batch >= least}

    assert ways("default") == set()
    assert ways("full") == slow
    assert ways("full", least=16) == {"transformers", "vllm"}


def test_a_product_that_rounds_its_input_is_not_let_off_for_more() -> None:
    way, given = product("torch_dynamic"), Case(20, 64, 4096, "bf16", int8=True).operands(torch.device("cpu"), 0)
    assert compared(way, given).wrong == 0
    for wrong in (
        lambda x, weight, scale: 1.05 * way.multiply(x, weight, scale),
        lambda x, weight, scale: way.multiply(x[:, :-32], weight[:, :-32], scale),
        lambda x, weight, scale: way.multiply(x, weight, scale.roll(1)),
    ):
        assert compared(dataclasses.replace(way, multiply=wrong), given).wrong > 0
