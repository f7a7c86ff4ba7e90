"""Planted slowdowns: their size, which calls have them, and which cases are slowed in which turn."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

from perfgate import baseline
from tests import collect, planted, planted_turns


@pytest.mark.parametrize(("microseconds", "every"), [(1000.0, 1), (100.0, 1), (60.0, 2), (5.0, 4)])
def test_of_a_short_call_not_every_one_is_followed_by_planted_work(
    monkeypatch: pytest.MonkeyPatch, microseconds: float, every: int
) -> None:
    """All of it together is the share that was asked for."""
    waited: list[float] = []
    monkeypatch.setattr(planted, "seconds", lambda call: microseconds * 1e-6)
    monkeypatch.setattr(planted, "waiting", lambda duration: lambda: waited.append(duration))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    slow, inputs = planted.slowed(lambda x: x + 1, 0.02, lambda i: (i,))
    assert callable(inputs)
    assert [slow(*inputs(i)) for i in range(8)] == list(range(1, 9))
    assert len(waited) == 8 / every
    assert sum(waited) == pytest.approx(8 * 0.02 * microseconds * 1e-6)


def test_the_same_sets_of_inputs_are_slowed_however_many_calls_went_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warm-up calls a noisy number of times; each round over five sets has the same planted work."""
    waited: list[float] = []
    monkeypatch.setattr(planted, "seconds", lambda call: 5e-6)
    monkeypatch.setattr(planted, "waiting", lambda duration: lambda: waited.append(duration))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    found = []
    for warmup in (0, 5, 6, 7):
        slow, inputs = planted.slowed(len, 0.02, lambda i: ([i],))
        assert callable(inputs)
        slow(*inputs(0))  # a check has a set of its own
        sets = [inputs(i) for i in range(5)]
        for i in range(warmup):
            slow(*sets[i % 5])
        waited.clear()
        found.append([(slow(*one), len(waited))[1] for one in sets])
    assert found == [[1, 1, 1, 1, 2]] * 4


def test_where_there_are_few_sets_of_inputs_each_call_is_slowed(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(planted, "seconds", lambda call: 5e-6)
    monkeypatch.setattr(planted, "waiting", lambda duration: lambda: waited.append(duration))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    slow, inputs = planted.slowed(len, 0.02, [([1],), ([2],)])
    assert not callable(inputs)
    assert [slow(*one) for one in inputs] == [1, 1]
    assert waited == [0.02 * 5e-6] * 2
    slow, inputs = planted.slowed(lambda: "called", 0.02, None)
    assert not callable(inputs)
    assert [slow(*one) for one in inputs] == ["called"]
    assert len(waited) == 3


def test_only_what_is_asked_for_is_slowed_and_only_in_the_tree_that_is_named(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(planted.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{root}:{root / 'src'}")
    monkeypatch.setattr(planted, "slowed", lambda call, share, inputs: (lambda *a: ("slow", share, call(*a)), ((),)))
    pytester.makeconftest(
        """
        import pytest
        from perfgate import FakeClock

        def pytest_perf_clock(config):
            return FakeClock(1e-3)
        """
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("case", ["one", "other"])
        def test_it(gpu_benchmark, case):
            print(f"\\nsaid {case}", gpu_benchmark(lambda: "plain", name=f"case/{case}"))
        """
    )
    arguments = [
        *collect.plugin_arguments(),
        "-p",
        "tests.planted",
        "-s",
        "--planted=/one:5",
        "-p",
        "no:hypothesispytest",
    ]

    def said(*more: str) -> list[str]:
        result = pytester.runpytest_inprocess(*arguments, "--benchmark-disable", *more)
        return [line.removeprefix("said ") for line in result.outlines if line.startswith("said ")]

    assert said() == ["one ('slow', 0.05, 'plain')", "other plain"]
    assert said(f"--planted-in={root}") == ["one ('slow', 0.05, 'plain')", "other plain"]
    assert said(f"--planted-in={pytester.path}") == ["one plain", "other plain"]


def test_true_sizes_are_measured_apart(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the suite's own clock, whose call takes 1 ms and what is planted."""
    root = Path(planted.__file__).parents[1]
    monkeypatch.setattr(planted, "slowed", lambda call, share, inputs: (lambda: (1 + 1.1 * share) * call(), ((),)))
    pytester.makeconftest(
        """
        from perfgate import FakeClock

        def pytest_perf_clock(config):
            return FakeClock(seconds=lambda result: result, noise=0.0)
        """
    )
    pytester.makepyfile("def test_it(gpu_benchmark):\n    gpu_benchmark(lambda: 1e-3, name='case/one')")
    file = pytester.path / "sizes.jsonl"
    monkeypatch.setenv("PYTHONPATH", f"{root}:{root / 'src'}")
    result = pytester.runpytest_inprocess(
        *collect.plugin_arguments(),
        "--perf-allow-busy",  # by other tests, where there is a GPU
        *("-p", "tests.planted", "--planted=/one:5", f"--planted-measure={file}"),
    )
    result.assert_outcomes(skipped=1)
    (line,) = file.read_text().splitlines()
    assert json.loads(line) == {"case": "case/one", "asked": 0.05, "true": pytest.approx(0.055, abs=2e-3)}


@pytest.mark.parametrize("turn", range(1, planted_turns.TURNS + 1))
def test_a_turn_slows_sixteen_cases_that_are_there(turn: int, pytestconfig: pytest.Config) -> None:
    """By the committed baseline's names, and all five sizes among them."""
    (path,) = pytestconfig.rootpath.glob("baselines/NVIDIA-H200*/*/0005_default.json")
    known = dict.fromkeys(baseline.read(path).records, 0)
    sizes = set()
    for share in planted_turns.planted(turn):
        pattern, _, percent = share.rpartition(":")
        found = [name for name in known if re.search(pattern, name)]
        assert len(found) == 1
        known[found[0]] += 1
        sizes.add(percent)
    assert sum(known.values()) == 16
    assert max(known.values()) == 1
    assert sizes == {"1", "1.5", "2", "3", "5"}


def test_what_is_planted_is_among_what_runs(pytestconfig: pytest.Config) -> None:
    (path,) = pytestconfig.rootpath.glob("baselines/NVIDIA-H200*/*/0005_default.json")
    nodes = {b["extra_info"]["perfgate"]["case"]["name"]: b["fullname"] for b in baseline.load(path)["benchmarks"]}
    *files, _, keywords = planted_turns.ARGUMENTS
    chosen = Expression.compile(keywords)

    def runs(node: str) -> bool:
        return node.partition("::")[0] in files and chosen.evaluate(lambda word, **_: word in node)

    collected = {name for name, node in nodes.items() if runs(node)}
    patterns = {share.rpartition(":")[0] for turn in range(1, 6) for share in planted_turns.planted(turn)}
    slowed = {name for pattern in patterns for name in nodes if re.search(pattern, name)}
    assert len(slowed) == 20
    assert slowed <= collected
    assert len(collected) == 31


def test_only_five_turns_are_known() -> None:
    with pytest.raises(ValueError, match="turns are 1 to 5, got 6"):
        planted_turns.planted(6)
