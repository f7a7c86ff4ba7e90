"""What others fuzz with: it finds what is wrong, lets pass what is right, and draws what it was asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

import attnkit
from attnkit import table
from attnkit.mask import Boolean, Documents, Mask, Window
from attnkit.problem import Cache, Pass, Problem, Varlen
from attnkit.testing import check, problems
from attnkit.variant import FEATURES, features
from attnkit.variants import TABLE, variant

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "fuzzing.md"


def run(directory: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run a test file in a pytest of its own."""
    file = directory / "test_fuzz.py"
    file.write_text(code)
    # not the plugins of this run: a user of attnkit.testing needs neither perfgate nor a plugin
    environment = {**os.environ, "PYTHONPATH": str(Path(attnkit.__file__).parents[1]), "PYTEST_PLUGINS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:perfgate", str(file)]
    return subprocess.run(
        command, env=environment, cwd=directory, capture_output=True, text=True, timeout=280, check=False
    )


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)


def test_the_documents_three_lines_pass_what_is_right_and_find_a_lost_scale(tmp_path: Path) -> None:
    first, _ = examples()
    right = "from attnkit.variants.naive import attention\nfrom hypothesis import settings\n"
    right += "settings.register_profile('short', max_examples=10)\nsettings.load_profile('short')\n"
    done = run(tmp_path, f"{right}my_attention = attention\n{first}")
    assert "1 passed" in done.stdout, done.stdout
    wrong = "def my_attention(q, k, v, *, mask, scale):\n    return attention(q, k, v, mask=mask)\n"
    done = run(tmp_path, f"{right}{wrong}{first}")
    assert "AssertionError: my_attention is wrong at b1-h1-s" in done.stdout, done.stdout


def test_the_documents_example_passes_and_finds_what_the_document_says(tmp_path: Path) -> None:
    _, second = examples()
    done = run(tmp_path, second)
    assert "2 passed" in done.stdout, done.stdout
    assumption = '    assume(problem.mask == "full" or problem.sq == problem.skv)\n'
    assert assumption in second
    done = run(tmp_path, second.replace(assumption, "").replace("max_examples=30", "max_examples=100"))
    assert re.search(r"torch_sdpa is wrong at b1-h1-sq\d+-skv\d+-d16-fp16-causal: ", done.stdout), done.stdout


@pytest.mark.parametrize("feature", FEATURES)
def test_what_is_not_asked_for_is_not_drawn_and_what_is_asked_for_is(feature: str) -> None:
    drawn: set[str] = set()

    @settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
    @given(problem=problems(features=(feature,)))  # type: ignore[arg-type]
    def collect(problem: Problem) -> None:
        drawn.update(features(problem))

    collect()
    assert drawn == {feature}


@given(problem=problems(features=(), dtypes=("fp32",), layouts=("bshd",), head_dims=(8,), value_dims=(), groups=(1,),
                        scales=(None,), longest=9))  # fmt: skip
def test_what_is_drawn_stays_within_its_bounds(problem: Problem) -> None:
    assert (problem.dtype, problem.layout, problem.d, problem.dv) == ("fp32", "bshd", 8, 8)
    assert problem.group == 1
    assert problem.scale is None
    assert max(problem.sq, problem.skv) <= 9
    assert problem.mask in ("full", "causal")


def test_a_wrong_gradient_is_found_backward_alone() -> None:
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, dx: torch.Tensor) -> torch.Tensor:
            return dx / 2

    def halved(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask: Mask, scale: float | None, sink: torch.Tensor
    ) -> torch.Tensor:
        return variant("naive").attention(q, k, v, mask=mask, scale=scale, sink=Halved.apply(sink))

    problem = Problem(b=1, hq=2, sq=9, d=16, dtype="fp32", sink=True)
    check(halved, problem)
    with pytest.raises(AssertionError, match=f"halved is wrong at {problem.name}: dsink is off by"):
        check(halved, problem, pass_="fwd+bwd")


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"features": ("windows", "sink", "soft-cap")}, "features must be among .* fp8, got 'windows', 'soft-cap'"),
        ({"dtypes": ("fp16", "float8")}, "dtypes must be among fp16, bf16, fp32, fp8, got 'float8'"),
        ({"dtypes": (), "groups": ()}, "dtypes and groups must not be empty: leave out what is not to be bounded"),
        ({"head_dims": ()}, "head_dims must not be empty"),
        ({"features": (), "dtypes": ("fp8",)}, "another one than fp8 where features have it not"),
        ({"longest": 1}, "longest must be a whole number of at least 2, got 1"),
        ({"features": (), "longest": 0}, "longest must be a whole number of at least 1, got 0"),
    ],
    ids=str,
)
def test_bounds_that_leave_nothing_to_draw_are_refused_at_once(bounds: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        problems(**bounds)


@given(problem=problems(longest=2) | problems(features=(), longest=1))
def test_the_shortest_bounds_leave_some(problem: Problem) -> None:
    assert min(problem.sq, problem.skv) >= 1


PLAIN = Problem(b=1, hq=2, sq=9, d=16, dtype="fp32")


@pytest.mark.parametrize(
    ("problem", "options", "message"),
    [
        (PLAIN, {"pass_": "forward"}, "pass_ must be among fwd, bwd, fwd\\+bwd, got 'forward'"),
        (
            replace(PLAIN, dtype="fp8"),
            {"pass_": "fwd+bwd"},
            "fp8 is forward only: take pass_='fwd' for b1-h2-s9-d16-fp8",
        ),
        (replace(PLAIN, cache=Cache((5,))), {"pass_": "bwd"}, "what is cached has no gradient"),
    ],
    ids=["unknown", "fp8", "cache"],
)
def test_a_pass_that_there_is_not_is_refused(problem: Problem, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(variant("naive").attention, problem, **options)


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device must be there, got cuda:0 and torch finds no CUDA device"):
        check(variant("naive").attention, PLAIN, device="cuda:0")


@pytest.mark.parametrize(("returned", "kind"), [(None, "NoneType"), ((torch.zeros(1), None), "tuple")], ids=str)
@pytest.mark.parametrize("pass_", ["fwd", "fwd+bwd"])
def test_a_function_that_returns_no_tensor_is_told_what_to_return(returned: Any, kind: str, pass_: Pass) -> None:
    with pytest.raises(TypeError, match=rf"must return a tensor, out \[b, sq, hq, dv\], got {kind}"):
        check(lambda *_inputs, **_options: returned, PLAIN, pass_=pass_)


def test_the_table_of_features_is_current() -> None:
    assert (ROOT / "docs" / "variants.md").read_text() == table.page() + "\n"


@pytest.mark.parametrize("way", TABLE, ids=lambda way: way.name)
def test_what_a_variant_lacks_it_rejects_with_the_reason_of_the_table(way: attnkit.Variant) -> None:
    asks = [
        {"mask": "causal-top-left"},
        {"mask": Window(3, 0)},
        {"mask": attnkit.mask.Prefix(3)},
        {"mask": Documents((4, 4))},
        {"mask": Boolean()},
        {"softcap": 2.0},
        {"alibi": True},
        {"sink": True},
        {"varlen": Varlen((3, 5), (8, 0))},
        {"cache": Cache((5,))},
        {"cache": Cache((5,), page=4)},
        {"dtype": "fp8"},
    ]
    for feature, ask in zip(FEATURES, asks, strict=True):
        problem = Problem(b=1, hq=1, sq=8, d=16, **ask)  # type: ignore[arg-type]
        assert features(problem) == [feature]
        said = way.rejects(problem, torch.device("cpu"), "fwd")
        if feature in way.lacks:
            assert said == f"{feature}: {way.lacks[feature]}"
        else:
            assert not (said or "").startswith(feature)
