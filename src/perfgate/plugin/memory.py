"""Memory that ran out: what says so, the reason in a line, and how a session gives back what it keeps for later."""

from __future__ import annotations

import gc
import sys

__all__ = ["first_line", "in_use", "let_go", "out_of_memory"]


def out_of_memory() -> tuple[type[BaseException], ...]:
    """What says that there is no memory: the host's error, and the device's where its clock is in use."""
    return (MemoryError, *getattr(sys.modules.get("perfgate.gpu"), "OUT_OF_MEMORY", ()))


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def let_go(kept: int = -1) -> int:
    """Give other processes the memory that this one keeps for later; on the device too, if its clock is in use.

    Args:
        kept: Bytes that the device's tensors may hold without a search for those that nobody can reach any more, which
            takes a fourth of a second: what this said before, if tensors that stay are all there should be.

    Returns:
        Bytes that they hold now.
    """
    gpu = sys.modules.get("perfgate.gpu")
    if gpu is None or gpu.held() > kept:
        gc.collect()  # errors leave cycles, which would hold memory for long
    if gpu is None:
        return 0
    gpu.let_go()
    return int(gpu.held())


def in_use() -> bool:
    """Whether this process has used a GPU, by torch, which is not imported for the question."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda is not None and bool(cuda.is_initialized())
