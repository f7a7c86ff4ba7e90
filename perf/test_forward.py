"""The forward pass of every variant."""

from __future__ import annotations

import torch

from attnkit.problem import Pass
from perf.attention import time_attention
from perf.problems import Lineup
from perfgate.plugin import GpuBenchmark

PASS: Pass = "fwd"


def test_forward(gpu_benchmark: GpuBenchmark, lineup: Lineup, variant_name: str, device: torch.device) -> None:
    time_attention(gpu_benchmark, lineup, variant_name, PASS, device)
