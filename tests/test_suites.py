"""Which cases a command times on a GPU; none is needed to collect them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attnkit.problem import Problem
from attnkit.products import TABLE, product
from attnkit.variants import variant
from perf import test_block, test_decode, test_linear, test_llama
from perf.attention import TITLE
from perf.attention import work as attention_work
from perf.problems import decoding, lineups
from perf.test_linear import Case, compared
from perf.test_llama import cases
from perfgate import Work
from perfgate.baseline import read
from perfgate.gate import Exit
from perfgate.trust import data
from tests.collect import SUITES

ROOT = Path(__file__).parents[1]
WALK = """
import sys, torch
import perf.conftest
from attnkit.problem import Problem
from attnkit.variants import variant

way, device = variant(sys.argv[1]), torch.device("cuda" if torch.cuda.is_available() else "cpu")
problem = Problem(b=1, hq=2, sq=16, d=16, dtype="fp32")
if reason := way.absent() or way.rejects(problem, device, "bwd"):
    sys.exit(f"skip: {reason}")
q, k, v, dout = problem.inputs(device, seed=0, requires_grad=True)
walks = []
for again in (False, True, True, False):
    out = way.attention(q, k, v, **problem.options(device))
    walks.append(torch.autograd.grad(out, (q, k, v), dout, retain_graph=again))
assert all(torch.equal(x, y) for walk in walks for x, y in zip(walk, walks[0], strict=True))
"""
COLLECT = """
import json, sys
import pytest

for words in json.loads(sys.argv[1]):
    code = pytest.main(["--collect-only", "-q", "--perf-device=cuda", "-p", "no:hypothesispytest", *words])
    print("ended with", int(code), flush=True)
"""

ENV = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])),
}


def collected(*calls: list[str]) -> list[list[str]]:
    """What pytest collects for each of these arguments; in one process, for its imports take longer."""
    command = [sys.executable, "-c", COLLECT, json.dumps(calls)]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ended with 0\n") == len(calls), done.stdout + done.stderr
    found = done.stdout.split("ended with 0\n")[:-1]
    return [[line for line in said.splitlines() if "::" in line] for said in found]


def test_a_model_of_billions_is_timed_when_it_is_asked_for() -> None:
    usual, file, keyword, full = collected(
        ["perf"], ["perf/test_llama.py"], ["perf", "-k", "llama"], ["perf", "--perf-suite=full"]
    )
    assert usual
    assert [case for case in usual if "llama" in case] == []
    assert file
    assert keyword == file
    assert all("llama-2-7b" in case for case in file)
    assert set(full) > {*usual, *file}
    # a peer may make every later kernel start later
    alone = [n for n, case in enumerate(file) if "test_kernels_alone" in case]
    assert max(alone) < min(n for n, case in enumerate(file) if "test_decoding" in case)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--perf-suite=nope"], "error: argument --perf-suite: invalid choice: 'nope' (choose from "),
        (["perf/nowhere.py"], "ERROR: file or directory not found: perf/nowhere.py"),
    ],
)
def test_a_suite_that_is_not_there_is_one_clear_line(words: list[str], said: str) -> None:
    command = [sys.executable, "-m", "pytest", "perf", *words]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == Exit.USAGE
    assert said in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_peers_that_take_long_to_start_are_timed_in_the_full_suite() -> None:
    slow = {"compiled_int8", "transformers", "bitsandbytes_int8", "torchao_int8", "vllm"}

    def ways(suite: str, least: int = 1) -> set[str]:
        return slow & {way for size, way in cases(suite, "cuda") if size.batch >= least}

    assert ways("default") == set()
    assert ways("full") == slow
    assert ways("full", least=16) == {"transformers", "vllm"}


@pytest.mark.parametrize("problem", test_decode.IN_ONE_PIECE, ids=lambda problem: problem.name)
def test_what_is_timed_in_pages_is_what_the_variant_takes(problem: Problem) -> None:
    pytest.importorskip("triton")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    paged = dataclasses.replace(test_decode.in_pages(problem), dtype="fp16")  # the interpreter alone misreads bfloat16
    assert variant("triton_paged").why_not(paged, device, test_decode.PASS) is None


def test_a_product_that_rounds_its_input_is_not_let_off_for_more() -> None:
    way, given = product("torch_dynamic"), Case(20, 64, 4096, "bf16", int8=True).operands(torch.device("cpu"), 0)
    assert compared(way, given).wrong == 0
    for wrong in (
        lambda x, weight, scale: 1.05 * way.multiply(x, weight, scale),
        lambda x, weight, scale: way.multiply(x[:, :-32], weight[:, :-32], scale),
        lambda x, weight, scale: way.multiply(x, weight, scale.roll(1)),
    ):
        assert compared(dataclasses.replace(way, multiply=wrong), given).wrong > 0


def works() -> Iterator[tuple[str, Work]]:
    """The default suite's cases on a GPU, and what they do."""
    attention = {TITLE[pass_]: (pass_, lineups) for pass_ in TITLE} | {"decode": ("fwd", decoding)}
    for title, (pass_, listed) in attention.items():
        for lineup in listed(pass_, "default", "cuda"):
            for name in lineup.variants:
                yield f"{title}/{name}/{lineup.problem.name}", attention_work(lineup.problem, pass_)
    for case in test_linear.cases("cuda", "default"):
        for way in TABLE:
            yield f"linear/{way.name}/{case.name}", case.work
    for shape, name, projections in test_block.cases("cuda", "default"):
        yield f"block/{name}/{projections}-{shape.name}", shape.work(projections in test_block.INT8)
    for size, way in cases("default", "cuda"):
        config = test_llama.MODELS[size.model]
        yield f"llama/{way}/{size}", test_llama.work(config, size, way, test_llama.STEPS, 2)
        yield f"llama-kernels/{way}/{size}", test_llama.work(config, size, way, 1, 2)


def test_cases_do_the_work_that_the_committed_baseline_knows_them_by() -> None:
    # it refuses a case that does other work, so who changes work measures it anew
    (*_, newest) = sorted((ROOT / "baselines").glob("NVIDIA*/*/*_default.json"))
    known = read(newest).records
    both = {name: (work, known[name].case.work) for name, work in works() if name in known}
    assert len(both) > 0.9 * len(known)
    assert [name for name, (now, then) in both.items() if now != then] == []


def test_runs_of_the_subset_that_are_counted_together_are_of_the_same_cases_which_are_those_that_it_has() -> None:
    runs = [run for run in data.read(ROOT / "docs" / "trust.jsonl") if getattr(run, "suite", "") == "subset"]
    (cases,) = {frozenset(run.verdicts) for run in runs if isinstance(run, data.Contest)}
    (nodes,) = collected(list(SUITES["subset"]))
    titles = {"test_forward": "forward", "test_backward": "backward", "test_both": "forward+backward"}
    found = [re.fullmatch(r".*::(\w+)\[(\w+?)-(b\d.*)\]", node) for node in nodes]
    names = [f"{titles[match[1]]}/{match[2]}/{match[3]}" for match in found if match]
    assert len(names) == len(nodes) == 48
    assert frozenset(names) == cases


@pytest.mark.parametrize("name", ["naive_compiled", "flex"])
def test_a_graph_is_walked_again_whatever_was_compiled_for_one_walk(name: str) -> None:
    """In a process of its own, for torch is told so where a suite begins."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    command = [sys.executable, "-c", WALK, name]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    if done.stderr.startswith("skip: "):
        pytest.skip(done.stderr.removeprefix("skip: ").strip())
    assert done.returncode == 0, done.stderr
