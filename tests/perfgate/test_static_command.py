"""``perfgate static``: baselines on disk, exit codes, and builds that take their process down."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from perfgate.__main__ import main
from perfgate.gate import Exit
from perfgate.static import command, files, workers
from perfgate.static.profile import Profile
from tests.perfgate.test_static_judge import GOOD

MODULE = """
    import os
    from dataclasses import dataclass

    @dataclass
    class Build:
        name: str
        arch: int = 90

        def absent(self):
            return None

        def compile(self):
            if self.name == "aborts":
                os.write(2, b"LLVM ERROR: cannot select")
                os.abort()
            raise RuntimeError(f"{self.name} has a fault")

    def builds():
        return [Build(name) for name in ("raises", "aborts", "raises too")]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "listed_builds.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "disassembler", lambda: Path("cuobjdump"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return "listed_builds"


Found = dict[str, Profile | str]


@dataclass(frozen=True)
class Listed:
    """A build that nobody compiles; one called ``foreign ...`` has a compiler that is not here."""

    name: str

    def absent(self) -> str | None:
        return "no c++: pip install c++" if self.name.startswith("foreign") else None


@pytest.fixture
def run(module: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command with these profiles in place of a compiler."""

    def with_profiles(found: Found, *arguments: str) -> int:
        def compiled(_module: str, keys: Any, **_: Any) -> Iterator[tuple[tuple[int, str], Profile | str]]:
            return ((key, found[key[1]]) for key in keys)

        monkeypatch.setattr(command, "builds_of", lambda _: {(90, name): Listed(name) for name in found})
        monkeypatch.setattr(command, "compile_all", compiled)
        return main(["static", module, "--storage", "base", *arguments])

    return with_profiles


def test_a_build_that_takes_its_process_down_fails_alone(module: str) -> None:
    keys = [(90, "raises"), (90, "aborts"), (90, "raises too")]
    found = dict(workers.compile_all(module, keys, jobs=1))
    assert found[90, "raises"] == "RuntimeError: raises has a fault"
    assert found[90, "raises too"] == "RuntimeError: raises too has a fault"
    assert found[90, "aborts"] == "the compiler ended its process with -6: LLVM ERROR: cannot select"


def test_a_build_that_takes_too_long_fails_alone(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LIMIT", 0.0)
    assert dict(workers.compile_all(module, [(90, "raises")], jobs=1)) == {(90, "raises"): "took longer than 0 s"}


def test_a_renewed_baseline_is_met(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run({"k": GOOD}, "--renew") == Exit.OK
    assert files.read(Path("base"), 90) == {"k": GOOD}
    assert run({"k": GOOD}) == Exit.OK
    assert "1 unchanged" in capsys.readouterr().out


def test_a_planted_spill_fails_the_run(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    run({"k": GOOD}, "--renew")
    assert run({"k": replace(GOOD, stack=64)}) == Exit.REGRESSED
    assert "spills: 64 bytes a thread" in capsys.readouterr().out


def test_nothing_is_green_without_a_baseline(run: Callable[..., int]) -> None:
    assert run({"k": GOOD}) == Exit.INCOMPLETE


def test_new_and_missing_builds_fail_a_strict_run_alone(run: Callable[..., int]) -> None:
    run({"k": GOOD, "old": GOOD}, "--renew")
    assert run({"k": GOOD, "new": GOOD}) == Exit.OK
    assert run({"k": GOOD, "new": GOOD}, "--strict") == Exit.INCOMPLETE


def test_another_compiler_is_refused(run: Callable[..., int]) -> None:
    run({"k": GOOD}, "--renew")
    assert run({"k": replace(GOOD, compiler="c 2")}) == Exit.REFUSED


def test_of_two_compilers_the_one_that_changed_is_refused(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    other = replace(GOOD, compiler="nvrtc 13.0.88")
    run({"k": GOOD, "c": other}, "--renew")
    assert run({"k": GOOD, "c": other}) == Exit.OK
    capsys.readouterr()
    assert run({"k": GOOD, "c": replace(other, compiler="nvrtc 13.1.80", stack=64)}) == Exit.REFUSED
    said = capsys.readouterr().out
    assert "1 refused, 1 unchanged" in said
    assert "compiled by nvrtc 13.1.80, the baseline by nvrtc 13.0.88: use that one, or renew the baseline" in said


def test_without_a_compiler_nothing_is_compiled_and_it_is_said_once(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    found: Found = {"k": GOOD, "foreign a": GOOD, "foreign b": GOOD}
    for arguments in ((), ("--renew",)):
        assert run(found, *arguments) == Exit.USAGE
        (line,) = capsys.readouterr().err.splitlines()
        assert "got none for 2 of 3 builds (no c++: pip install c++): install it, or --select others" in line
    assert not Path("base").exists()
    assert run(found, "--renew", "--select", "k") == Exit.OK


def test_a_selection_is_renewed_and_judged_alone(run: Callable[..., int]) -> None:
    run({"a": GOOD, "b": GOOD}, "--renew")
    worse = replace(GOOD, stack=64)
    assert run({"a": worse, "b": worse}, "--renew", "--select", "a") == Exit.OK
    assert files.read(Path("base"), 90) == {"a": worse, "b": GOOD}
    assert run({"a": worse, "b": worse}, "--select", "a") == Exit.OK


def test_a_build_that_fails_is_not_renewed(run: Callable[..., int]) -> None:
    assert run({"a": GOOD, "b": "it aborted"}, "--renew") == Exit.REGRESSED
    assert not Path("base").exists()


@pytest.mark.parametrize("content", ["{", '{"format": 9, "builds": {}}', '{"format": 1, "builds": {"k": {}}}', "[]"])
def test_a_baseline_that_is_none_is_refused(run: Callable[..., int], content: str) -> None:
    Path("base").mkdir()
    Path("base/sm_90.json").write_text(content)
    assert run({"k": GOOD}) == Exit.REFUSED


def test_a_baseline_is_json_with_a_line_a_build(run: Callable[..., int]) -> None:
    run({"a": GOOD, "b": GOOD}, "--renew")
    text = Path("base/sm_90.json").read_text()
    assert sorted(json.loads(text)["builds"]) == ["a", "b"]
    assert len(text.splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--arch", "75"], "--arch must be one of [90], got [75]"),
        (["--select", "("], "--select must be a regular expression"),
        (["--select", "zzz"], "--select finds no build, got 'zzz'"),
        (["--jobs", "0"], "--jobs must be 1 or more, got 0"),
    ],
)
def test_wrong_options_are_said(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert run({"k": GOOD}, *arguments) == Exit.USAGE
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("value", ["1", "True"])
def test_under_an_interpreter_nothing_is_compiled_and_it_is_said_once(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert run({"k": GOOD}, "--renew") == Exit.USAGE
    assert not Path("base").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"compiling needs Triton without its interpreter, got TRITON_INTERPRET={value}: unset it" in line
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert run({"k": GOOD}, "--renew") == Exit.OK


def test_a_module_must_list_builds(module: str) -> None:
    with pytest.raises(ValueError, match="expected a module that lists builds, got 'no_such'"):
        workers.builds_of("no_such")
    with pytest.raises(ValueError, match="expected a function builds"):
        workers.builds_of("json")
