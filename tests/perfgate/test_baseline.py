"""Baselines are whole or refused, merged only if they belong together, and written whole or not at all."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perfgate import baseline
from perfgate.baseline import (
    Baseline,
    BaselineError,
    check_comparable,
    from_document,
    merge,
    read,
    rule_for,
    spread,
    write,
)
from perfgate.case import Case
from perfgate.clock import Method
from perfgate.kernels import Kernel, Kernels
from perfgate.record import Record
from perfgate.verdict import Rule
from tests.perfgate.conftest import disk
from tests.perfgate.simulate import H200, Suite, document, record, samples

ROOT = Path(__file__).parents[2]


def processes(n: int = 3) -> list[dict[str, Any]]:
    return [document([record("a", [1e-3 + i * 1e-6]), record("b", [2e-3 + i * 1e-6])]) for i in range(n)]


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    records = [record("a", [1e-3, 1.01e-3]), record("b", [2e-3, 2.01e-3])]
    whole = document(records, processes=2, out_of_memory={"big": "needs 200 GiB"})
    path = write(whole, tmp_path, "suite")
    found = read(path)
    assert found.path == path
    assert found.environment == H200
    assert {name: r.case for name, r in found.records.items()} == {r.case.name: r.case for r in records}
    for r in records:
        for kept, sent in zip(found.records[r.case.name].processes, r.processes, strict=True):
            assert kept.seconds == pytest.approx(sent.seconds, abs=1e-10)
    assert (found.processes, found.out_of_memory) == (2, {"big": "needs 200 GiB"})
    assert found.ceilings == {"copy_bytes_per_second": 4e12}


def test_benchmarks_that_perfgate_did_not_time_are_passed_over() -> None:
    mixed = document([record("a", [1e-3])])
    mixed["benchmarks"] += [{"fullname": "stock", "extra_info": {}, "stats": {}}, {"fullname": "older", "stats": {}}]
    assert list(from_document(mixed).records) == ["a"]
    assert len(merge([mixed, document([record("a", [1.001e-3])])])["benchmarks"]) == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe\x00", "is not text"),
        (b"not JSON at all", "is broken or cut off at line 1, column 1"),
        (json.dumps(document([record("a", [1e-3])])).encode()[:-40], "is broken or cut off at line 1"),
        (b'{"benchmarks": [NaN], "machine_info": {}}', "holds NaN where a number must be"),
        (b'{"benchmarks": [-Infinity], "machine_info": {}}', "holds -Infinity where a number must be"),
        (b"[" * 100_000, "is nested too deep|is broken"),
        (b"[]", "is not pytest-benchmark's"),
        (b"17", "is not pytest-benchmark's"),
        (b'{"name": "package.json"}', "is not pytest-benchmark's"),
        (b'{"benchmarks": [1], "machine_info": {}}', "is not pytest-benchmark's"),
        (b'{"benchmarks": [], "machine_info": {}}', "was not saved by perfgate"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused_in_one_sentence(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "0001_suite.json"
    path.write_bytes(data)
    with pytest.raises(BaselineError, match=said) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert "measure the baseline anew" in str(caught.value) or said == "is not pytest-benchmark's"
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match=r"gone.json cannot be read: No such file"):
        read(tmp_path / "gone.json")
    with pytest.raises(BaselineError, match="cannot be read: Is a directory"):
        read(tmp_path)


def changed(**run: Any) -> dict[str, Any]:
    return document([record("a", [1e-3])], **run)


def with_part(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    found = changed()
    change(found)
    return found


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (changed(complete=False, measured=1, collected=9, exitstatus=2), "incomplete run .1 of 9 cases, exit status 2"),
        (changed(complete="yes"), "incomplete run"),
        (changed(schema=7), "has schema 7, expected 1"),
        (changed(ceilings={"copy": "fast"}), "is damaged"),
        (changed(ceilings={"copy": 0}), "is damaged: ceiling copy is 0.0, expected a positive number"),
        (changed(out_of_memory=["a"]), "is damaged"),
        (changed(processes="many"), "is damaged"),
        (changed(session=0.005), "is damaged"),
        (changed(session={}), "is damaged"),
        (changed(session={"sd": 1.5}), "is damaged: sessions differ by an sd of 1.5, expected a share from 0 to 1"),
        (document([record("a", [1e-3]), record("a", [1e-3])]), "holds the case a twice"),
        (document([]), "holds no case"),
        (with_part(lambda d: d.pop("perfgate")), "was not saved by perfgate"),
        (with_part(lambda d: d["machine_info"].pop("perfgate")), "was not saved by perfgate"),
        (with_part(lambda d: d["machine_info"].update(perfgate={"device": 1})), "is damaged: expected an environment"),
        (with_part(lambda d: d["benchmarks"][0]["extra_info"].update(perfgate={})), "expected a record of schema 1"),
        (with_part(lambda d: d["benchmarks"][0]["extra_info"].update(perfgate="x")), "is damaged"),
        (with_part(lambda d: d["benchmarks"][0].update(extra_info=[1])), "is damaged"),
    ],
)
def test_a_document_that_is_not_whole_is_refused(broken: dict[str, Any], said: str) -> None:
    with pytest.raises(BaselineError, match=said) as caught:
        from_document(broken)
    assert "measure" in str(caught.value)


def test_another_device_is_refused_and_both_are_named() -> None:
    old = replace(from_document(changed()), path=Path("0001_suite.json"))
    a100 = replace(H200, device="NVIDIA A100")
    with pytest.raises(BaselineError, match=r"NVIDIA-A100_cu130.*0001_suite.json is of NVIDIA-H200_cu130"):
        check_comparable(old, a100)


def test_another_driver_is_said_and_allowed() -> None:
    newer = replace(H200, versions={**H200.versions, "driver": "590.0"})
    assert check_comparable(from_document(changed()), newer) == ["driver 590.0 here, 580.1 in the baseline"]
    assert check_comparable(from_document(changed()), H200) == []


def test_a_merged_record_holds_all_processes_in_order() -> None:
    merged = from_document(merge(processes(3)))
    assert merged.processes == 3
    assert [s.median for s in merged.records["a"].processes] == pytest.approx([1e-3, 1.001e-3, 1.002e-3])
    again = from_document(merge([merge(processes(3)), *processes(2)]))
    assert again.processes == len(again.records["b"].processes) == 5


def test_a_merged_document_has_the_statistics_of_the_pooled_samples() -> None:
    parts = processes(3)
    parts[0]["benchmarks"][0]["stats"]["data"] = [1.0]
    found = merge(parts)["benchmarks"][0]["stats"]
    pooled = [s for i in range(3) for s in record("a", [1e-3 + i * 1e-6]).processes[0].seconds]
    assert found["rounds"] == len(pooled)
    assert found["mean"] == pytest.approx(sum(pooled) / len(pooled))
    assert found["median"] == pytest.approx(1.001e-3)
    assert (found["min"], found["max"]) == (pytest.approx(1e-3), pytest.approx(1.002e-3))
    assert found["iterations"] == 1
    assert "data" not in found


def test_a_merged_document_keeps_what_pytest_benchmark_and_others_wrote() -> None:
    parts = processes(2)
    before = copy.deepcopy(parts)
    merged = merge(parts)
    assert parts == before
    for key in ("commit_info", "datetime", "version"):
        assert merged[key] == parts[0][key]
    for old, new in zip(parts[0]["benchmarks"], merged["benchmarks"], strict=True):
        for key in ("group", "name", "fullname", "params", "param", "options"):
            assert new[key] == old[key]
        assert new["extra_info"]["mine"] == 1


def test_a_merged_document_claims_only_what_holds_for_all_processes() -> None:
    one, two, three = (document([record("a", [c * 1e-15])], ceilings={"copy": c}) for c in (3e12, 5e12, 4e12))
    two["machine_info"]["perfgate"]["facts"]["sm_count"] = "114"
    merged = from_document(merge([one, two, three]))
    assert merged.environment.facts == {"uuid": "GPU-1"}
    assert merged.ceilings == {"copy": 4e12}


def test_a_merged_document_names_all_devices_of_its_processes_or_none() -> None:
    one, two, three = (document([record("a", [s])]) for s in (1e-3, 2e-3, 3e-3))
    two["machine_info"]["perfgate"]["facts"]["uuid"] = "GPU-2"
    assert from_document(merge([one, two, three])).environment.facts["uuid"] == "GPU-1,GPU-2"
    del three["machine_info"]["perfgate"]["facts"]["uuid"]
    assert "uuid" not in from_document(merge([one, two, three])).environment.facts


HOST = Method(clock="host")


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (document([record("a", [1e-3])], environment=replace(H200, device="NVIDIA A100")), "H200.*process 2 on .*A100"),
        (
            document([record("a", [1e-3])], environment=replace(H200, versions={**H200.versions, "driver": "5"})),
            "process 1 and process 2 ran with different software .driver 580.1 and 5",
        ),
        (document([record("a", [1e-3])], commit="def"), "process 1 measured the code of abc, process 2 that of def"),
        (document([record("b", [1e-3])]), "process 1 and process 2 hold different cases .2, e.g. a"),
        (document([], out_of_memory={"a": "full"}), "hold different cases"),
        (document([record("a", [1e-3], method=HOST)]), "a was timed by different methods: fake.* in process 1, host"),
        (
            document([Record(case=Case(name="a", group="other"), processes=(samples(1e-3),))]),
            "a does other work in process 1 than in process 2",
        ),
        (changed(complete=False), "process 2 is of an incomplete run"),
        ({}, "process 2 is not pytest-benchmark's"),
    ],
)
def test_documents_that_do_not_belong_together_are_not_merged(second: dict[str, Any], said: str) -> None:
    with pytest.raises(BaselineError, match=said):
        merge([changed(), second])


def test_nothing_to_merge_is_an_error() -> None:
    with pytest.raises(BaselineError, match="nothing to merge"):
        merge([])


def test_pytest_benchmark_lists_and_compares_a_merged_baseline(tmp_path: Path) -> None:
    first, second = (write(merge(processes(2)), tmp_path / "machine", "suite") for _ in range(2))
    command = [sys.executable, "-m", "pytest_benchmark", f"--storage=file://{tmp_path}"]
    listed = subprocess.run([*command, "list"], capture_output=True, text=True, check=True, timeout=60)
    assert [Path(line).name for line in listed.stdout.split()] == [first.name, second.name]
    columns = "--columns=min,max,mean,stddev,median,iqr,outliers,ops,rounds,iterations"
    compared = subprocess.run([*command, "compare", columns], capture_output=True, text=True, check=True, timeout=60)
    assert compared.stdout.count("test_it[a]") == 2


def test_a_merged_baseline_names_no_host() -> None:
    documents = processes(2)
    for one in documents:
        one["machine_info"] |= {"node": "build-7", "release": "6.1.0-company"}
    assert not {"node", "release"} & merge(documents)["machine_info"].keys()


@pytest.mark.parametrize(("seconds", "code"), [(1e-3, 0), (1e-9, 1)])
def test_pytest_benchmark_fails_a_run_against_a_merged_baseline_by_its_own_rule(
    tmp_path: Path, seconds: float, code: int
) -> None:
    merged = merge([document([record("a", [seconds * factor])]) for factor in (1.0, 1.1)])
    merged["benchmarks"][0]["fullname"] = "test_one.py::test_one"
    path = write(merged, tmp_path / "machine", "suite")
    (tmp_path / "test_one.py").write_text("def test_one(benchmark):\n    benchmark(int)\n", encoding="utf-8")
    options = ["--benchmark-max-time=0.01", f"--benchmark-compare={path}", "--benchmark-compare-fail=median:10%"]
    alone = ["--rootdir=.", "-c/dev/null", "-pno:cacheprovider", "-pno:perfgate"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *alone, *options, "test_one.py"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTEST_PLUGINS"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    assert "0001_suite" in ran.stdout


def test_quiet_cool_processes_make_a_baseline() -> None:
    assert spread(Suite(1).run(5).values()) == []


def test_processes_that_disagree_are_named_with_what_would_not_be_seen() -> None:
    torn = record("torn", [1e-3, 1.3e-3, 1e-3, 1.3e-3, 1e-3])
    (said,) = spread([*Suite(1).run(5).values(), torn])
    assert said.startswith("torn: the medians of 5 processes lie 30.0% apart, so slowdowns below")
    assert spread([*Suite(1).run(5).values(), torn], allowed=math.inf) == []


def test_two_processes_far_apart_are_refused_without_a_number_that_says_nothing() -> None:
    (said,) = spread([record("torn", [1e-3, 1.7e-3])], allowed=0.6)
    assert said.endswith(
        "the medians of 2 processes lie 70.0% apart, so hardly any slowdown would be seen (60% is allowed)"
    )


def test_a_stricter_limit_refuses_more() -> None:
    records = list(Suite(1, typical=0.01).run(5).values())
    assert len(spread(records, allowed=0.05)) > len(spread(records, allowed=0.10)) > len(spread(records)) == 0


def test_a_tiny_case_is_not_refused_for_its_clocks_floor() -> None:
    """Nor for what devices differ by in it: that is no disagreement of its processes."""
    tiny = list(Suite(1, cases=10).run(5, seconds=0.5e-6).values())
    assert spread(tiny) == []
    filling = Kernels.of([Kernel(name="memset", bytes=4)])
    assert spread(replace(r, processes=tuple(replace(s, kernels=filling) for s in r.processes)) for r in tiny) == []


@pytest.mark.parametrize(
    ("reasons", "hot"),
    [(0x20, True), (0x40, True), (0x44, True), (0x0, False), (0x4, False), (0x8, False), (0x1, False)],
)
def test_heat_is_refused_and_the_power_cap_is_not(reasons: int, hot: bool) -> None:
    warm = Record(
        case=Case(name="warm"), processes=(samples(1e-3), samples(1e-3, throttle_reasons=float(reasons)), samples(1e-3))
    )
    assert spread([warm]) == (["warm: the GPU slowed down for heat in process 2 of 3"] if hot else [])


def test_numbers_go_on_and_are_pytest_benchmarks(tmp_path: Path) -> None:
    (tmp_path / "0041_by_hand.json").write_text("{}", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    assert write(changed(), tmp_path, "suite").name == "0042_suite.json"
    assert write(changed(), tmp_path, "other").name == "0043_other.json"
    (tmp_path / "9999_last.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BaselineError, match="no number left"):
        write(changed(), tmp_path, "suite")


def test_writers_at_once_take_different_numbers_and_lose_nothing(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda i: write(changed(collected=i), tmp_path, "suite"), range(40)))
    assert sorted(p.name for p in paths) == [f"{i:04}_suite.json" for i in range(1, 41)]
    assert sorted(json.loads(p.read_text())["perfgate"]["collected"] for p in tmp_path.iterdir()) == list(range(40))


@pytest.mark.parametrize("label", ["", "a b", "../up", "a/b", "ä"])
def test_a_label_is_part_of_a_file_name(tmp_path: Path, label: str) -> None:
    with pytest.raises(BaselineError, match="a label is made of"):
        write(changed(), tmp_path, label)
    assert list(tmp_path.iterdir()) == []


def test_what_json_cannot_say_is_not_written(tmp_path: Path) -> None:
    for odd in (math.nan, object()):
        with pytest.raises(BaselineError, match="is not valid JSON"):
            write({"odd": odd}, tmp_path, "suite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["fsync", "link"])
def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(baseline.os, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(changed(), tmp_path, "suite")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(BaselineError, match=r"nothing was written to .*file"):
        write(changed(), tmp_path / "file" / "machine", "suite")


LIMITED = """
import resource, sys
from perfgate.baseline import BaselineError, write
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write({"benchmarks": "x" * 100_000}, sys.argv[1], "suite")
except BaselineError as error:
    print(error)
"""


def test_a_file_that_may_not_grow_leaves_nothing_behind_and_says_so(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True, env=env, timeout=60
    )
    assert ran.stdout.strip() == f"nothing was written to {tmp_path}: File too large; make room or check its rights"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    with disk(tmp_path / "disk", "64k") as place:
        yield place


def test_a_full_disk_leaves_nothing_behind_and_says_so(small_disk: Path) -> None:
    kept = write(changed(), small_disk, "suite")
    large = {**changed(), "padding": "x" * 100_000}
    with pytest.raises(BaselineError, match=r"nothing was written to .*: No space left on device; make room"):
        write(large, small_disk, "suite")
    assert list(small_disk.iterdir()) == [kept]
    assert list(read(kept).records) == ["a"]


def test_what_sessions_differ_by_is_what_the_baseline_carries() -> None:
    carried, plain = (from_document(changed(**more)) for more in ({"session": {"sd": 0.005}}, {}))
    assert rule_for(carried, None, Rule(floor=0.03)) == Rule(floor=0.03, session=0.005)
    assert rule_for(plain, None) == Rule()


def test_only_the_device_that_a_baseline_is_of_is_spared_what_devices_differ_by() -> None:
    here, other, rule = H200, replace(H200, facts={"uuid": "GPU-2"}), Rule(floor=0.03)
    of_here = Baseline(environment=here, records={})
    assert rule_for(of_here, here, rule) == replace(rule, device=0.0, fill=0.0)
    assert [rule_for(of, at, rule) for of, at in ((of_here, other), (None, here), (of_here, None))] == [rule] * 3
