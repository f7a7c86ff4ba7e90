"""The table of variants: who is in it, who is not here, and what that takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import attnkit
from attnkit.mask import Window
from attnkit.problem import Pass, Problem
from attnkit.variant import Variant
from attnkit.variants import (
    TABLE,
    flash_attn,
    flash_attn_3,
    flash_attn_4,
    flashinfer,
    sdpa,
    transformer_engine,
    triton_flash,
    triton_unfused,
    variant,
)

SOURCE = Path(attnkit.__file__).parents[1]
NAMES = [
    "naive",
    "sdpa_math",
    "sdpa_efficient",
    "sdpa_flash",
    "sdpa_cudnn",
    "flex",
    "triton_unfused",
    "triton_flash",
    "flash_attn",
    "triton_fa1",
    "triton_splitkv",
    "triton_paged",
    "naive_compiled",
    "torch_varlen",
    "flash_attn_3",
    "flash_attn_4",
    "flashinfer",
    "transformer_engine",
]
CPU = torch.device("cpu")

each = pytest.mark.parametrize("way", TABLE, ids=lambda way: way.name)


def test_names_and_their_order_are_those_that_baselines_were_recorded_with() -> None:
    assert [way.name for way in TABLE] == NAMES


@each
def test_a_variant_is_found_by_its_name(way: Variant) -> None:
    assert variant(way.name) is way


@each
def test_a_summary_is_one_line(way: Variant) -> None:
    assert way.summary.strip()
    assert "\n" not in way.summary


def test_a_name_that_is_unknown_is_answered_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"no variant is called 'flash': take one of naive, sdpa_math, .*flash_attn"):
        variant("flash")


@pytest.mark.parametrize(
    "asks",
    [{"mask": "causal-top-left"}, {"mask": Window(3, 0)}, {"softcap": 2.0}, {"alibi": True}, {"sink": True}],
    ids=str,
)
def test_a_variant_that_says_nothing_of_masks_and_modifiers_is_given_none(asks: dict[str, Any]) -> None:
    silent = Variant("silent", "says nothing", variant("naive").attention, lambda *_: None)
    assert silent.rejects(Problem(b=1, hq=1, sq=8, d=16, mask="causal"), CPU, "fwd") is None
    assert "not built into this variant" in (silent.rejects(Problem(b=1, hq=1, sq=8, d=16, **asks), CPU, "fwd") or "")


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        (flash_attn, "the package flash-attn is not installed: pip install flash-attn"),
        (flash_attn_3, "no library of FlashAttention-3 was found: build the package flash_attn_3"),
        (flash_attn_4, "the package flash-attn-4 is not installed: pip install flash-attn-4"),
        (flashinfer, "the package flashinfer-python is not installed: pip install flashinfer-python"),
        (transformer_engine, "the package transformer-engine is not installed with its part for torch: pip install"),
        (triton_flash, "the package triton is not installed: pip install 'triton"),
        (triton_unfused, "the package triton is not installed: pip install 'triton"),
    ],
    ids=lambda part: getattr(part, "__name__", "").rpartition(".")[2],
)
def test_a_missing_package_is_named_with_its_remedy(
    module: object, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    way: Variant = module.VARIANT  # type: ignore[attr-defined]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv(flash_attn_3.NAMED, raising=False)
    reason = way.absent()
    assert reason is not None
    assert reason.startswith(remedy)
    assert way.why_not(Problem(b=1, hq=1, sq=8, d=16), CPU, "fwd") == reason


@pytest.mark.parametrize("pass_", ["fwd", "fwd+bwd"])
@pytest.mark.parametrize(("device", "compiler"), [("cpu", "C++ compiler"), ("cuda", "package triton")])
def test_what_is_compiled_names_the_compiler_that_is_missing(
    device: str, compiler: str, pass_: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    way, problem = variant("naive_compiled"), Problem(b=1, hq=1, sq=8, d=16)
    assert way.why_not(problem, CPU, pass_) is None or not shutil.which("g++")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert compiler in (way.why_not(problem, torch.device(device), pass_) or "")


@pytest.mark.parametrize(("d", "dv", "refused"), [(128, 128, False), (136, 16, True), (16, 136, True)])
def test_flex_in_float32_has_shared_memory_for_so_wide_heads(d: int, dv: int, refused: bool) -> None:
    rejects, gpu = variant("flex").rejects, torch.device("cuda")
    assert (rejects(Problem(b=1, hq=1, sq=8, d=d, dv=dv, dtype="fp32"), gpu, "fwd") is not None) is refused
    assert rejects(Problem(b=1, hq=1, sq=8, d=d, dv=dv, dtype="bf16"), gpu, "fwd") is None


@pytest.mark.parametrize(("d", "dv", "refused"), [(16, 16, False), (8, 16, True), (16, 8, True)])
def test_flex_has_no_kernels_for_narrower_heads(d: int, dv: int, refused: bool) -> None:
    problem = Problem(b=1, hq=1, sq=8, d=d, dv=dv)
    assert (variant("flex").rejects(problem, torch.device("cuda"), "fwd") is not None) is refused


@pytest.mark.parametrize(("d", "padded"), [(16, 32), (128, 128), (200, 256)])
def test_sdpa_flash_trains_no_more_than_its_backward_counts(
    d: int, padded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdpa, "torch_rejects", lambda *_: None)  # it asks the device
    rejects, gpu, most = variant("sdpa_flash").rejects, torch.device("cuda"), 2**31 // (16 * 256 * padded)
    for sq in (129, 256):
        just, more = (Problem(b=b, hq=16, sq=sq, d=d) for b in (most, most + 1))
        assert rejects(just, gpu, "fwd+bwd") is None
        assert rejects(more, gpu, "fwd") is None
        assert rejects(more, CPU, "fwd+bwd") is None
        assert f"{16 * 256 * padded * (most + 1)} is more" in (rejects(more, gpu, "fwd+bwd") or "")


@pytest.mark.parametrize("dead", [0, 3])
def test_the_gradient_that_cudnn_gets_lies_as_its_out_does(dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def computed(q: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        out = q * 1.0
        if out.requires_grad:
            out.register_hook(lambda gradient: seen.append((gradient.shape, gradient.transpose(1, 2).is_contiguous())))
        return out * 1.0

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", computed)
    q = torch.randn(2, 9 + dead, 4, 16, requires_grad=True)
    k = torch.randn(2, 9, 4, 16)
    out = variant("sdpa_cudnn").attention(q, k, k, mask="causal")
    values = torch.randn(2, 4, 16, 9 + dead).permute(0, 3, 1, 2)
    for dout in (values, values.contiguous(), values[:, :1].expand_as(values)):
        (gradient,) = torch.autograd.grad(out, q, dout, retain_graph=True)
        assert torch.equal(gradient[:, dead:], dout[:, dead:])
    assert seen == [((2, 4, 9, 16), True)] * 3
    with torch.no_grad():
        assert variant("sdpa_cudnn").attention(q, k, k, mask="causal").shape == q.shape


@pytest.mark.parametrize(
    "name",
    ["sdpa_efficient", "sdpa_cudnn", "flash_attn", "flash_attn_3", "flash_attn_4", "flashinfer", "transformer_engine"],
)
def test_what_needs_a_gpu_says_so(name: str) -> None:
    assert variant(name).rejects(Problem(b=1, hq=1, sq=8, d=16), CPU, "fwd") == "runs on a CUDA device, got cpu"


def test_a_backend_with_the_causal_mask_alone_takes_the_top_left_one_where_they_are_one() -> None:
    rejects = variant("sdpa_flash").rejects
    assert rejects(Problem(b=1, hq=1, sq=8, d=16, mask="causal-top-left"), CPU, "fwd") is None
    said = rejects(Problem(b=1, hq=1, sq=8, skv=9, d=16, mask="causal-top-left"), CPU, "fwd")
    assert "ours for sq = skv alone, got sq=8 and skv=9" in (said or "")


@pytest.mark.parametrize("scale", [-0.5, 0.0])
def test_sdpa_flash_rejects_a_scale_that_would_turn_its_mask_around(scale: float) -> None:
    rejects = variant("sdpa_flash").rejects
    problem = Problem(b=1, hq=1, sq=8, d=16, mask="causal", scale=scale)
    assert "scale must be positive" in (rejects(problem, CPU, "fwd") or "")
    assert rejects(Problem(b=1, hq=1, sq=8, d=16, mask="causal", scale=0.5), CPU, "fwd") is None


def python(code: str, **environment: str) -> str:
    """Run code in a process of its own, which has not imported anything yet."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_optional_packages_all_but_their_variants_is_there() -> None:
    here = python(
        """
import sys

MISSING = ("triton", "flash_attn", "flash_attn_3", "xformers", "flashinfer", "transformer_engine")


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Missing())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in MISSING else found(name, package)

import torch
from attnkit import TABLE, Problem, variant
import attnkit.parity

problem = Problem(b=1, hq=2, sq=8, d=16, dtype="fp32")
assert attnkit.parity.parity(variant("naive"), problem, "cpu", "bwd").ok
print(*(way.name for way in TABLE if way.absent() is None))
""",
        **{flash_attn_3.NAMED: ""},
    )
    assert here.split() == [*NAMES[:6], "naive_compiled", "torch_varlen"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernels are compiled")
@pytest.mark.parametrize("name", ["triton_unfused", "triton_flash"])
def test_kernels_that_are_not_interpreted_say_that_they_need_a_gpu(name: str) -> None:
    pytest.importorskip("triton")
    said = python(
        f"""
import torch
from attnkit import Problem, variant

print(variant({name!r}).rejects(Problem(b=1, hq=1, sq=8, d=16), torch.device("cpu"), "fwd"))
""",
        TRITON_INTERPRET="0",
    )
    assert said.startswith("runs on a CUDA device, got cpu: set TRITON_INTERPRET=1")


CALLED = """
import torch
from attnkit import variant
from attnkit.products import product

q, x = torch.ones(1, 1, 2, 16), torch.ones(32, 64).half()
weight, scale = torch.ones(64, 64).to(torch.int8), torch.ones(64)
for call in (
    *(lambda name=name: variant(name).attention(q, q, q, mask="full") for name in NAMES),
    lambda: product("triton_product").multiply(x, weight, scale),
    lambda: product("triton_dynamic").multiply(x, weight, scale),
):
    try:
        call()
    except ValueError as error:
        print(error)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernels are compiled")
def test_a_kernel_that_is_called_where_none_runs_says_so() -> None:
    pytest.importorskip("triton")
    names = ["triton_unfused", "triton_flash", "triton_fa1", "triton_splitkv"]
    said = python(CALLED.replace("NAMES", repr(names)), TRITON_INTERPRET="0").splitlines()
    assert len(said) == len(names) + 2
    assert [line for line in said if "runs on a CUDA device, got cpu: set TRITON_INTERPRET=1" not in line] == []
