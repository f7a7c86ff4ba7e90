"""What was accepted is not red, stands in every report, and is red again if it grows or the baseline is renewed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from perfgate import accept
from perfgate.__main__ import main
from perfgate.accept import Acceptance
from perfgate.baseline import Baseline, BaselineError
from perfgate.gate import Exit, Outcome, decide
from perfgate.price import with_errors
from perfgate.verdict import Quantity, State
from tests.perfgate.conftest import Suite
from tests.perfgate.simulate import H200, record

STEADY = (1.000e-3, 1.001e-3, 0.999e-3, 1.0005e-3, 0.9995e-3)
ENTRY = Acceptance(
    case="a", quantity=Quantity.TIME, ratio=1.1, because="sinks cost it", date="2026-01-31", baseline="0001_x.json"
)


def run(slower: float, *entries: Acceptance, file: str = "0001_x.json", strict: bool = False) -> Outcome:
    before = Baseline(path=Path("baselines") / file, environment=H200, records={"a": record("a", STEADY)})
    return decide({"a": record("a", [1e-3 * slower])}, before, accepted=entries, strict=strict)


def states(outcome: Outcome) -> list[State]:
    return [v.state for v in outcome.verdicts]


def test_an_accepted_slowdown_is_not_red_and_is_told_with_its_reason() -> None:
    assert run(1.1).exit is Exit.REGRESSED
    outcome = run(1.1, ENTRY, strict=True)
    assert (outcome.exit, states(outcome)) == (Exit.OK, [State.ACCEPTED])
    assert outcome.sentences[0].startswith("a accepted: new/old in [")
    assert outcome.sentences[0].endswith("; time +10.0 %, accepted on 2026-01-31: sinks cost it")


@pytest.mark.parametrize(("now", "state"), [(1.1, State.ACCEPTED), (1.12, State.ACCEPTED), (1.25, State.REGRESSED)])
def test_an_accepted_case_that_got_slower_still_is_red_again(now: float, state: State) -> None:
    outcome = run(now, ENTRY)
    assert states(outcome) == [state]
    assert (outcome.exit is Exit.REGRESSED) == (state is State.REGRESSED)
    if state is State.REGRESSED:
        assert "; more than time +10.0 %, accepted on" in outcome.sentences[0]


def test_what_was_accepted_of_another_baseline_is_stale_and_ignored() -> None:
    outcome = run(1.1, ENTRY, file="0002_x.json")
    assert outcome.exit is Exit.REGRESSED
    assert outcome.notes == (
        "stale: what was accepted of 0001_x.json does not hold for 0002_x.json and was ignored: a",
    )


def test_an_entry_holds_for_its_case_and_quantity_alone() -> None:
    for other in (replace(ENTRY, case="a/b"), replace(ENTRY, quantity=Quantity.MEMORY)):
        assert run(1.1, other).exit is Exit.REGRESSED


def test_an_entry_is_told_also_where_it_was_not_needed() -> None:
    assert run(1.0, ENTRY).notes == ("a: not seen now, though time +10.0 %, accepted on 2026-01-31: sinks cost it",)
    assert run(1.0, replace(ENTRY, case="b")).notes[0].startswith("b: not measured now, though time +10.0 %")
    assert run(1.0, ENTRY).exit is Exit.OK


@pytest.mark.parametrize(("error", "code"), [(1.2, Exit.OK), (1.3, Exit.REGRESSED)])
def test_errors_are_accepted_likewise(error: float, code: Exit) -> None:
    before = with_errors(record("a", STEADY), {"out": 1.0})
    now = with_errors(record("a", [1e-3]), {"out": error})
    entry = replace(ENTRY, quantity=Quantity.ACCURACY, ratio=1.2)
    baseline = Baseline(path=Path("0001_x.json"), environment=H200, records={"a": before})
    assert decide({"a": now}, baseline, accepted=[entry]).exit is code


def test_what_does_not_fit_into_memory_any_more_is_not_covered_by_a_ratio() -> None:
    before = Baseline(path=Path("0001_x.json"), environment=H200, records={"a": record("a", STEADY)})
    assert decide({}, before, out_of_memory={"a": "80 GiB"}, accepted=[ENTRY]).exit is Exit.REGRESSED


# The file


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    entries = [replace(ENTRY, case=case, because=because) for case, because in (("b", "größer"), ("a", "x"))]
    accept.write(tmp_path / "0001_x.json", entries)
    assert accept.read(tmp_path / "0002_other.json") == (entries[1], entries[0])
    assert accept.read(tmp_path / "elsewhere" / "0001_x.json") == ()


BROKEN = {
    "half": '{"schema": 1, "accep',
    "empty": "",
    "list": "[]",
    "schema": '{"schema": 2, "accepted": []}',
    "without entries": '{"schema": 1}',
    "an entry too short": '{"schema": 1, "accepted": [{"case": "a", "quantity": "time"}]}',
    "an entry too long": json.dumps({"schema": 1, "accepted": [{**asdict(ENTRY), "until": "ever"}]}),
    "a quantity": json.dumps({"schema": 1, "accepted": [{**asdict(ENTRY), "quantity": "looks"}]}),
    "a ratio": json.dumps({"schema": 1, "accepted": [{**asdict(ENTRY), "ratio": "all"}]}),
    "no growth": json.dumps({"schema": 1, "accepted": [{**asdict(ENTRY), "ratio": 0.9}]}),
    "infinite": '{"schema": 1, "accepted": [{"ratio": Infinity}]}',
    "no reason": json.dumps({"schema": 1, "accepted": [{**asdict(ENTRY), "because": " "}]}),
    "twice": json.dumps({"schema": 1, "accepted": [asdict(ENTRY)] * 2}),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "accepted.json").write_text(text)
    with pytest.raises(BaselineError, match=r"accepted\.json"):
        accept.read(tmp_path / "0001_x.json")


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_file_is_written_whole_or_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = accept.write(tmp_path / "0001_x.json", [ENTRY])
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, fails, full)
        with pytest.raises(BaselineError, match=r"accepted\.json was left as it was: No space left"):
            accept.write(tmp_path / "0001_x.json", [])
    assert [path.name for path in tmp_path.iterdir()] == ["accepted.json"]
    assert file.read_bytes() == before


# The command, and what the gate makes of it


@pytest.fixture
def slowed(suite: Suite, filed: Path) -> Suite:
    """A run whose case b is 10 % slower than the baseline."""
    (suite.path / ".perfgate").mkdir(exist_ok=True)
    assert suite.run("--benchmark-compare", "--benchmark-json=.perfgate/perf.json", SLOW="b").ret == Exit.REGRESSED
    return suite


def accepting(case: str, *more: str) -> int:
    return main(["accept", case, "--because", "it  is\nworth it", "--storage=.benchmarks", *more])


def test_a_slowdown_is_accepted_told_and_red_again_with_the_next_baseline(
    slowed: Suite, filed: Path, document: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert accepting("speed/b") == Exit.OK
    said = capsys.readouterr().out
    assert said.startswith(f"{(filed.parent / 'accepted.json').relative_to(slowed.path)}: speed/b: time +10.0 %")
    (entry,) = accept.read(filed)
    assert (entry.case, entry.because, entry.baseline) == ("speed/b", "it is worth it", filed.name)

    result = slowed.run("--benchmark-compare", "--benchmark-json=out.json", SLOW="b")
    assert result.ret == Exit.OK
    result.stdout.fnmatch_lines(["speed/b accepted: new/old in *; time +10.0 %, accepted on *: it is worth it"])
    result.stdout.fnmatch_lines(["0 regressed, 0 improved, 2 unchanged, *, 1 accepted"])
    assert slowed.run("--benchmark-compare", SLOW="b c").ret == Exit.REGRESSED
    for form in ("text", "markdown"):
        assert main(["report", "out.json", "--against", str(filed), "--format", form]) == Exit.OK
        assert "it is worth it" in capsys.readouterr().out

    slowed.file(document, "renewed")
    result = slowed.run("--benchmark-compare", SLOW="b")
    assert result.ret == Exit.REGRESSED
    result.stdout.fnmatch_lines([f"stale: what was accepted of {filed.name} *: speed/b"])


def test_accepting_again_replaces_the_entry(slowed: Suite, filed: Path) -> None:
    assert accepting("speed/b") == Exit.OK
    assert main(["accept", "speed/b", "--because", "still", "--against", str(filed)]) == Exit.OK
    assert [e.because for e in accept.read(filed)] == ["still"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["speed/bb"], Exit.USAGE, "speed/bb is not in *: did you mean speed/b or *"),
        (["b"], Exit.USAGE, "b is not in *"),
        (["speed/a"], Exit.USAGE, "there is nothing to accept: speed/a unchanged: *"),
        (["speed/b", "--quantity=memory"], Exit.USAGE, "speed/b did not get worse in memory: *"),
        (["speed/b", "--because="], Exit.USAGE, "because must be a text that is not empty*"),
        (["speed/b", "--from=none.json"], Exit.REFUSED, "none.json cannot be read: *"),
        (["speed/b", "--storage=nowhere"], Exit.REFUSED, "no baseline of Fake-GPU_torch2.11 in nowhere: *"),
    ],
)
def test_what_cannot_be_accepted_is_said_and_nothing_is_written(
    slowed: Suite,
    filed: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    code: Exit,
    told: str,
) -> None:
    assert accepting(*arguments) == code
    pytest.LineMatcher(capsys.readouterr().err.splitlines()).fnmatch_lines([f"perfgate: {told}"])
    assert not (filed.parent / "accepted.json").exists()


def test_a_broken_file_ends_every_command_before_anything_is_timed(
    slowed: Suite, filed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (filed.parent / "accepted.json").write_text('{"schema": 1')
    journals = slowed.journals
    assert slowed.run("--benchmark-compare").ret == Exit.REFUSED
    assert slowed.journals == journals
    assert accepting("speed/b") == Exit.REFUSED
    assert main(["report", ".perfgate/perf.json", "--against", str(filed)]) == Exit.REFUSED
    assert "accepted.json is broken or cut off" in capsys.readouterr().err


def test_pytest_benchmark_takes_the_file_for_no_run(slowed: Suite, filed: Path) -> None:
    assert accepting("speed/b") == Exit.OK
    result = slowed.run("--benchmark-compare", "--benchmark-autosave", SLOW="b")
    assert result.ret == Exit.OK
    assert sorted(p.name[:4] for p in filed.parent.iterdir()) == ["0001", "0002", "acce"]
