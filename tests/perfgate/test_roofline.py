"""A case's place under the roof: worked out by hand, kept with the case, and drawn."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from perfgate import baseline, roofline
from perfgate.case import Work
from perfgate.gate import Exit
from perfgate.report import FORMATS
from perfgate.roofline import Roofline
from tests.perfgate.conftest import Suite
from tests.perfgate.reported import CEILINGS, record, results, sweep


def test_memory_bounds_what_computes_little_a_byte_and_the_matrix_rate_what_computes_much() -> None:
    little = Roofline.of(Work(flops=2e6, bytes=1e6, dtype="bf16"), 1e-6, CEILINGS)
    assert little is not None
    assert (little.flops_per_byte, little.flops_per_second, little.bytes_per_second) == (2.0, 2e12, 1e12)
    assert (little.bandwidth_ceiling, little.matrix_ceiling) == (4.5e12, 8e14)
    assert little.share == pytest.approx(1e12 / 4.5e12)
    much = Roofline.of(Work(flops=4e9, bytes=1e6, dtype="bf16"), 1e-5, CEILINGS)
    assert much is not None
    assert much.share == pytest.approx(0.5)


def test_what_is_not_known_is_not_made_up() -> None:
    copy_alone = Roofline.of(Work(bytes=9e6), 4e-6, CEILINGS)
    assert copy_alone is not None
    assert (copy_alone.flops_per_byte, copy_alone.matrix_ceiling, copy_alone.share) == (None, None, 0.5)
    other = Roofline.of(Work(flops=9e6, bytes=9e6, dtype="fp8"), 4e-6, CEILINGS)
    assert other is not None
    assert other.share == 0.5, "no ceiling of its dtype: the bandwidth's alone"
    assert Roofline.of(None, 1e-6, CEILINGS) is None
    assert Roofline.of(Work(flops=1.0), 1e-6, CEILINGS) is None
    assert Roofline.of(Work(bytes=1.0), 1e-6, {"flops_per_second.bf16": 1e14}) is None


def test_the_place_is_of_the_median_over_all_processes() -> None:
    one = record("a/b/c", (1e-6, 3e-6), (3e-6,), work=Work(bytes=4.5e6))
    assert roofline.saved(one, CEILINGS)["roofline"]["share"] == pytest.approx(1 / 3)
    assert "roofline" not in roofline.saved(one, None)


def test_a_saved_run_has_it_with_each_case_and_so_has_what_is_merged(suite: Suite) -> None:
    for i in (1, 2):
        assert suite.run(f"--benchmark-json={i}.json", PROCESS=f"{0.001 * i}").ret == Exit.OK
    documents = [suite.document(f"{i}.json") for i in (1, 2)]
    for benchmark in documents[0]["benchmarks"]:
        kept = benchmark["extra_info"]["roofline"]
        assert (kept["flops_per_byte"], kept["bandwidth_ceiling"]) == (None, 4e12)
        assert kept["share"] == pytest.approx(1e9 / 4e12 / 1e-3, rel=0.01)
    documents[1]["perfgate"]["ceilings"]["copy_bytes_per_second"] = 12e12
    for benchmark in baseline.merge(documents)["benchmarks"]:
        assert benchmark["extra_info"]["roofline"]["bandwidth_ceiling"] == 8e12


def test_the_picture_has_every_alternative_and_says_what_it_lacks() -> None:
    pytest.importorskip("matplotlib")
    from perfgate.report import roof

    records, _ = sweep({"naive": 4e13, "flash": 4e14}, [512, 1024])
    given = results(records, ceilings=CEILINGS)
    text = FORMATS["roofline"](given, None)
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert FORMATS["roofline"](given, None) == text
    picture = roof.figure(given)
    assert [entry.get_text() for entry in picture.legends[0].get_texts()] == ["forward/flash", "forward/naive"]
    points = {tuple(xy) for line in picture.axes[0].lines[2:] for xy in line.get_xydata().tolist()}
    assert points == {(100.0 * n, rate) for n in (512, 1024) for rate in (4e13, 4e14)}
    slope = picture.axes[0].lines[0].get_xydata()
    assert slope[:, 1] / slope[:, 0] == pytest.approx(4.5e12)
    for bare in (results(records), results([record("a/b/c", 1e-6)], ceilings=CEILINGS)):
        with pytest.raises(ValueError, match="a roofline needs cases that state operations and bytes, and ceilings"):
            roof.figure(bare)


def test_all_points_and_the_roof_are_in_the_picture_without_a_matrix_rate_too() -> None:
    pytest.importorskip("matplotlib")
    from perfgate.report import roof

    records, _ = sweep({"flash": 4e14}, [512, 4096])
    axes = roof.figure(results(records, ceilings={"read_bytes_per_second": 4.5e12})).axes[0]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for line in axes.lines:
        for x, y in line.get_xydata().tolist():
            assert left <= x <= right
            assert bottom <= y <= top
