"""Nothing may be compiled, tuned or newly allocated on the device inside a timed window.

`Guard` watches for it and raises with the culprit's name. It looks at Triton and torch only if the call has loaded
them.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from perfgate.clock import MeasureError

__all__ = ["Guard"]


class Guard:
    """Context manager around timed windows; raises `MeasureError` at its end if they were not clean.

    Args:
        what: Name of the timed call, for the message.
        torch: The torch module whose device allocator is watched.
    """

    def __init__(self, what: str, torch: Any) -> None:
        self._what, self._torch = what, torch
        self._culprits: list[str] = []

    def __enter__(self) -> Guard:
        self._culprits.clear()
        self._graphs = _dynamo_graphs()
        self._hook_triton()
        self._mallocs = _device_mallocs(self._torch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        mallocs = _device_mallocs(self._torch) - self._mallocs
        self._unhook_triton()
        if error is not None:
            return
        if mallocs:
            self._culprits.append(f"it took {mallocs} new block(s) of device memory from the driver")
        if _dynamo_graphs() > self._graphs:
            self._culprits.append(f"torch.compile compiled {_last_compiled()}")
        if self._culprits:
            raise MeasureError(
                f"inside a timed window of {self._what}: {'; '.join(dict.fromkeys(self._culprits))}. "
                "Do this once before the call is timed, for every input set"
            )

    def _hook_triton(self) -> None:
        triton = sys.modules.get("triton")
        self._runtime = getattr(getattr(triton, "knobs", None), "runtime", None)
        if self._runtime is not None:
            self._outer = self._runtime.jit_post_compile_hook

            def compiled(*args: Any, **kwargs: Any) -> Any:
                self._culprits.append(f"triton compiled {getattr(kwargs.get('fn'), 'name', 'a kernel')}")
                return self._outer(*args, **kwargs) if self._outer is not None else None

            self._runtime.jit_post_compile_hook = compiled
        tuner = getattr(sys.modules.get("triton.runtime.autotuner"), "Autotuner", None)
        self._tuner, self._bench = tuner, getattr(tuner, "_bench", None)
        if tuner is not None and self._bench is not None:
            bench = self._bench

            def tuned(autotuner: Any, *args: Any, **kwargs: Any) -> Any:
                self._culprits.append(f"triton tuned {getattr(autotuner.fn, '__name__', 'a kernel')}")
                return bench(autotuner, *args, **kwargs)

            tuner._bench = tuned

    def _unhook_triton(self) -> None:
        if self._runtime is not None:
            self._runtime.jit_post_compile_hook = self._outer
        if self._tuner is not None and self._bench is not None:
            self._tuner._bench = self._bench


def _device_mallocs(torch: Any) -> int:
    stats = torch.cuda.memory_stats()
    return int(stats.get("segment.all.allocated", 0))


def _dynamo_graphs() -> int:
    utils = sys.modules.get("torch._dynamo.utils")
    return int(utils.counters["stats"]["unique_graphs"]) if utils is not None else 0


def _last_compiled() -> str:
    utils = sys.modules["torch._dynamo.utils"]
    metrics = utils.get_compilation_metrics()
    return str(metrics[-1].co_name) if metrics else "a function"
