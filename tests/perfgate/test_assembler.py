"""What torch.compile leaves behind for Triton is gone after a test that times something."""

from __future__ import annotations

import functools
import os
import sys
import types

import pytest

from perfgate import assembler

PTXAS, FOLDER = assembler.VARIABLES


@pytest.fixture
def torch_compile(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """As Inductor does it: once, by a function that remembers that it was called."""
    tasks = types.ModuleType("torch._inductor.runtime.compile_tasks")

    @functools.cache
    def ptxas() -> None:
        os.environ.setdefault(PTXAS, "torch/bin/ptxas")

    tasks._set_triton_ptxas_path = ptxas  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, tasks.__name__, tasks)
    for name in assembler.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tasks


def compiled(tasks: types.ModuleType) -> None:
    tasks._set_triton_ptxas_path()
    os.environ.setdefault(FOLDER, "torchinductor/triton")


def test_the_variables_are_as_before_and_are_set_anew_by_the_next_compilation(torch_compile: types.ModuleType) -> None:
    for _ in range(2):
        with assembler.as_before():
            compiled(torch_compile)
            assert (os.environ[PTXAS], os.environ[FOLDER]) == ("torch/bin/ptxas", "torchinductor/triton")
        assert not {*assembler.VARIABLES} & {*os.environ}


def test_what_was_chosen_stays(torch_compile: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PTXAS, "mine")
    with assembler.as_before():
        compiled(torch_compile)
        os.environ[PTXAS] = "other"
    assert os.environ[PTXAS] == "mine"
    assert FOLDER not in os.environ


def test_they_are_as_before_where_what_compiles_raises(torch_compile: types.ModuleType) -> None:
    def fails() -> None:
        with assembler.as_before():
            compiled(torch_compile)
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fails()
    assert PTXAS not in os.environ


def test_a_version_that_triton_remembers_is_asked_for_anew(
    torch_compile: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = types.ModuleType("triton.backends.nvidia.compiler")
    compiler.get_ptxas_version = functools.cache(lambda: os.environ.get(PTXAS, "triton's"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, compiler.__name__, compiler)
    with assembler.as_before():
        compiled(torch_compile)
        assert compiler.get_ptxas_version() == "torch/bin/ptxas"
    assert compiler.get_ptxas_version() == "triton's"


def test_the_functions_that_remember_are_those_of_what_is_installed() -> None:
    for module, function in assembler.REMEMBERED:
        found = pytest.importorskip(module)
        assert hasattr(getattr(found, function), "cache_clear")


def test_a_test_that_times_something_changes_no_later_one(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in assembler.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    pytester.makepyfile(
        """
        import os


        def test_compiled(gpu_benchmark):
            os.environ["TRITON_PTXAS_PATH"] = "torch/bin/ptxas"


        def test_after_it():
            assert "TRITON_PTXAS_PATH" not in os.environ
        """
    )
    pytester.runpytest("--perf-device=cpu", "-p", "no:cacheprovider").assert_outcomes(passed=2)
