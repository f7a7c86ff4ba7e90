"""What variants ask of torch.compile: as many kinds of input as there are, and graphs that can be walked again."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.config
import torch._functorch.config

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


@pytest.mark.parametrize(
    ("wanted", "enabled", "donated"), [(True, True, False), (True, False, True), (False, True, True)]
)
def test_buffers_are_kept_where_there_will_be_a_backward(
    wanted: bool, enabled: bool, donated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._functorch.config, "donated_buffer", True)
    inputs = torch.ones(1), None, torch.ones(1, requires_grad=wanted)
    with torch.set_grad_enabled(enabled), torch_compiler.kept_for_backward(*inputs):
        assert torch._functorch.config.donated_buffer is donated
    assert torch._functorch.config.donated_buffer is True
