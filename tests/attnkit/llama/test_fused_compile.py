"""The fused kernels compile for a Hopper at the sizes of real models: they fit, do not spill, and copy in bulk."""

from __future__ import annotations

import dataclasses
import re

import pytest

from attnkit import nvrtc
from attnkit.llama import LLAMA_2_7B, LLAMA_3_8B, Config
from attnkit.llama.fused import FORMS, SOURCES, Launch
from attnkit.llama.sizes import MAX_SHARED, Form, Sizes
from tests.attnkit.llama import on_host

REGISTERS = 65536
"""Of a processor."""
MODELS = {"llama-2-7b": LLAMA_2_7B, "llama-3-8b": LLAMA_3_8B}
FUNCTION = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<stores>\d+) bytes spill stores"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@pytest.mark.needs_nvrtc
@pytest.mark.parametrize(
    ("model", "launch", "int8", "batch", "fixed"),
    [
        ("llama-2-7b", "persistent", False, 1, False),
        ("llama-2-7b", "persistent", True, 4, False),
        ("llama-2-7b", "persistent", True, 4, True),
        ("llama-3-8b", "persistent", True, 1, False),
        ("llama-3-8b", "persistent", True, 1, True),
        ("llama-2-7b", "overlapped", False, 1, False),
        ("llama-2-7b", "overlapped", True, 1, True),
        ("llama-3-8b", "stages", True, 1, False),
    ],
)
def test_real_models_compile(model: str, launch: Launch, int8: bool, batch: int, fixed: bool) -> None:
    form = dataclasses.replace(FORMS[launch], fixed=fixed)
    sizes = Sizes(MODELS[model], int8, batch, 4096, 132, form)
    source, kernels = SOURCES[launch]
    cubin = nvrtc.cubin(source.read_text(), "sm_90a", (*sizes.options, "--ptxas-options=-v"))
    found = {match["name"]: match for match in FUNCTION.finditer(cubin.log)}
    assert found.keys() == set(kernels), cubin.log
    for name, match in found.items():
        assert int(match["stores"]) == 0, f"{name} spills {match['stores']} bytes"
        assert int(match["registers"]) * sizes.threads <= 65536 // (
            2 if launch == "overlapped" and "attend" not in name else 1
        )
    assert sizes.shared <= (MAX_SHARED // 2 if launch == "overlapped" else MAX_SHARED)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("d", [16, 64, 256])
def test_shared_memory_is_counted_as_the_kernels_do(d: int, int8: bool, batch: int) -> None:
    config = Config(hidden=256, intermediate=1040, layers=1, hq=2, d=d, vocab=10)
    sizes = Sizes(config, int8, batch, 8, 2, Form(warps=2, chunk=512, depth=2))
    source, kernels = SOURCES["persistent"]
    library = on_host.library(source.name, kernels, sizes.options)
    assert library.shared_bytes() == sizes.shared
