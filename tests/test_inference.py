"""docs/inference.md: every number on it is one that was measured, of synthetic runs whose numbers are known."""

from __future__ import annotations

import errno
import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from attnkit.llama import LADDER
from perf import inference, inference_page
from perf.inference import Collected, Origin, collect
from perf.inference_page import before, render
from perf.tune_matvec import SHAPES
from perfgate.case import Work
from perfgate.journal import Journal
from perfgate.record import Record
from tests.perfgate.reported import CEILINGS, H200, record

ORIGIN = Origin(environment=H200, commit="0123456789abcdef", date="2026-01-02")
LATENCY = {"origin": ORIGIN.to_json(), "attention": "sdpa_cudnn"}
"""What a latency run says beside its record."""
RUNGS = [rung.name for rung in LADDER]
READ = CEILINGS["read_bytes_per_second"]


def llama(name: str, tokens_per_second: float, int8: bool = False, size: str = "llama-2-7b-b1-c256") -> Record:
    """16 tokens; 4.5 GB each in 16 bits, which the ceiling allows 1000 of a second."""
    work = Work(flops=1e10, bytes=16 * 4.5e9 / (2 if int8 else 1), tokens=16, dtype="bf16")
    return record(f"llama/{name}/{size}", 16 / tokens_per_second, group=f"llama/{size}", work=work)


def product(name: str, shape: str, share: float, int8: bool = False, m: int = 1) -> Record:
    n, k = SHAPES[shape]
    problem = f"m{m}-n{n}-k{k}-bf16" + ("-int8" if int8 else "")
    work = Work(flops=2.0 * m * n * k, bytes=n * k * (1.0 if int8 else 2.0), dtype="bf16")
    return record(f"linear/{name}/{problem}", work.bytes / READ / share, group=f"linear/{problem}", work=work)


def decode(name: str, share: float) -> Record:
    work = Work(flops=1e7, bytes=9e6, dtype="bf16")
    problem = "b1-hq32-hkv4-sq1-skv4096-d128-bf16-causal"
    return record(f"decode/{name}/{problem}", 2e-6 / share, group=f"decode/{problem}", work=work)


def a_run(*records: Record, **changed: Any) -> dict[str, Any]:
    kept = {"ceilings": CEILINGS, "out_of_memory": {}, "absent": {}, "notes": []} | changed
    return {"origin": ORIGIN.to_json(), "records": [r.to_json() for r in records], **kept}


def collected(*records: Record, latencies: tuple[Any, ...] = (), **changed: Any) -> Collected:
    return Collected.from_json({"runs": [a_run(*records, **changed)], "latencies": latencies})


def cells(page: str, first: str) -> list[str]:
    """The cells of the one row that begins so."""
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_rung_has_its_rate_its_share_and_what_it_adds_to_the_one_before() -> None:
    page = render(
        collected(
            llama("matmul", 50), llama("fused", 300), llama("graph", 600), llama("graph_int8", 900, True),
            llama("overlap", 660), llama("compiled", 330), llama("transformers", 220),
        )
    )  # fmt: skip
    assert cells(page, "`matmul`")[2:] == ["50.0", "–", "225", "5.0", "–", "1.00×"]
    assert cells(page, "`fused`")[2:] == ["300.0", "–", "1350", "30.0", "–", "6.00×"], "the rung before was not timed"
    assert cells(page, "`graph`")[2:] == ["600.0", "–", "2700", "60.0", "2.00×", "12.0×"]
    assert cells(page, "`graph_int8`")[2:] == ["900.0", "–", "2025", "45.0", "1.50×", "18.0×"]
    assert cells(page, "`overlap`")[2:] == ["660.0", "–", "2970", "66.0", "1.10×", "13.2×"], (
        "the one before has 16 bits"
    )
    assert cells(page, "`compiled`")[1] == "a peer"
    assert "the fastest peer, `compiled`: in 16 bits `overlap` is 2.00× as fast, in int8 `graph_int8` is 2.73×" in page
    rungs = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert rungs == ["matmul", "fused", "graph", "graph_int8", "overlap", "compiled", "transformers"]


def test_a_rung_that_waits_for_the_host_has_the_rate_of_its_kernels_beside_its_own() -> None:
    size = "llama-2-7b-b1-c256"
    alone = record(
        f"llama-kernels/matmul/{size}",
        1 / 150,
        group=f"llama-kernels/{size}",
        work=Work(flops=1e9, bytes=1e9, tokens=1),
    )
    page = render(collected(llama("matmul", 50), llama("fused", 300), alone))
    assert cells(page, "`matmul`")[2:4] == ["50.0", "150.0"]
    assert cells(page, "`fused`")[2:4] == ["300.0", "–"]
    assert page.count("## The Llama ladder") == 1


def test_a_peer_in_int8_is_named_beside_the_fastest() -> None:
    rows = llama("compiled", 330), llama("compiled_int8", 300, True), llama("persistent_int8", 900, True)
    page = render(collected(*rows, llama("matmul", 50)))
    assert "in 16 bits `matmul` is 0.152× as fast" in page
    assert "in int8 `persistent_int8` is 2.73× as fast (3.00× as `compiled_int8`)." in page


def test_a_peer_in_16_bits_is_named_where_the_fastest_has_int8() -> None:
    rows = llama("compiled", 300), llama("compiled_int8", 450, True), llama("persistent_int8", 900, True)
    rows += (llama("batched", 990),)  # ours, and no rung
    page = render(collected(*rows, llama("matmul", 60)))
    assert "`compiled_int8`: in 16 bits `matmul` is 0.133× as fast (0.200× as `compiled`), in int8 " in page
    assert "in int8 `persistent_int8` is 2.00× as fast." in page


def test_a_peer_is_missing_that_no_size_has() -> None:
    page = render(
        collected(llama("matmul", 50), llama("compiled", 330), llama("matmul", 50, size="llama-2-7b-b1-c512"))
    )
    assert page.count("Peers that were not there:") == 1
    missing = "`compiled_int8`, `transformers`, `bitsandbytes_int8`, `torchao_int8`, `vllm`"
    assert f"Peers that were not there: {missing}." in page


def test_every_rung_knows_what_it_is_held_against() -> None:
    assert before(RUNGS[0]) is None
    assert before("graph_int8") == "graph"
    assert before("overlap") == "graph"
    assert before("persistent") == "overlap"
    assert {before(name) for name in RUNGS[1:]} <= set(RUNGS)


def test_products_have_shares_of_the_read_bandwidth_their_worst_and_their_mean() -> None:
    page = render(
        collected(
            product("cuda_matvec", "o", 0.4), product("cuda_matvec", "qkv", 0.9), product("torch", "o", 0.2),
            product("cuda_matvec", "o", 0.4, int8=True), product("cuda_matvec", "qkv", 0.6, int8=True),
            product("bnb", "qkv", 0.06, int8=True), product("torch", "o", 0.5, m=2048),
        )
    )  # fmt: skip
    half, int8 = page.split("**int8 weights")
    assert cells(half, "qkv")[1:] == ["90.0 (24.86)", "–"]
    assert cells(half, "o")[1:] == ["40.0 (18.64)", "20.0 (37.28)"]
    assert cells(half, "*worst*")[1:] == ["40.0", "–"], "torch lacks a shape"
    assert cells(half, "*geometric mean*")[1:] == ["60.0", "–"]
    assert cells(int8, "*worst*")[1:] == ["40.0", "–"]
    assert "2048" not in page, "a prompt is not bound by bytes"
    # 2 x (0.4/0.4) and 2 x (0.6/0.9), and ten times as fast at the one shape of both
    assert "- 1 row of x: 1.63× as fast as `cuda_matvec` in 16 bits" in int8
    assert "- 1 row of x: 10.0× as fast as `bnb`; the read bandwidth allows 16.7×" in int8, "as 0.6 of it are read"


def test_decoding_has_the_ideal_time_and_is_held_against_the_fastest_library() -> None:
    page = render(
        collected(
            decode("triton_splitkv", 0.4), decode("sdpa_cudnn", 0.32), decode("sdpa_flash", 0.1), decode("naive", 0.5)
        )
    )
    found = cells(page, "`b1-hq32-hkv4-sq1-skv4096-d128-bf16-causal`")
    assert found[1:3] == ["2.00", "5.00, 1800 (40.0 %)"]
    assert found[-1] == "1.25×"


def test_latencies_have_reductions_against_standard() -> None:
    row = {
        "shape": "b1-s128", "rung": "int8", "kind": "isolated", "requests": 500, "requests_per_second": 1.0,
        "median": 5e-5, "p95": 6e-5, "p99": 1e-4, "reduction": {"median": 0.5, "p95": 0.7, "p99": -0.1},
    }  # fmt: skip
    page = render(collected(llama("matmul", 50), latencies=({**LATENCY, "record": [row]},)))
    assert cells(page, "`b1-s128`")[1:] == ["int8", "50.0 (-50.0 %)", "60.0 (-70.0 %)", "100.0 (+10.0 %)", "500"]
    assert "at a rate" not in page, "nothing was asked under load"
    assert "Attention above *standard* is `sdpa_cudnn`." in page


def test_where_it_was_measured_is_said_in_each_section() -> None:
    page = render(collected(llama("matmul", 50), decode("naive", 0.5), notes=["the run was not whole: 2 of 3"]))
    origin = "Measured on **NVIDIA H200** (cuda 13.0, torch 2.11.0, triton 3.6.0), 2026-01-02, commit `0123456`."
    assert page.count(origin) == 3
    assert page.count("- ceilings measured in the same run: copy 4.00 TB/s, read 4.50 TB/s") == 2
    assert page.count("- the run was not whole: 2 of 3") == 2


def document(*records: Record, complete: bool = True) -> dict[str, Any]:
    return {
        "machine_info": {"perfgate": H200.to_json()},
        "commit_info": {"id": ORIGIN.commit},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [{"fullname": r.case.name, "extra_info": {"perfgate": r.to_json()}} for r in records],
        "perfgate": {
            "schema": 1, "complete": complete, "measured": len(records), "collected": 9, "ceilings": CEILINGS,
            "out_of_memory": {"block/naive/separate-b4-s16384": "64 GiB", "forward/x/y": "1 GiB"}, "absent": {},
        },
    }  # fmt: skip


def test_files_become_the_page_and_the_page_comes_again_from_what_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    forward = record("forward/naive/b4-s128", 1e-3)
    (tmp_path / "run.json").write_text(json.dumps(document(llama("matmul", 50), forward)))
    latency = {**LATENCY, "record": []}
    (tmp_path / "latency.json").write_text(json.dumps(latency))
    docs = tmp_path / "docs"
    docs.mkdir()
    files = [str(tmp_path / "run.json"), str(tmp_path / "latency.json")]
    assert inference.main([*files, "--docs", str(docs)]) == 0
    made = {path.name: path.read_text() for path in docs.iterdir()}
    assert sorted(made) == ["inference-llama.svg", "inference-roofline.svg", "inference.json", "inference.md"]
    assert "forward" not in made["inference.json"]
    assert set(re.findall(r"\((inference-\S+)\)", made["inference.md"])) == set(made) - {
        "inference.json",
        "inference.md",
    }
    for name in made:
        if name != "inference.json":
            (docs / name).unlink()
    assert inference.main(["--docs", str(docs)]) == 0
    assert {path.name: path.read_text() for path in docs.iterdir()} == made
    # the same file twice
    assert inference.main([files[0], files[0], "--docs", str(docs)]) == 2
    assert "expected every case in one run" in capsys.readouterr().err


def test_without_matplotlib_there_is_the_page_and_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (tmp_path / "run.json").write_text(json.dumps(document(llama("matmul", 50))))
    docs = tmp_path / "docs"
    docs.mkdir()
    assert inference.main([str(tmp_path / "run.json"), "--docs", str(docs)]) == 3
    assert sorted(path.name for path in docs.iterdir()) == ["inference.json", "inference.md"]
    assert "and the page are written, not the pictures: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        '{"record": 5, "origin": 3}',
        json.dumps({**LATENCY, "record": [{"kind": "isolated"}]}),
        json.dumps(document(llama("matmul", 50)) | {"commit_info": "0123456"}),
        "{}",
        "[]",
        "{",
    ],
    ids=["numbers", "half-a-row", "no-commit-info", "nothing", "a-list", "no-json"],
)
@pytest.mark.parametrize("given", [True, False])
def test_a_malformed_file_is_said_in_a_line_and_what_is_there_stays(
    given: bool, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / ("latency.json" if given else "inference.json")
    there = {"inference.json": "of before", "inference.md": "of before", file.name: text}
    for name, content in there.items():
        (tmp_path / name).write_text(content)
    assert inference.main([*[str(file)] * given, "--docs", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == there


def test_a_page_that_cannot_be_written_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "inference.json").write_text("of before")
    (tmp_path / "latency.json").write_text(json.dumps({**LATENCY, "record": []}))
    real = Path.write_text

    def full(path: Path, *text: str, **options: str) -> int:
        if path.name == "inference.md":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    assert inference.main([str(tmp_path / "latency.json"), "--docs", str(docs)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in docs.iterdir()} == {"inference.json": "of before"}


def test_a_run_that_was_not_whole_is_shown_and_said(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(document(llama("matmul", 50), complete=False)))
    found = collect([tmp_path / "run.json"])
    others = "1 of 9 cases were timed; what else is not here failed or could not run"
    assert found.runs[0].results.notes == (f"the run was cut off: {others}",)
    broken = document(llama("matmul", 50), complete=False)
    broken["perfgate"]["exitstatus"] = 1
    (tmp_path / "run.json").write_text(json.dumps(broken))
    assert collect([tmp_path / "run.json"]).runs[0].results.notes == (f"some of its tests failed: {others}",)
    assert list(found.runs[0].results.out_of_memory) == ["block/naive/separate-b4-s16384"]


def test_a_journal_is_shown_and_says_of_which_code_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    cut_off = Journal.open(path, H200)
    cut_off.add(llama("matmul", 50), "test_llama[matmul]")
    cut_off.add_ceilings(CEILINGS)
    cut_off.add_out_of_memory("decode/naive/b1", "64 GiB")
    cut_off.abandon()
    (run,) = collect([path], "0123456789").runs
    assert [row.case.name for row in run.results.rows] == ["llama/matmul/llama-2-7b-b1-c256"]
    assert run.origin.commit == "0123456789"
    assert run.origin.date == datetime.now(UTC).date().isoformat()
    assert run.results.ceilings == CEILINGS
    assert list(run.results.out_of_memory) == ["decode/naive/b1"]
    assert run.results.notes == ("the run was not whole: what its journal has is shown",)
    whole = Journal.open(tmp_path / "whole.jsonl", H200)
    whole.add(llama("matmul", 50), "test_llama[matmul]")
    whole.close(exitstatus=0, complete=True)
    assert collect([whole.path]).runs[0].results.notes == ()
    assert inference.main([str(tmp_path / "none.jsonl"), "--docs", str(tmp_path)]) == 2


def test_what_has_nothing_of_the_page_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(document(record("forward/naive/b4-s128", 1e-3))))
    with pytest.raises(ValueError, match="has no case of llama, llama-kernels, linear, decode, block"):
        collect([tmp_path / "run.json"])


def test_every_bar_has_its_rate_and_its_limit() -> None:
    pytest.importorskip("matplotlib")
    from perf import inference_plot

    given = collected(llama("matmul", 50), llama("persistent_int8", 900, True), llama("compiled", 330))
    axes = inference_plot.ladder(given).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([50, 900, 330])
    assert [line.get_xdata()[0] for line in axes.lines] == pytest.approx([1000, 2000, 1000])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["matmul", "persistent_int8", "compiled"]


def test_rungs_and_peers_of_one_size_from_two_runs_stand_in_one_panel() -> None:
    pytest.importorskip("matplotlib")
    from perf import inference_plot

    runs = [a_run(llama("matmul", 50)), a_run(llama("compiled", 330))]
    (axes,) = inference_plot.ladder(Collected.from_json({"runs": runs, "latencies": []})).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["matmul", "compiled"]


@pytest.mark.skipif(not (inference.DOCS / "inference.json").exists(), reason="nothing was measured yet")
def test_the_committed_page_is_that_of_the_committed_data() -> None:
    kept = Collected.from_json(json.loads((inference.DOCS / "inference.json").read_text()))
    assert (inference.DOCS / "inference.md").read_text() == inference_page.render(kept)
