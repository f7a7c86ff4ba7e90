"""What a search for the fastest form keeps, and what a case's check is given."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attnkit.parity import Parity
from attnkit.problem import Problem
from attnkit.variant import Variant
from perf import attention, search
from perf.problems import Lineup


def test_what_was_found_is_kept_whatever_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")

    def found(record: list[dict[str, Any]]) -> None:
        record.append({"seconds": 1e-6})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search.recorded(found, tmp_path / "out.json")
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept == {"gpu": "a GPU", "torch": torch.__version__, "record": [{"seconds": 1e-6}]}


def test_a_search_screens_a_form_where_it_is_asked_to_and_searches_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    parser = argparse.ArgumentParser()
    search.add_options(parser, seconds=7.0)
    out = str(tmp_path / "out.json")
    for options, said, found in ((["--screen", "form"], '{"out": "form is wrong"}\n', False), ([], "", True)):
        arguments = parser.parse_args(["--out", out, *options])
        assert arguments.seconds == 7.0
        code = search.run("perf.x", arguments, lambda form: f"{form} is wrong", lambda record: record.append({"a": 1}))
        assert (code, capsys.readouterr().out, Path(out).exists()) == (0, said, found)
    assert json.loads(Path(out).read_text())["record"] == [{"a": 1}]


def test_what_a_caller_keeps_is_there_when_its_case_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed is what was checked."""
    seen: list[Any] = []

    def attend(*tensors: object, workspace: object = None, **options: object) -> None:
        seen.append(workspace)

    way = Variant(name="naive", summary="", attention=attend, rejects=lambda *_: None, absent=lambda: None, lacks={})  # type: ignore[arg-type]

    def parity(way: Variant, *_: object) -> Parity:
        way.attention(None, None, None, mask="full", scale=None)  # type: ignore[arg-type]
        return Parity(())

    monkeypatch.setattr(attention, "variant", lambda name: way)
    monkeypatch.setattr(attention, "parity", parity)
    lineup = Lineup(problem=Problem(b=1, hq=1, sq=4, d=16), variants=("naive",), reference="naive")
    benchmark: Any = lambda call, *, check, **about: check(None)  # noqa: E731 - a stand-in for the fixture
    attention.time_attention(benchmark, lineup, "naive", "fwd", torch.device("cpu"), kept={"workspace": "kept"})
    assert seen == ["kept"]
