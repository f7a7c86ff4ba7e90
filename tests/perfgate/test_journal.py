"""The journal: whole lines, whatever happens."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfgate import Case, Environment, Method, Record, Samples
from perfgate.journal import Journal, JournalError, read

HERE = Environment(device="Fake GPU", versions={"torch": "2.11.0"})


def record(name: str, median: float = 1e-3) -> Record:
    samples = Samples(seconds=(median,) * 20, method=Method(clock="fake"), counters={"peak_bytes": 1.0})
    return Record(case=Case(name=name), processes=(samples,))


@contextlib.contextmanager
def limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond this size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "new" / "j.jsonl", HERE, ["-k", "a"])
    journal.add_ceilings({"copy_bytes_per_second": 4e12})
    journal.add(record("a"), "t.py::a")
    journal.add_out_of_memory("b", "80 GiB")
    journal.close(exitstatus=0, complete=True)
    found = read(journal.path)
    assert (found.environment, found.argv, found.complete) == (HERE, ("-k", "a"), True)
    assert found.records == {"a": record("a")}
    assert found.ceilings == {"copy_bytes_per_second": 4e12}
    assert found.out_of_memory == {"b": "80 GiB"}


def test_a_journal_without_its_end_is_not_complete(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j", HERE)
    journal.add(record("a"), "t.py::a")
    assert not read(journal.path).complete


def test_each_case_is_there_as_soon_as_it_was_added(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j", HERE)
    for name in "abc":
        journal.add(record(name), f"t.py::{name}")
        assert name in read(journal.path).records


def test_what_was_taken_back_is_not_there(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j", HERE)
    journal.add(record("a"), "t.py::a")
    journal.add(record("b"), "t.py::b")
    journal.void("t.py::a", "failed")
    assert set(read(journal.path).records) == {"b"}
    journal.add(record("a", 2e-3), "t.py::a")
    assert read(journal.path).records["a"] == record("a", 2e-3)


@given(cut=st.integers(1, 4000))
def test_a_torn_last_line_costs_that_line_alone(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("torn") / "j"
    journal = Journal.open(path, HERE)
    names = [f"case-{i}" for i in range(4)]
    for name in names:
        journal.add(record(name), f"t.py::{name}")
    journal.abandon()
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    path.write_bytes(whole[: max(header, len(whole) - cut)])
    left = whole[: max(header, len(whole) - cut)].count(b"\n") - 1
    assert list(read(path).records) == names[:left]


@pytest.mark.parametrize("content", [b"", b'{"jour', b"{}\n", b"[1]\n", b'{"journal": 1}\n', b"\xff\n"])
def test_what_is_no_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(JournalError, match="is not a whole journal"):
        read(tmp_path / "j")


def test_damage_in_the_middle_is_refused(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j", HERE)
    journal.add(record("a"), "t.py::a")
    journal.add(record("b"), "t.py::b")
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(lines[0] + lines[1][:40] + b"\n" + lines[2])
    with pytest.raises(JournalError, match="is not a whole journal"):
        read(journal.path)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j", HERE)
    journal.path.write_bytes(journal.path.read_bytes().replace(b'"journal":1', b'"journal":2'))
    with pytest.raises(JournalError, match="schema 2, expected 1"):
        read(journal.path)


def test_an_earlier_journal_is_not_overwritten(tmp_path: Path) -> None:
    Journal.open(tmp_path / "j", HERE)
    with pytest.raises(JournalError, match="File exists; --perf-journal puts it elsewhere"):
        Journal.open(tmp_path / "j", HERE)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=r"cannot create journal .*file/j"):
        Journal.open(tmp_path / "file" / "j", HERE)


def test_a_case_that_does_not_fit_is_cut_off_and_the_ones_before_stay(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j", HERE)
    journal.add(record("a"), "t.py::a")
    size = os.path.getsize(journal.path)
    with limit(size + 100), pytest.raises(JournalError, match=r"cannot write journal .*File too large.*--perf-journal"):
        journal.add(record("b"), "t.py::b")
    assert os.path.getsize(journal.path) == size
    assert set(read(journal.path).records) == {"a"}
    journal.add(record("c"), "t.py::c")
    assert set(read(journal.path).records) == {"a", "c"}


def test_a_header_that_does_not_fit_leaves_no_file(tmp_path: Path) -> None:
    with limit(20), pytest.raises(JournalError, match="File too large"):
        Journal.open(tmp_path / "j", HERE)
    assert not (tmp_path / "j").exists()
