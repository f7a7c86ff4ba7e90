"""What variants ask of torch.compile: as many kinds of input as there are."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.config

from attnkit import torch_compiler

LIMITS = ("recompile_limit", "accumulated_recompile_limit")


@pytest.mark.parametrize(("before", "after"), [(8, 4096), (5000, 5000)])
def test_a_function_may_be_compiled_for_thousands_of_kinds_of_input(
    before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: seen.append(options) or function)
    for limit in LIMITS:
        monkeypatch.setattr(torch._dynamo.config, limit, before)
    assert torch_compiler.compiled(len) is torch_compiler.compiled(len, mode="best") is len
    given = {"dynamic": False, "fullgraph": True}
    assert seen == [{**given, "mode": None}, {**given, "mode": "best"}]
    assert [getattr(torch._dynamo.config, limit) for limit in LIMITS] == [after, after]
