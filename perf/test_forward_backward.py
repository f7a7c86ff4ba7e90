"""Forward and backward together, of every variant."""

from __future__ import annotations

import torch

from attnkit.problem import Pass
from perf.attention import time_attention
from perf.problems import Contest
from perfgate.plugin import GpuBenchmark

PASS: Pass = "fwd+bwd"


def test_both(gpu_benchmark: GpuBenchmark, contest: Contest, variant_name: str, device: torch.device) -> None:
    time_attention(gpu_benchmark, contest, variant_name, PASS, device)
