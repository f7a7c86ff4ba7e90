"""What is collected for the page on trust: each timer's word from processes of its own, and what is planted."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from perfgate.trust import data, page
from tests import collect, planted_turns
from tests.perfgate import nvbench
from tests.perfgate.cupti import KERNELS
from tests.perfgate.simulate import H200
from tests.perfgate.test_trust_data import collected


class Machine:
    """Answers as the modules would on a GPU; each process is a little slower than the one before."""

    def __init__(self, absent: str | None = None) -> None:
        self.absent, self.asked = absent, list[tuple[str, ...]]()

    def __call__(self, module: str, *arguments: str) -> Any:
        self.asked.append((module.rpartition(".")[2], *arguments))
        if arguments == ("environment",):
            return H200.to_json()
        if arguments == ("absent",):
            return self.absent
        turn = self.asked.count(self.asked[-1])
        times = {"times": {"clock": 1.0, "clock watched": 1.09, "CUPTI": 1.1}, "time": {"seconds": 1.5}}[arguments[0]]
        return {
            name: {timer: seconds * factor * turn for timer, factor in times.items()}
            for name, seconds in KERNEL_SECONDS.items()
        }


KERNEL_SECONDS = {"short": 5e-6, "long": 2e-3}


def test_the_medians_of_three_processes_of_each_timer_are_kept() -> None:
    machine = Machine()
    timing = collect.timers("first", machine, say=pytest.fail)
    timers = {"perfgate": 1.0, "perfgate with CUPTI": 1.09, "CUPTI": 1.1, "NVBench": 1.5}
    assert timing.seconds["short"] == pytest.approx({timer: factor * 1e-5 for timer, factor in timers.items()})
    assert timing.seconds["long"] == pytest.approx({timer: factor * 4e-3 for timer, factor in timers.items()})
    assert timing.origin.environment == H200
    assert machine.asked.count(("cupti", "times")) == 3


def test_without_nvbench_the_others_are_kept_and_it_is_said() -> None:
    said: list[str] = []
    timing = collect.timers("first", Machine("cuda-bench cannot be used: pip install it"), say=said.append)
    assert set(timing.seconds["short"]) == {"perfgate", "perfgate with CUPTI", "CUPTI"}
    assert said == ["without NVBench: cuda-bench cannot be used: pip install it"]


def test_a_run_of_the_timers_is_added_to_the_data_and_its_table_is_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "timers", lambda occasion: TIMERS(occasion, Machine()))
    kept = tmp_path / "trust.jsonl"
    collect.main(["timers", "--occasion=first", f"--data={kept}"])
    (entry,) = data.read(kept)
    assert entry.origin.occasion == "first"
    text = page.render([entry])
    assert "| kernel | perfgate, us | perfgate with CUPTI at work, us | CUPTI, us | perfgate against CUPTI |" in text
    assert "| short | 10.00 | 10.90 | 11.00 | -0.91% | 15.00 | -33.33% |" in text


TIMERS = collect.timers


def test_a_process_that_fails_ends_the_collection() -> None:
    with pytest.raises(RuntimeError, match=r"tests\.perfgate\.cupti nothing ended with exit code 1"):
        collect.ask("tests.perfgate.cupti", "nothing")


def test_nvbench_is_told_of_each_kernel_and_its_medians_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[Any] = []

    def register(function: Any) -> Any:
        named = types.SimpleNamespace()
        named.set_name = lambda name: registered.append(name)
        return named

    def run(argv: list[str]) -> None:
        path = Path(argv[argv.index("--jsonbin") + 1])
        path.write_text(json.dumps({name: {"Device=0": 1e-6 * i} for i, name in enumerate(registered, 1)}))

    class Result:
        @classmethod
        def from_json(cls, path: Path) -> Any:
            return types.SimpleNamespace(centers=lambda of: json.loads(path.read_text()))

    bench = types.ModuleType("cuda.bench")
    bench.register, bench.run_all_benchmarks = register, run  # type: ignore[attr-defined]
    results = types.ModuleType("cuda.bench.results")
    results.BenchmarkResult = Result  # type: ignore[attr-defined]
    cuda = types.ModuleType("cuda")
    cuda.bench = bench  # type: ignore[attr-defined]
    for module in (cuda, bench, results):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert nvbench.absent() is None
    found = nvbench.by_nvbench()
    assert list(found) == list(KERNELS)
    assert found["softmax 8192x4096"]["seconds"] == pytest.approx(1e-6 * (1 + list(KERNELS).index("softmax 8192x4096")))


def test_where_nvbench_is_not_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bench", None)
    said = nvbench.absent()
    assert said is not None
    assert "pip install 'cuda-bench" in said


def test_each_line_of_a_journal_is_given_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "ab.jsonl"
    added = collect.Tail(path)
    assert added() == []
    given = []
    for text in ("", '{"ab":1}\n{"blo', 'ck":0}\n', '{"note":"é"}\n{"end":"complete"}\n', ""):
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
        given.append(added())
    assert given == [[], ['{"ab":1}'], ['{"block":0}'], ['{"note":"é"}', '{"end":"complete"}'], []]


def test_another_process_loads_the_machine_from_the_block_on_and_ends_with_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Any] = []
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        assert command[1:] == ["-m", "tests.collect", "load"]
        started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    with collect._loaded(2) as look:
        look([])
        look(['{"block":0,"stage":1}', '{"note":"{\\"block\\":1,"}'])
        assert not started
        look(['{"block":1,"stage":1}'])
        look(['{"block":1,"stage":1}'])
        (child,) = started
        assert child.poll() is None
    assert child.poll() is not None


@pytest.mark.parametrize("command", [None, "raise SystemExit"])
def test_a_run_in_which_nothing_was_disturbed_is_refused(monkeypatch: pytest.MonkeyPatch, command: str | None) -> None:
    """The block never came, or the process that was to load the machine died."""
    popen, started = subprocess.Popen, list[Any]()

    def start(*_: object, **__: object) -> Any:
        started.append(popen([sys.executable, "-c", command or ""]))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)

    def run() -> None:
        with collect._loaded(2) as look:
            look(['{"block":1,"stage":1}' if command else '{"block":0,"stage":1}'])
            for child in started:
                child.wait()

    with pytest.raises(RuntimeError, match="nothing was disturbed"):
        run()


def test_the_load_ends_when_its_parent_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Matrix:
        products = 0

        def __matmul__(self, other: object) -> None:
            Matrix.products += 1
            assert Matrix.products <= 100, "it goes on"

    parents = iter([7, 7, 1])
    monkeypatch.setattr("os.getppid", lambda: next(parents, 1))
    monkeypatch.setattr("torch.randn", lambda *_, **__: Matrix())
    collect.load()
    assert Matrix.products == 50


def measured(
    monkeypatch: pytest.MonkeyPatch, folder: Path, true: float, changed: str = "", *, compared: bool = True
) -> None:
    """Make the process that measures true sizes say this of one case, and git that of the working tree."""

    def run(command: list[str], **options: Any) -> Any:
        for argument in command:
            if argument.startswith("--planted-measure="):
                Path(argument.partition("=")[2]).write_text(json.dumps({"case": "a", "asked": 0.02, "true": true}))
        return subprocess.CompletedProcess(command, 0, stdout=changed if command[0] == "git" else "")

    def compare(*_: object) -> Any:
        raise LookupError("it was compared")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(collect, "_folder", lambda: folder)
    if compared:
        monkeypatch.setattr(collect, "_compare", compare)


@pytest.mark.parametrize("run", [collect.unchanged, partial(collect.drift, block=2)], ids=["aa", "drift"])
@pytest.mark.parametrize(("changed", "error"), [("", LookupError), (" M src/attnkit/oracle.py\n", RuntimeError)])
def test_a_commit_alone_is_compared_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, error: type[Exception], run: Callable[..., object]
) -> None:
    measured(monkeypatch, tmp_path, 0.0, changed)
    with pytest.raises(error, match=r"it was compared|oracle\.py"):
        run("first", suite="default", arguments=["perf"])


class Comparison:
    """Stands in for `perfgate ab`: asked for its end it has worked a second more, and added a line to its journal."""

    def __init__(self, folder: Path, lines: Sequence[str], code: int) -> None:
        self.journal, self.left, self.code = folder / "ab-2.jsonl", list(lines), code
        self.now, self.returncode = 0.0, None
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **options: Any) -> Comparison:
        self.commands.append(command)
        return self

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def poll(self) -> int | None:
        if not self.left:
            self.returncode = self.code
            return self.code
        self.now += 1
        with self.journal.open("a") as file:
            file.write(self.left.pop(0) + "\n")
        return None


LINES = ('{"ab":1}', '{"block":0,"stage":1}', '{"suspects":["a"]}', '{"block":1,"stage":2}', '{"end":"complete"}')


@pytest.fixture
def comparing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Comparison]:
    def start(*lines: str, code: int = 0) -> Comparison:
        process = Comparison(tmp_path, lines, code)
        monkeypatch.setattr(collect, "_folder", lambda: tmp_path)
        monkeypatch.setattr(subprocess, "Popen", process)
        monkeypatch.setattr(collect, "time", types.SimpleNamespace(monotonic=lambda: process.now, sleep=lambda _: None))
        return process

    (tmp_path / "ab-1.jsonl").write_text("of an earlier run")
    return start


@pytest.mark.parametrize("code", [0, 1, 12, 14])
@pytest.mark.parametrize(
    ("lines", "seconds"),
    [(LINES, {"screen": 3.0, "whole": 5.0}), ((LINES[0], LINES[1], LINES[4]), {"screen": 3.0, "whole": 3.0})],
    ids=["suspicious", "quiet"],
)
def test_a_commit_is_compared_with_itself_and_both_stages_are_timed(
    comparing: Callable[..., Comparison], lines: Sequence[str], seconds: Mapping[str, float], code: int
) -> None:
    """Nothing that a verdict may be ends the collection: which verdicts there are is what is collected."""
    process = comparing(*lines, code=code)
    assert collect._compare(["perf", "-k", "naive"]) == (process.journal, seconds)
    (command,) = process.commands
    assert command[1:] == ["-m", "perfgate", "ab", "--base=HEAD", "--", "perf", "-k", "naive"]


@pytest.mark.parametrize(
    ("lines", "code", "said"), [(LINES, 2, "ended with exit code 2"), ((), 4, "4 before it had timed anything")]
)
def test_a_comparison_that_did_not_come_to_its_end_is_not_collected(
    comparing: Callable[..., Comparison], lines: Sequence[str], code: int, said: str
) -> None:
    comparing(*lines, code=code)
    with pytest.raises(RuntimeError, match=said):
        collect._compare(["perf"])


def test_what_disturbs_a_comparison_is_shown_its_journal(comparing: Callable[..., Comparison]) -> None:
    seen: list[str] = []

    @contextmanager
    def watching() -> Iterator[collect.Look]:
        yield seen.extend

    comparing(*LINES)
    collect._compare(["perf"], watching)
    assert seen == [*LINES]


@pytest.mark.parametrize(
    ("changed", "refused"), [("kept.py", True), ("new.py", False)], ids=["what-git-tracks", "what-it-does-not"]
)
def test_a_file_that_git_tracks_must_be_as_it_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, refused: bool
) -> None:
    monkeypatch.setattr(collect, "ROOT", tmp_path)
    (tmp_path / "kept.py").touch()
    for words in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -q -m first"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    collect._committed()
    (tmp_path / changed).write_text("x = 1\n")
    with pytest.raises(RuntimeError, match=changed) if refused else nullcontext():
        collect._committed()


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a comparison was asked for, what came of its journal, and what disturbed it, in this order."""
    found: list[Any] = []

    def compare(arguments: Sequence[str], *meanwhile: Callable[[], Any]) -> tuple[Path, dict[str, float]]:
        found.append([*arguments])
        for disturbed in meanwhile:
            with disturbed():
                pass
        return tmp_path / "ab.jsonl", {"screen": 3.0, "whole": 5.0}

    def from_journal(path: Path, **about: Any) -> data.Contest:
        found.append((path.name, about.pop("occasion")))
        origin = replace(collected(1).origin, occasion=found[-1][1])
        return replace(collected(1), origin=origin, controls=(), **about)

    @contextmanager
    def loaded(block: int) -> Iterator[None]:
        found.append(block)
        yield

    monkeypatch.setattr(collect, "_committed", lambda: None)
    monkeypatch.setattr(collect, "_compare", compare)
    monkeypatch.setattr(collect, "_loaded", loaded)
    monkeypatch.setattr(collect, "from_journal", from_journal)
    return found


def added(tmp_path: Path, *arguments: str) -> data.Contest:
    """What a step adds to the data."""
    step, *others = arguments
    collect.main([step, "--occasion=first", f"--data={tmp_path / 'trust.jsonl'}", *others])
    (entry,) = data.read(tmp_path / "trust.jsonl")
    assert isinstance(entry, data.Contest)
    return entry


@pytest.mark.parametrize("arguments", [[], ["perf/test_forward.py", "-k", "naive"]], ids=["all", "some"])
def test_a_run_of_unchanged_code_is_added_with_the_time_it_took(
    tmp_path: Path, asked: list[Any], arguments: list[str]
) -> None:
    entry = added(tmp_path, "aa", "--suite=some", "--", *arguments)
    assert asked == [arguments or ["perf"], ("ab.jsonl", "first")]
    assert (entry.what, entry.suite, entry.seconds) == ("aa", "some", {"screen": 3.0, "whole": 5.0})
    assert (entry.planted, entry.disturbance) == ({}, "")


def test_a_suite_of_the_page_brings_its_cases(tmp_path: Path, asked: list[Any]) -> None:
    added(tmp_path, "aa", "--suite=subset")
    assert asked[0] == [*collect.SUITES["subset"]]


def test_a_disturbed_run_is_added_with_the_block_from_which_on_it_was(tmp_path: Path, asked: list[Any]) -> None:
    entry = added(tmp_path, "drift", "--block=4", "--suite=some", "--", "perf", "-k", "naive")
    assert asked == [["perf", "-k", "naive", "--perf-allow-busy"], 4, ("ab.jsonl", "first")]
    assert (entry.what, entry.suite, entry.seconds) == ("drift", "some", {"screen": 3.0, "whole": 5.0})
    assert entry.disturbance == "another process multiplies matrices from block 4 on"


def test_what_was_planted_is_added_with_its_true_size(
    tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, tmp_path, 0.0203, compared=False)
    entry = added(tmp_path, "planted", "--planted=^a/:2", "--suite=some", "--", "perf", "-k", "naive")
    plant = ["-p", "tests.planted", "--planted=^a/:2", f"--planted-in={collect.ROOT}"]
    assert asked == [["perf", "-k", "naive", *plant], ("ab.jsonl", "first")]
    assert (entry.what, entry.suite, entry.seconds) == ("planted", "some", {"screen": 3.0, "whole": 5.0})
    assert entry.planted == {"a": data.Planted(asked=0.02, true=0.0203)}


def test_a_turn_brings_its_cases_and_what_is_planted(
    tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, tmp_path, 0.0203, compared=False)
    entry = added(tmp_path, "planted", "--turn=2")
    shares = [f"--planted={share}" for share in planted_turns.planted(2)]
    assert asked[0] == [*planted_turns.ARGUMENTS, "-p", "tests.planted", *shares, f"--planted-in={collect.ROOT}"]
    assert entry.suite == "planted"


def test_where_no_case_has_the_name_nothing_is_compared(
    tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "_folder", lambda: tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0))
    with pytest.raises(RuntimeError, match="nothing:2 slowed no case"):
        collect.planted("first", ["nothing:2"], "default", ["perf"])
    assert asked == []


@pytest.mark.parametrize("arguments", [["aa", "--suite=subset"], ["planted", "--turn=1"]])
def test_a_suite_of_the_page_takes_no_other_cases(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        collect.main([*arguments, "--occasion=first", "--", "perf/test_linear.py"])
    assert "have their own cases, got perf/test_linear.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("true", "changed", "error", "said"),
    [
        (0.02, "", LookupError, "compared"),
        (-0.001, "", RuntimeError, "did not slow a:"),
        (0.02, " M src/attnkit/oracle.py\n", RuntimeError, "oracle.py"),
    ],
)
def test_what_was_not_slowed_or_is_no_commit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, true: float, changed: str, error: type[Exception], said: str
) -> None:
    measured(monkeypatch, tmp_path, true, changed)
    with pytest.raises(error, match=said):
        collect.planted("first", ["a:2"], "default", ["perf"])
