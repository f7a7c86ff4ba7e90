"""What takes its time to import and is not attnkit: the process that trials are forked from has it already."""

import numpy as np  # noqa: F401
import pytest  # noqa: F401
import torch._dynamo
import torch.nn.attention.flex_attention  # noqa: F401
import triton.language  # noqa: F401

from tests.mutants import trial  # noqa: F401
