"""What plants bugs finds those that a law sees, tells those that none does, and is as the sources are."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")

from perfgate.environment import Environment
from tests.mutants import __main__ as command
from tests.mutants import kept, page, trials
from tests.mutants.mutant import SOURCE, Edit, Mutant
from tests.mutants.table import CONTROLS, TABLE
from tests.mutants.trials import Verdict, verdicts

PAGE = Path(__file__).parents[2] / "docs" / "mutants.md"
LINEAR = "linear.py"


def int8(name: str, *edits: Edit) -> Mutant:
    return Mutant(name, "for this test", ("half-a-scale", "whole-range"), edits)


@pytest.mark.parametrize("mutant", TABLE, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_what_is_in_its_file_once(mutant: Mutant) -> None:
    assert mutant.edits
    for edit in mutant.edits:
        text = (SOURCE / edit.file).read_text()
        assert text.count(edit.old) == 1, f"{mutant.name}: {edit.file} has {text.count(edit.old)} times {edit.old!r}"
        changed = text.replace(edit.old, edit.new)
        assert changed != text
        if edit.file.endswith(".py"):
            compile(changed, edit.file, "exec")


def test_names_are_each_their_own_and_there_are_forty() -> None:
    assert len({mutant.name for mutant in TABLE}) == len(TABLE)
    assert sum(mutant.device == "cpu" for mutant in TABLE) >= 40


def test_every_law_has_a_control() -> None:
    for device in ("cpu", "cuda"):
        laws = {check for mutant in TABLE if mutant.device == device for check in mutant.checks}
        assert {check for control in CONTROLS if control.device == device for check in control.checks} == laws


def test_a_piece_that_is_not_there_or_twice_is_an_error_that_names_the_mutant(tmp_path: Path) -> None:
    for piece, times in (("no such text", 0), ("import", "[0-9]+")):
        mutant = Mutant("family/gone", "", (), (Edit(LINEAR, piece, ""),))
        with pytest.raises(ValueError, match=f"family/gone: expected once in linear.py, found {times} times"):
            mutant.plant(tmp_path / piece)


def test_the_sources_are_left_as_they_are(tmp_path: Path) -> None:
    before = (SOURCE / LINEAR).read_text()
    int8("x", Edit(LINEAR, "LARGEST = 127", "LARGEST = 1")).plant(tmp_path)
    assert (SOURCE / LINEAR).read_text() == before
    assert "LARGEST = 1\n" in (tmp_path / "attnkit" / LINEAR).read_text()


def test_what_is_wrong_is_caught_what_is_right_survives_and_what_does_not_run_is_broken() -> None:
    wrong, harmless, broken, dead, control = verdicts(
        [
            int8("wrong", Edit(LINEAR, ".round()", ".trunc()")),
            int8("harmless", Edit(LINEAR, ".round()", ".round().round()")),
            int8("broken", Edit(LINEAR, ".round()", ".round(to='even')")),
            int8("dead", Edit(LINEAR, "LARGEST = 127\n", "LARGEST = 127\nimport os\nos.abort()\n")),
            int8("control"),
        ],
        processes=2,
    )
    assert (wrong.result, wrong.by) == ("caught", "half-a-scale")
    assert wrong.example >= 1
    assert wrong.line.startswith("AssertionError")
    assert (harmless.result, harmless.example) == ("survived", 200)
    assert broken.result == "broken"
    assert "TypeError" in broken.line
    # before any law was tried: nothing was found
    assert dead.result == "broken"
    assert (control.result, control.example) == ("passed", 200)
    assert [verdict.good for verdict in (wrong, harmless, broken, dead, control)] == [True, False, False, False, True]


def test_how_a_process_ends_is_no_matter_once_it_has_said_all() -> None:
    ends = "import os, multiprocessing.util as util\nutil.Finalize(None, os._exit, args=(255,), exitpriority=1)\n"
    (late,) = verdicts([int8("late", Edit(LINEAR, "LARGEST = 127\n", f"LARGEST = 127\n{ends}"))], processes=1)
    assert (late.result, late.example) == ("survived", 200)


def test_a_process_that_dies_of_a_bug_shows_it_and_one_without_end_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    in_quantize = "    largest = exact.abs().amax(1) if"
    bug = Edit(LINEAR, in_quantize, f"    import os; os.kill(os.getpid(), 11)\n{in_quantize}")
    (dies,) = verdicts([int8("dies", bug)], processes=1)
    monkeypatch.setattr(trials, "LIMIT", 5.0)
    endless = int8("stays", Edit(LINEAR, in_quantize, f"    while True: pass\n{in_quantize}"))
    stays, tramples = verdicts([endless, replace(endless, tramples=True)], processes=2)
    assert (dies.result, dies.by, dies.example) == ("caught", "half-a-scale (SIGSEGV)", 1)
    assert (stays.result, stays.good) == ("unfinished", False)
    assert (tramples.result, tramples.by) == ("caught", "half-a-scale (no end)"), "whatever it wrote over"


def test_a_survivor_fails_the_command_and_writes_no_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caught = Verdict(int8("a/one", Edit(LINEAR, "", "")), "caught", "half-a-scale", 3, 1.0, "")
    survived = Verdict(int8("a/two", Edit(LINEAR, "", "")), "survived", "half-a-scale", 200, 1.0, "")
    for found, code in (([caught], 0), ([caught, survived], 1)):
        monkeypatch.setattr(command, "verdicts", lambda mutants, processes, found=found: iter(found))
        assert command.main(["--page", str(tmp_path / f"{code}.md")]) == code
        assert (tmp_path / f"{code}.md").exists() == (code == 0)
    assert "a/two survived: half-a-scale" in capsys.readouterr().out
    assert "| a/one | for this test | half-a-scale | 3 |" in (tmp_path / "0.md").read_text()


def on_a_gpu(result: trials.Result, by: str, example: int) -> Verdict:
    return Verdict(
        Mutant("gpu/one", "for this test", (by,), (Edit(LINEAR, "", ""),), "cuda"), result, by, example, 1.0, ""
    )


def test_the_page_has_what_a_gpu_found_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Environment(device="NVIDIA H200", versions={"torch": "2.11"})
    monkeypatch.setattr("perfgate.gpu.environment", lambda: environment)
    here = Verdict(int8("a/two", Edit(LINEAR, "", "")), "caught", "half-a-scale", 7, 1.0, "")
    kept.write([on_a_gpu("caught", "parity", 3), on_a_gpu("survived", "parity", 9), here], tmp_path / "kept.json")
    of_gpu = kept.read(tmp_path / "kept.json")
    assert (of_gpu.device, of_gpu.versions) == ("NVIDIA H200", {"torch": "2.11"})
    assert of_gpu.found == {"gpu/one": ("parity", 3)}
    text = page.page([here, on_a_gpu("skipped", "needs a GPU", 0)], of_gpu)
    assert "2 of 2 were found, each within 7 examples" in text
    assert "| gpu/one | for this test | parity (NVIDIA H200) | 3 |" in text
    text = page.page([here, on_a_gpu("skipped", "needs a GPU", 0)], kept.Kept("", {}, {}, {}))
    assert "1 of 2 were found" in text
    assert "| gpu/one | for this test | needs a GPU |  |" in text


def test_those_of_a_gpu_alone_need_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)
    for words, said in (
        (["--gpu"], "needs a CUDA device"),
        (["--gpu", "splitkv"], "leave the names out"),
        (["--gpu", "--page", "x"], "--page alone"),
    ):
        with pytest.raises(SystemExit):
            command.main(words)
        assert said in capsys.readouterr().err


def test_a_number_of_processes_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["--processes", "0"])
    assert "--processes must be at least 1, got 0" in capsys.readouterr().err


def test_those_of_a_gpu_alone_are_tried_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Mutant] = []
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "verdicts", lambda mutants, processes: tried.extend(mutants) or iter(()))
    monkeypatch.setattr(kept, "write", lambda verdicts: None)
    assert command.main(["--gpu"]) == 0
    assert {mutant for mutant in tried if mutant.edits} == {mutant for mutant in TABLE if mutant.device == "cuda"}
    assert {mutant for mutant in tried if not mutant.edits} == {c for c in CONTROLS if c.device == "cuda"}


def test_what_a_gpu_found_is_kept_of_every_mutant_that_needs_one() -> None:
    # renew it on a GPU: nox -s mutants -- --gpu
    found = kept.read()
    assert found.planted == {mutant.name: kept.digest(mutant) for mutant in TABLE if mutant.device == "cuda"}
    assert found.planted.keys() == found.found.keys()


def test_the_committed_page_has_every_mutant_and_no_survivor() -> None:
    text = PAGE.read_text()
    rows = dict(re.findall(r"^\| (\S+/\S+) \| [^|]* \| ([^|]*) \|", text, flags=re.MULTILINE))
    assert list(rows) == [mutant.name for mutant in TABLE]
    assert all(law and law != "needs a GPU" for law in rows.values())
    assert text.startswith(page.HEAD)
