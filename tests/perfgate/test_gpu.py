"""What is asked of a GPU beside its clock, on a device that is made up."""

from __future__ import annotations

import types

import pytest

pytest.importorskip("torch")

from perfgate import gpu


def test_who_gives_memory_back_waits_while_the_device_clears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, slept = [6 * int(gpu.CLEARING)], []
    cuda = types.SimpleNamespace(memory_reserved=lambda: kept[0], empty_cache=lambda: kept.append(kept.pop() // 3))
    monkeypatch.setattr(gpu, "torch", types.SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(gpu, "time", types.SimpleNamespace(sleep=slept.append))
    gpu.give_back()
    assert slept == [4.0]
