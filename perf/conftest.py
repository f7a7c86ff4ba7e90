"""What is timed here: which problems on which device, and what a CPU can do at best."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch._functorch.config

from attnkit import nvrtc
from attnkit.variants import variant
from perf.problems import SUITES, lineups
from perfgate import Clock
from perfgate.binaries import register
from perfgate.plugin import absent

LONG = {"test_llama.py": "llama"}
"""Suites of which a case takes many seconds on a GPU, and the word by which a path or -k asks for them."""

# Backward alone is timed by walking a graph again and again. torch would let a compiled backward write over what was
# saved for it, which it decides when it compiles and asks of its configuration in each backward: so before any of both.
torch._functorch.config.donated_buffer = False

# what attnkit compiles itself is known to perfgate by what it is, not taken for a library's
nvrtc.WATCHERS.append(register)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("perfgate").addoption(
        "--perf-suite",
        choices=SUITES,
        default="default",
        help="Which problems are timed. Default: a selection of a few minutes; full is all of them.",
    )


def kind(config: pytest.Config) -> str:
    """Return ``"cuda"`` or ``"cpu"``, as the option and the machine have it."""
    wanted = config.getoption("perf_device")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(wanted)


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return torch.device(kind(pytestconfig))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test every lineup of its module's pass, or of its own list, a case for each variant that is here."""
    if "lineup" not in metafunc.fixturenames:
        return
    cases = []
    listed = getattr(metafunc.module, "LINEUPS", lineups)
    for lineup in listed(metafunc.module.PASS, metafunc.config.getoption("perf_suite"), kind(metafunc.config)):
        for name in lineup.variants:
            if reason := variant(name).absent():
                absent(metafunc.config, name, reason)
            else:
                cases.append(pytest.param(lineup, name, id=f"{name}-{lineup.problem.name}"))
    metafunc.parametrize(("lineup", "variant_name"), cases)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long on a GPU and was not asked for."""
    if kind(config) == "cpu" or config.getoption("perf_suite") == "full":
        return
    names = [Path(arg.partition("::")[0]).name for arg in config.args]
    asked = " ".join([*names, config.getoption("keyword")])
    left = [item for item in items if item.path.name in LONG and LONG[item.path.name] not in asked]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


def pytest_itemcollected(item: pytest.Item) -> None:
    """What torch and Triton warn of while they compile is theirs: a number must not be lost for it."""
    item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.hookimpl(tryfirst=True)
def pytest_perf_ceilings(config: pytest.Config, clock: Clock) -> dict[str, float] | None:
    """What the CPU does at best, by the same clock: a copy, bytes read and written, and a float32 matrix product."""
    if kind(config) != "cpu":
        return None
    source, target = torch.ones(2**26), torch.empty(2**26)
    n = 1024
    a, b = torch.randn(n, n), torch.randn(n, n)
    return {
        "copy_bytes_per_second": 2 * source.nbytes / clock.measure(target.copy_, [(source,)]).median,
        "flops_per_second.fp32": 2 * n**3 / clock.measure(torch.mm, [(a, b)]).median,
    }
