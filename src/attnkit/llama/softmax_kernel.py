"""The softmax of a matrix's rows, scaled, in one Triton kernel that reads and writes each element once.

In torch's operations scaling and softmax are two kernels, each of which reads and writes all scores. Rows must fit a
program's registers: up to 32k elements.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from attnkit.triton_device import current

LOG2E = 1.4426950408889634
LONGEST = 32768


@triton.jit
def softmax_kernel(p_x, p_out, n, scale_log2, BLOCK: tl.constexpr):
    """A program a row."""
    i_row = tl.program_id(0).to(tl.int64)
    o_n = tl.arange(0, BLOCK)
    b_x = tl.load(p_x + i_row * n + o_n, mask=o_n < n, other=float("-inf")).to(tl.float32) * scale_log2
    # behind the end -inf times a negative scale would be the largest
    b_x = tl.where(o_n < n, b_x, float("-inf"))
    b_x = tl.exp2(b_x - tl.max(b_x, 0))
    b_x = b_x / tl.sum(b_x, 0)
    tl.store(p_out + i_row * n + o_n, b_x.to(p_out.dtype.element_ty), mask=o_n < n)


def softmax(x: torch.Tensor, scale: float) -> torch.Tensor:
    """Softmax of ``scale · x`` over the last dim of a contiguous x ``[..., n]``, in the dtype of x.

    Raises:
        ValueError: If x is not contiguous, or its rows are longer than 32768.
    """
    n = x.shape[-1]
    if not x.is_contiguous() or n > LONGEST:
        raise ValueError(f"x must be contiguous with rows of at most {LONGEST}, got rows of {n}")
    out = torch.empty_like(x)
    block = max(16, triton.next_power_of_2(n))
    with current(x.device, x.dtype):
        softmax_kernel[(x.numel() // n,)](x, out, n, scale * LOG2E, BLOCK=block, num_warps=warps(block))
    return out


def warps(block: int) -> int:
    """Of the program that has a row of so many elements."""
    return 4 if block <= 2048 else 8
