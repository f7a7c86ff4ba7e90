"""Records survive their way through JSON, and broken ones are told from whole ones."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfgate.case import Case, Work
from perfgate.clock import FakeClock, Method, Samples
from perfgate.kernels import Kernel, Kernels
from perfgate.record import TICK, Record, pack, unpack
from tests.perfgate.simulate import record, samples

METHOD = Method(clock="cuda-events", l2="cold", launch="graph", version=3)
WHOLE = Record(
    case=Case(
        name="fwd/flash", group="fwd", reference=True, work=Work(flops=1e12, bytes=2e9, tokens=4096, dtype="bf16")
    ),
    processes=(
        Samples(seconds=(1e-3, 1.5e-3), method=METHOD, counters={"peak_bytes": 1e9}, notes=("time bound",)),
        Samples(seconds=(2e-3,), method=METHOD),
    ),
)

durations = st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=50).map(tuple)


@given(durations)
def test_packing_keeps_order_and_durations_to_a_tenth_of_a_nanosecond(seconds: tuple[float, ...]) -> None:
    assert unpack(pack(seconds)) == pytest.approx(seconds, abs=0.51 * TICK, rel=1e-15)


def test_packed_durations_take_little_room() -> None:
    seconds = FakeClock(100e-6, noise=0.003, n=200).measure(lambda: None).seconds
    assert len(pack(seconds)) < 4 * len(seconds)


def test_a_record_survives_json() -> None:
    assert Record.from_json(json.loads(json.dumps(WHOLE.to_json(), allow_nan=False))) == WHOLE
    plain = record("plain", [1e-3])
    assert Record.from_json(plain.to_json()) == plain


def test_kernels_survive_json_and_are_written_once() -> None:
    a, b = (Kernels.of([Kernel(name="k", grid=(1, 1, 1), code=code)]) for code in ("a", "b"))
    processes = [Samples(seconds=(1e-3,), method=METHOD, kernels=kernels) for kernels in (a, b, a, None)]
    data = json.loads(json.dumps(Record(case=Case(name="x"), processes=tuple(processes)).to_json()))
    assert len(data["kernels"]) == 2
    assert [samples.kernels for samples in Record.from_json(data).processes] == [a, b, a, None]
    data["processes"][0]["kernels"] = 2
    with pytest.raises(ValueError, match="not a record"):
        Record.from_json(data)


def test_what_json_cannot_say_is_left_out() -> None:
    odd = Record(case=Case(name="odd"), processes=(samples(1e-3, half_width=0.0, celsius=40.0, watts=math.inf),))
    back = Record.from_json(json.loads(json.dumps(odd.to_json(), allow_nan=False)))
    assert back.processes[0].counters == {"celsius": 40.0}


def test_a_record_needs_a_process() -> None:
    with pytest.raises(ValueError, match="x: a record needs the samples of at least one process"):
        Record(case=Case(name="x"), processes=())


def test_a_record_has_one_method() -> None:
    with pytest.raises(ValueError, match=r"x: processes were timed by different methods: .*cuda-events.*host"):
        Record(
            case=Case(name="x"), processes=(samples(1e-3, method=METHOD), samples(1e-3, method=Method(clock="host")))
        )


def damaged(path: str, value: Any) -> dict[str, Any]:
    data = json.loads(json.dumps(WHOLE.to_json()))
    *way, last = path.split(".")
    place = data
    for step in way:
        place = place[int(step) if isinstance(place, list) else step]
    place[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 2),
        ("schema", None),
        ("case", None),
        ("case", []),
        ("case.name", 7),
        ("case.name", ""),
        ("case.colour", "red"),
        ("case.work", 5),
        ("case.work.flops", "many"),
        ("case.work.flops", -1.0),
        ("method", {}),
        ("method.clock", ["host"]),
        ("processes", None),
        ("processes", []),
        ("processes", ["x"]),
        ("processes.0.samples", None),
        ("processes.0.samples", ""),
        ("processes.0.samples", "not packed"),
        ("processes.0.samples", pack((1e-3,))[:-3]),
        ("processes.0.counters", "abc"),
        ("processes.0.counters", {"watts": "warm"}),
        ("processes.0.notes", None),
    ],
)
def test_a_damaged_record_is_a_value_error(path: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Record.from_json(damaged(path, value))


def test_another_schema_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="expected a record of schema 1, got 99: measure it anew"):
        Record.from_json(damaged("schema", 99))
