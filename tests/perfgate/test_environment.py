"""The key says what may be compared; what differs below it is said."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfgate.environment import Environment, host
from tests.perfgate.simulate import H200


def test_the_key_names_device_cuda_and_torch_without_patch_levels() -> None:
    assert H200.key == "NVIDIA-H200_cu130_torch2.11"
    patched = replace(H200, versions={"cuda": "13.0.2", "torch": "2.11.3", "driver": "590.0"})
    assert patched.key == H200.key
    assert Environment(device="CPU Xeon").key == "CPU-Xeon"


@pytest.mark.parametrize("versions", [{"cuda": "12.8", "torch": "2.11.0"}, {"cuda": "13.0", "torch": "2.12.0"}])
def test_another_cuda_or_torch_is_another_key(versions: dict[str, str]) -> None:
    assert replace(H200, versions=versions).key != H200.key


@given(st.text(min_size=1))
def test_a_key_is_one_directory_name(device: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]*", Environment(device=device).key)


def test_differences_below_the_key_are_said_in_both_directions() -> None:
    other = replace(H200, versions={**H200.versions, "driver": "570.2", "triton": "3.6.0"})
    assert H200.differences(other) == [
        "driver 580.1 here, 570.2 in the baseline",
        "triton absent here, 3.6.0 in the baseline",
    ]


def test_another_device_of_the_kind_is_said_where_both_are_known() -> None:
    one, two, unknown = (replace(H200, facts=facts) for facts in ({"uuid": "GPU-1"}, {"uuid": "GPU-2"}, {}))
    assert one.same_device(one)
    assert not one.same_device(two)
    assert not unknown.same_device(unknown)
    assert one.differences(two) == [
        "another NVIDIA H200 than the baseline's: of short calls only larger slowdowns are called"
    ]
    assert one.differences(one) == one.differences(unknown) == unknown.differences(one) == []


def test_a_device_is_the_same_as_one_of_several_that_shared_the_processes() -> None:
    one, both, third = (replace(H200, facts={"uuid": uuid}) for uuid in ("GPU-1", "GPU-2,GPU-1", "GPU-3"))
    assert one.same_device(both)
    assert not third.same_device(both)
    assert not both.same_device(one)
    assert one.differences(both) == []
    assert "another NVIDIA H200" in third.differences(both)[0]


def test_an_environment_survives_json() -> None:
    assert Environment.from_json(json.loads(json.dumps(H200.to_json()))) == H200


@pytest.mark.parametrize("data", [{}, {"device": 1}, {"device": "x", "versions": []}, {"device": "x", "facts": "y"}])
def test_what_is_no_environment_is_an_error(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected an environment"):
        Environment.from_json(data)


def test_the_host_is_named_by_its_processor() -> None:
    here = host({"torch": "2.13.0+cpu"})
    assert here.device.startswith("CPU ")
    assert len(here.device) > len("CPU ")
    assert here.key.endswith("_torch2.13")
    assert "python" in here.facts
