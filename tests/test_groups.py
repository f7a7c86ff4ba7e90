"""Tests that use a GPU run one after the other, however many processes there are."""

from __future__ import annotations

import os
import re
import sys

import pytest

pytest.importorskip("xdist")

CONFTEST = """
import torch

torch.cuda.is_available = lambda: True

from tests.conftest import pytest_collection_modifyitems
"""
SIX = """
import pytest

@pytest.mark.parametrize("i", range(6))
def test_x(i):
    pass
"""


def test_one_process_runs_all_tests_that_use_a_gpu(
    pytester: pytest.Pytester, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pytestconfig.rootpath), *sys.path]))
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_cuda=SIX, test_laws=SIX, test_stats=SIX)
    result = pytester.runpytest_subprocess("-n4", "--dist=loadgroup", "-v", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=18)
    ran = re.findall(r"^\[(gw\d)\].* PASSED (test_\w+)\.py", "\n".join(result.outlines), re.MULTILINE)
    assert len({process for process, module in ran if module != "test_stats"}) == 1
    assert len({process for process, module in ran if module == "test_stats"}) > 1
