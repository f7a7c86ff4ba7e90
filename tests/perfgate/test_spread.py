"""How far processes differ by two clocks, and windows of one: what is collected of it, and its tables."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from perfgate.clock import Method, Samples
from perfgate.trust import data, page
from tests import collect
from tests.perfgate.test_collect import Machine
from tests.spread import of_windows


def test_processes_are_timed_by_two_clocks_and_the_table_is_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many processes as are wanted, each of which adds its lines to one file."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        n = len(commands)
        (file,) = (Path(word.partition("=")[2]) for word in command if word.startswith("--spread="))
        seconds = {"perfgate": 1e-3, "plain": 1e-3 * (1 + 0.05 * (n % 2))}
        names = ("a", "b", "c")[: 3 if n != 4 else 2]  # a case that one process does not time is left out
        line = {"seconds": seconds, "windows": [[1e-3, 1e-3], [1.1e-3, 1.1e-3], [1.2e-3, 1.2e-3]]}
        file.write_text("".join(json.dumps({"case": name, **line}) + "\n" for name in names))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(collect, "ROOT", tmp_path)
    monkeypatch.setattr(collect, "_committed", lambda: None)
    monkeypatch.setattr(collect, "_commit", lambda: "0123abc")
    monkeypatch.setattr(collect, "ask", Machine())
    monkeypatch.setattr(subprocess, "run", run)
    kept = tmp_path / "trust.jsonl"
    collect.main(["spread", "--occasion=first", f"--data={kept}"])
    assert "left out, for not every process timed them: c\n" in capsys.readouterr().out
    assert len(commands) == collect.SEVERAL
    assert all(command[-len(collect.NOISY) :] == [*collect.NOISY] for command in commands)
    (entry,) = data.read(kept)
    assert isinstance(entry, data.Spread)
    assert entry.seconds.keys() == {"a", "b"}
    assert entry.seconds["b"]["plain"] == pytest.approx([1.05e-3, 1e-3] * 3)
    text = page.render([entry])
    assert "| perfgate | 2 | 0.00% | 0.00% | 0.00% | 0.00% | 2 |" in text
    assert "| plain | 2 | 2.67% | 2.67% | 2.67% | 2.67% | 0 |" in text
    assert "| a | 0.00% | 3 | 9.12% | 9.12% | 0.00% |" in text


@pytest.mark.parametrize(
    ("sets", "calls", "joined", "l2", "medians"),
    [
        (4, 2, 1, "cold", [(1.1, 1.2), (2.0, 2.1)]),
        (4, 2, 2, "cold", [(1.1, 2.0)]),  # several windows a sample
        (4, 16, 1, "cold", [(1.1, 2.0)]),
        (99, 1, 1, "cold", [(1.1, 2.0)]),  # too few samples
        (4, 2, 1, "warm", [(1.1, 2.0)]),
    ],
)
def test_windows_are_played_in_turn(
    sets: int, calls: int, joined: int, l2: str, medians: list[tuple[float, float]]
) -> None:
    seconds, method = (1.1, 2.0, 1.2, 2.1, 1.1, 2.0, 1.0, 1.9), Method(clock="cuda-events", l2=l2, version=5)
    counters = {"input_sets": float(sets), "calls_per_window": float(calls), "windows_per_sample": float(joined)}
    samples = Samples(seconds=seconds, method=method, counters=counters)
    assert [pytest.approx(two, abs=0.11) for two in medians] == of_windows(samples)


@pytest.mark.parametrize("code", [0, 1])
def test_processes_that_fail_or_time_nothing_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(collect, "ROOT", tmp_path)
    monkeypatch.setattr(collect, "_committed", lambda: None)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, code))
    with pytest.raises(RuntimeError, match=f"ended with exit code {code} and timed 0 cases"):
        collect.spread("first", ["perf"])


def test_a_case_is_timed_by_both_clocks(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain one gets the first set of inputs alone."""
    pytester.makeconftest(
        """
        from perfgate import FakeClock

        class Counting(FakeClock):
            def measure(self, call, inputs=((),), *, l2="cold"):
                self._seconds = 1e-3 * (len(inputs) if not callable(inputs) else 9)
                return super().measure(call, inputs, l2=l2)

        def pytest_perf_clock(config):
            return Counting(noise=0.0)
        """
    )
    pytester.makepyfile(
        "import pytest\n@pytest.mark.parametrize('many', [[(1,)] * 4, lambda i: (i,)], ids=['4', 'f'])\n"
        "def test_it(gpu_benchmark, many, request):\n"
        "    gpu_benchmark(lambda i: None, inputs=many, name=request.node.callspec.id)"
    )
    file, root = pytester.path / "spread.jsonl", Path(collect.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{root}:{root / 'src'}")
    result = pytester.runpytest_inprocess(
        *collect.plugin_arguments(), "--perf-allow-busy", "-p", "tests.spread", f"--spread={file}"
    )
    result.assert_outcomes(skipped=2)
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {
            "case": case,
            "seconds": {"perfgate": pytest.approx(s), "plain": pytest.approx(1e-3)},
            "windows": [[pytest.approx(s)] * 2],
        }
        for case, s in (("4", 4e-3), ("f", 9e-3))
    ]
