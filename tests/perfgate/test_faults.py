"""Faults of the harness, one line each: every one is planted, and none ends green.

Green is exit code 0 with at least one case judged and each of them unchanged or improved. What a fault's own module
says and does in detail is tested beside that module; here the whole way is gone, from a pytest session or a command to
its end. Faults that only a GPU can have (work elsewhere than on the device, compiling in a window of its own) are
planted in `test_cuda`; what tunes anew in each process, in `test_ab_command`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .conftest import Suite
from .faulty import (
    CALL,
    COMMIT,
    END,
    ONE,
    Document,
    Ended,
    Gate,
    World,
    against_a_journal,
    clock,
    hook,
    kept,
    measure,
    merge,
    merge_twice,
    method,
    nothing,
    on_a_gpu,
    process,
    record,
    report,
    report_of_a_killed_run,
    says,
    seconds,
    stops,
    text,
    window,
    without_room,
)

FAULTS: dict[str, tuple[Callable[[World], Ended], str]] = {
    # what happens in the timed window
    "triton compiles in the window": (
        Gate(conftest=window("runtime.jit_post_compile_hook(fn=types.SimpleNamespace(name='flash'))")),
        "*inside a timed window of attention: triton compiled flash*",
    ),
    "triton tunes in the window": (Gate(conftest=window("Autotuner()._bench()")), "*window*: triton tuned fault*"),
    "torch compiles in the window": (Gate(conftest=window("graphs.append(1)")), "*window*: torch.compile compiled*"),
    "memory is taken from the driver in the window": (
        Gate(conftest=window("taken.append(1)")),
        "*window*: it took 1 new block(s) of device memory*",
    ),
    "the work is elsewhere than on the device": (
        Gate(conftest=clock("raise MeasureError('the call did nothing on the stream')")),
        "speed/a: the call did nothing on the stream",
    ),
    "inputs of zeros": (
        Gate(
            conftest=clock(
                "import torch; from perfgate import constant as c; raise MeasureError(c.of_inputs(torch.zeros(2**20)))"
            )
        ),
        "speed/a: its inputs hold one number each ([[]1048576[]])*",
    ),
    "the cache is left warm": (
        Gate(source=(CALL, f"{CALL}, l2='warm'")),
        "speed/a refused: *L2 warm, *L2 cold*",
    ),
    "two visits are timed by two methods": (
        Gate(
            conftest=clock("samples = replace(samples, method=replace(samples.method, version=visits))"),
            environment={"SLOW": "a"},
            baseline=method(version=1),
        ),
        "speed/a: samples of one case were taken by different methods*",
    ),
    # what a clock gives
    "durations of zero": (Gate(conftest=clock("samples = replace(samples, seconds=(0.0,) * 40)")), "*positive*0.0*"),
    "negative durations": (Gate(conftest=clock("samples = replace(samples, seconds=(-1e-3,) * 40)")), "*positive*"),
    "durations that are no number": (
        Gate(conftest=clock("samples = replace(samples, seconds=(1e-3, float('nan')))")),
        "*durations must be positive and finite, got nan*",
    ),
    "infinite durations": (Gate(conftest=clock("samples = replace(samples, seconds=(float('inf'),))")), "*got inf*"),
    "no durations": (Gate(conftest=clock("samples = replace(samples, seconds=())")), "*samples are empty*"),
    "five samples": (Gate(conftest=clock(arguments="n=5")), "speed/a unresolved: 5 samples are too few *"),
    "samples that say nothing": (Gate(conftest=clock(arguments="noise=0.2")), "speed/a unresolved: *"),
    "two modes in one process": (
        Gate(
            conftest=clock(
                "samples = replace(samples, seconds=tuple(s * (1 + i % 9 // 5) for i, s in enumerate(samples.seconds)))"
            )
        ),
        "speed/a unresolved: *",
    ),
    "everything is slower": (Gate(environment={"PROCESS": "0.1"}), "3 regressed, *"),
    "a time ten million times the baseline's": (
        Gate(baseline=seconds(lambda xs: (1e-10,) * len(xs))),
        "speed/a regressed: *",
    ),
    "the GPU slowed down for heat": (
        Gate(
            conftest=clock("samples = replace(samples, counters={'throttle_reasons': 64.0})"), environment={"SLOW": "a"}
        ),
        "*for the GPU slowed down for heat*",
    ),
    "the outliers are dropped": (
        kept(lambda data: [duration for duration in data if duration < 1e-3]),
        "*expected pytest-benchmark to record the 40 durations that were measured*",
    ),
    "the samples are reordered": (
        kept(sorted),
        "*expected pytest-benchmark to record the 40 durations that were measured*",
    ),
    "memory no longer suffices": (
        Gate(source=(CALL, "if case == 'b': raise MemoryError('80 GiB')\n    " + CALL)),
        "speed/b regressed: out of memory, but not in the baseline: 80 GiB",
    ),
    # what runs
    "a case is slower": (Gate(environment={"SLOW": "b"}), "speed/b regressed: new/old in *"),
    "a case is missing": (Gate(source=('"b", "c"', '"b"')), "speed/c missing: *"),
    "a case is renamed": (Gate(source=("speed/{case}", "fast/{case}")), "nothing was compared: *"),
    "one case is renamed": (Gate(source=("{case}", "{case if case != 'b' else 'B'}")), "speed/b missing: *"),
    "a case does other work": (Gate(source=("bytes=1e9", "bytes=1e8")), "speed/a refused: does other work *"),
    "a case is skipped": (
        Gate(source=(CALL, "if case == 'b': pytest.skip('no')\n    " + CALL)),
        "speed/b missing: *",
    ),
    "a case is expected to fail": (
        Gate(source=(CALL, "if case == 'b': pytest.xfail('no')\n    " + CALL)),
        "speed/b missing: *",
    ),
    "a case forgot to time": (Gate(source=(CALL, "if case == 'b': return\n    " + CALL)), "speed/b missing: *"),
    "a new case forgot to time": (
        Gate(source=(END, f"{END}\n\n\ndef test_new(gpu_benchmark):\n    pass\n")),
        "note: this run is incomplete (3 of 4 cases were measured)*",
    ),
    "tests are dropped without a word": (
        Gate(conftest=hook("pytest_collection_modifyitems(items)", "del items[1:]")),
        "speed/b missing: *",
    ),
    "no test is left": (Gate(source=("def test_speed", "def speed")), "*no tests ran*"),
    "no timed test is left": (
        Gate(source=("def test_speed", "def test_other():\n    pass\n\n\ndef speed")),
        "nothing was compared: *",
    ),
    "no test is selected": (Gate(options=("--benchmark-compare", "-k", "nothing")), "*3 deselected*"),
    "two cases have one name": (Gate(source=("speed/{case}", "speed/a")), "*'speed/a' is timed by two tests*"),
    "a test times two cases": (
        Gate(source=(END, f"{END}\n    gpu_benchmark(lambda: seconds)\n")),
        "*used gpu_benchmark twice*",
    ),
    "a result is wrong": (
        Gate(source=(CALL, "def check(result):\n        assert result == 2\n\n    " + CALL + ", check=check")),
        "*assert 0.001 == 2*",
    ),
    "a test fails after it was timed": (Gate(source=stops("assert False")), "speed/b missing: *"),
    "a teardown fails": (
        Gate(conftest="@pytest.fixture(autouse=True)\ndef breaks():\n    yield\n    assert False\n"),
        "*3 passed, 3 errors*",
    ),
    "the suite does not import": (
        Gate(source=("import pytest", "import no_kernels")),
        "*No module named 'no_kernels'*",
    ),
    # how it ends
    "half a run that says all is well": (
        Gate(source=stops("pytest.exit('enough', returncode=0)")),
        "note: this run is incomplete (1 of 3 cases were measured)*",
    ),
    "an exit code that is set to 0": (
        Gate(source=stops("assert False"), conftest=hook("pytest_sessionfinish(session)", "session.exitstatus = 0")),
        "note: this run is incomplete (2 of 3 cases were measured)*",
    ),
    "an exit code that is set to 0 for a regression": (
        Gate(environment={"SLOW": "b"}, conftest=hook("pytest_sessionfinish(session)", "session.exitstatus = 0")),
        "speed/b regressed: *",
    ),
    "a test leaves Python": (Gate(source=stops("raise SystemExit(0)")), "speed/b missing: *"),
    "the run is killed": (
        Gate(source=stops("__import__('os').kill(__import__('os').getpid(), 9)"), spawn=True),
        "*",
    ),
    "it stops at the first failure": (
        Gate(source=stops("assert False"), options=("--benchmark-compare", "-x")),
        "note: this run is incomplete (1 of 3 cases were measured)*",
    ),
    "no summary is printed": (
        Gate(environment={"SLOW": "b"}, options=("--benchmark-compare", "--no-summary", "-qq")),
        "speed/b regressed: *",
    ),
    "the disk is full": (without_room, "*MiB are free at *"),
    # where it runs
    "xdist shares the device": (
        Gate(options=("--benchmark-compare", "-n2"), spawn=True),
        "perf needs the device to itself: *",
    ),
    "another process computes on the GPU": (
        on_a_gpu(others=["process 7 computes on GPU 0"]),
        "*the GPU is busy: process 7 computes on GPU 0*",
    ),
    "there is no GPU": (on_a_gpu(why_not="torch sees no CUDA device"), "*torch sees no CUDA device*"),
    "a baseline of another GPU": (Gate(options=ONE, environment={"DEVICE": "H100"}), "*this is H100_torch2.11, *"),
    "a GPU without a baseline": (Gate(environment={"DEVICE": "H100"}), "* 3 new, 0 missing"),
    "pytest-benchmark is switched off": (
        Gate(options=("-p", "no:benchmark", "--benchmark-compare"), spawn=True),
        "*unrecognized arguments: --benchmark-compare*",
    ),
    # how it judges
    "a tolerance that is no number": (Gate(options=("--benchmark-compare", "--perf-floor=nan")), "*--perf-floor*'nan'"),
    "an infinite tolerance": (Gate(options=("--benchmark-compare", "--perf-floor=inf")), "*--perf-floor*'inf'"),
    # the baseline
    "a baseline timed by an older method": (Gate(baseline=method(version=0)), "speed/a refused: *fake v0*"),
    "a baseline timed by another clock": (Gate(baseline=method(clock="host")), "speed/a refused: *host v1*"),
    "a baseline cut off": (Gate(file=lambda content: content[:-500]), "*broken or cut off*"),
    "an empty baseline": (Gate(file=lambda content: b""), "*is empty*"),
    "a baseline of no cases": (Gate(baseline=lambda d: d["benchmarks"].clear()), "*holds no case*"),
    "a baseline that is no number": (Gate(file=text('"schema": 1', '"schema": NaN')), "*holds NaN where a number*"),
    "a baseline of durations of zero": (Gate(baseline=seconds(lambda xs: (0.0,) * len(xs))), "*is damaged: durations*"),
    "a baseline whose samples are cut off": (
        Gate(baseline=process(lambda p: p.update(samples=p["samples"][:-5]))),
        "*is damaged: not a record*",
    ),
    "a baseline without samples": (Gate(baseline=process(lambda p: p.pop("samples"))), "*is damaged: not a record*"),
    "a baseline of another schema": (Gate(baseline=says(schema=2)), "*has schema 2, expected 1*"),
    "a record of another schema": (Gate(baseline=record(lambda r: r.update(schema=2))), "*record of schema 1, got 2*"),
    "a case twice in the baseline": (
        Gate(baseline=lambda d: d["benchmarks"].append(d["benchmarks"][0])),
        "*holds the case speed/a twice*",
    ),
    "a baseline of half a run": (Gate(baseline=says(complete=False)), "*is of an incomplete run*"),
    "a baseline that pytest-benchmark alone saved": (
        Gate(baseline=lambda d: d.pop("perfgate")),
        "*was not saved with perfgate*",
    ),
    "a baseline of one process": (
        Gate(baseline=record(lambda r: r["processes"].__delitem__(slice(1, None)))),
        "*3 unresolved*",
    ),
    "a ceiling of zero": (Gate(baseline=says(ceilings={"copy": 0.0})), "*ceiling copy is 0.0*"),
    # the making of a baseline
    "processes of two GPUs": (
        merge(lambda d: d["machine_info"]["perfgate"].update(device="H100")),
        "*process 1 ran on *",
    ),
    "processes of two drivers": (
        merge(lambda d: d["machine_info"]["perfgate"]["versions"].update(driver="1")),
        "*process 1 and process 2 ran with different software*",
    ),
    "processes of two revisions": (merge(lambda d: d.update(commit_info=COMMIT)), "*process 1 measured the code of *"),
    "processes of two methods": (merge(method(version=0)), "*was timed by different methods*"),
    "processes of two suites": (merge(lambda d: d["benchmarks"].pop()), "*hold different cases*"),
    "a process that did other work": (
        merge(record(lambda r: r["case"]["work"].update(bytes=1.0))),
        "*does other work in process 1 than in process 2*",
    ),
    "a process that did not end": (merge(says(complete=False)), "*process 2 is of an incomplete run*"),
    "a process far from the others": (merge(seconds(lambda xs: tuple(2 * x for x in xs))), "*lie *% apart*"),
    "a process in heat": (
        merge(process(lambda p: p["counters"].update(throttle_reasons=64.0))),
        "*the GPU slowed down for heat in process 2 of 5*",
    ),
    "one process counted twice": (merge_twice, "*process 2 is process 1 again*"),
    "a process that fails": (measure("def test_wrong(gpu_benchmark):\n    assert False"), "*ended with exit code 1*"),
    "a process that leaves with code 0": (
        measure("def test_leaves(gpu_benchmark):\n    __import__('os')._exit(0)"),
        "ended with exit code 0 before it came to its end: something called os._exit*",
    ),
    "a process that leaves with code 0 when all is saved but its journal's end": (
        measure("", "-p", "leaves"),
        "ended with exit code 0 before it came to its end: something called os._exit*",
    ),
    "the file of an earlier process": (measure("", "--collect-only", stale=True), "*timed nothing*"),
    # files judged by the command
    "a saved run of another GPU": (
        report(lambda d: d["machine_info"]["perfgate"].update(device="H100")),
        "*this is H100_torch2.11, *",
    ),
    "a saved run by another method": (report(method(version=2)), "speed/a refused: *"),
    "a saved run without a case": (report(lambda d: d["benchmarks"].pop()), "speed/c missing: *"),
    "a saved run that did not end": (report(says(complete=False)), "*is of an incomplete run*"),
    "a journal of a killed run": (report_of_a_killed_run, "*is of a run that did not come to its end*"),
    "a journal for a baseline": (against_a_journal, "*is broken or cut off*"),
}


@pytest.fixture
def world(
    suite: Suite,
    processes: list[Document],
    document: Document,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    # the fixture `processes` is read anew from disk for each test, so that a fault may change it
    return World(suite=suite, processes=processes, document=document, capsys=capsys, monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    "ways",
    [
        [Gate(), Gate(options=ONE)],
        [Gate(conftest=clock()), Gate(conftest=window("pass"))],
        [report(nothing)],
    ],
    ids=["gate", "clocks", "report"],
)
def test_without_a_fault_the_same_ways_end_green(world: World, ways: list[Callable[[World], Ended]]) -> None:
    for way in ways:
        ended = way(world)
        assert ended.green, "\n".join(ended.lines)


def test_without_a_fault_a_baseline_is_made(world: World) -> None:
    assert merge(nothing)(world).code == 0
    assert measure("")(world).code == 0


@pytest.mark.parametrize(("plant", "seen"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_never_ends_green(world: World, plant: Callable[[World], Ended], seen: str) -> None:
    ended = plant(world)
    assert not ended.green, "\n".join(ended.lines)
    pytest.LineMatcher(list(ended.lines)).fnmatch_lines([seen])
