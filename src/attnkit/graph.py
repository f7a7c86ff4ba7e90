"""A callable with fixed shapes, captured once for each of them and replayed: one launch instead of hundreds.

    step = Graphed(model)          step(x) captures for x's shape, or copies x into place and replays

The first call with new shapes runs the callable a few times and captures it into a CUDA graph; later ones copy their
tensors to where the graph reads and replay it. Graphs share one memory pool, which is sound because they run one after
the other on one stream, and only so many are kept: the one unused for longest goes first.

What a replay repeats is what the device was told. So a result lies where the graph writes it, until the next call: the
same graph writes there again, and another may have its intermediates there. Numbers of Python are those of the capture;
and what the callable keeps to itself (weights, a cache of keys) it reads and writes in place, each time anew.

Warm-up runs on the current stream, not on one of its own: work on a second stream can make every later kernel of every
graph of the process start later (seen on an H200). Only where the current stream is CUDA's default one, which cannot be
captured, does torch take another for the capture itself, and nothing runs there.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

__all__ = ["Backend", "CaptureError", "Captured", "CudaBackend", "Graphed"]

WARM_UP = 2


class CaptureError(RuntimeError):
    """A call cannot be captured, or would not mean the same when it is replayed: the message says why."""


class Backend(Protocol):
    """What captures. All that `Graphed` asks of CUDA."""

    def capture(self, call: Callable[[], object]) -> tuple[Callable[[], None], object]:
        """Record a call without running it: what replays it, and the result that a replay writes."""
        ...


class CudaBackend:
    """CUDA graphs in one memory pool, which is a new one when there is no graph left."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def capture(self, call: Callable[[], object]) -> tuple[Callable[[], None], object]:
        """See `Backend`.

        Raises:
            CaptureError: If CUDA refuses, or there is nothing to capture.
        """
        if not self._graphs:  # a pool ends with its last graph, even if a result is still held
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        stream = None if current == torch.cuda.default_stream() else current
        torch.cuda.synchronize()  # else what still runs could be seen as part of the capture's failure
        collecting = gc.isenabled()
        gc.disable()  # a graph that is let go during a capture breaks it
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                    result = call()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).strip().partition("\n")[0]
                raise CaptureError(
                    f"cannot be captured: {reason}. A graph must not wait for the device (.item(), .cpu(), printing, "
                    "sizes that depend on data) nor compile or tune on its way"
                ) from error
            finally:
                if collecting:
                    gc.enable()
        if any("Graph is empty" in str(warning.message) for warning in said):
            raise CaptureError("the call does nothing on the current CUDA stream: are its tensors on the CPU?")
        self._graphs.add(graph)
        return graph.replay, result


@dataclass(frozen=True, slots=True)
class Captured:
    """One graph, and where it reads and writes.

    Attributes:
        replay: Runs it.
        inputs: The tensors that it reads.
        result: What it writes, as the callable gave it.
    """

    replay: Callable[[], None]
    inputs: tuple[torch.Tensor, ...]
    result: Any


class Graphed:
    """A callable that is captured once a shape and then replayed; see the module's description. For inference.

    Every tensor must be an argument itself. Two calls share a graph if their tensors have equal shapes, strides and
    dtypes and everything else about them is equal: other arguments, whether a module is in training mode, and autocast.
    Inside another capture the callable is simply called, and so becomes part of that one.

    Args:
        call: A module, or any callable, whose tensors are on one CUDA device.
        most: Graphs that are kept at a time.
        backend: What captures; CUDA's if None.
    """

    def __init__(self, call: Callable[..., Any], *, most: int = 16, backend: Backend | None = None) -> None:
        if most < 1:
            raise ValueError(f"most must be at least 1, got {most}")
        self._call, self._most = call, most
        self._backend = backend or CudaBackend()
        self._captured: OrderedDict[Hashable, Captured] = OrderedDict()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Replay, or capture first. The result is there until the next call, of whatever shapes.

        Raises:
            CaptureError: If the call cannot be captured or cannot be replayed truly.
            ValueError: If arguments are not what a graph can be given.
        """
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            return self._call(*args, **kwargs)
        named = {**{str(i): value for i, value in enumerate(args)}, **kwargs}
        tensors = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
        self._check(tensors)
        key = self._key(named)
        found = self._captured.get(key)
        if found is None:
            # a graph is used inside inference mode and out of it: its tensors must be writable in both
            with torch.inference_mode(False), torch.no_grad():
                found = self._capture(args, kwargs)
            while len(self._captured) >= self._most:
                self._captured.popitem(last=False)
            self._captured[key] = found
        self._captured.move_to_end(key)
        for place, value in zip(found.inputs, tensors.values(), strict=True):
            place.copy_(value)  # torch._foreach_copy_ has a block of threads for 65536 elements: too few
        found.replay()
        return found.result

    @property
    def graphs(self) -> int:
        """How many are kept."""
        return len(self._captured)

    def forget(self) -> None:
        """Let go of all graphs: the next call of any shape captures anew."""
        self._captured.clear()

    def _key(self, named: dict[str, Any]) -> Hashable:
        parts: list[Hashable] = []
        for name, value in named.items():
            if isinstance(value, torch.Tensor):
                parts.append((name, value.shape, value.stride(), value.dtype, value.device))
                continue
            if _holds_tensors(value):
                raise ValueError(f"argument {name} holds tensors: pass each tensor as an argument of its own")
            try:
                hash(value)
            except TypeError:
                raise ValueError(
                    f"argument {name} must be a tensor or hashable, so that calls can be told apart, got "
                    f"{type(value).__name__}"
                ) from None
            parts.append((name, type(value), value))
        training = self._call.training if isinstance(self._call, torch.nn.Module) else None
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        return (tuple(parts), training, autocast)

    def _check(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if torch.is_grad_enabled() and tensor.requires_grad:
                raise ValueError(
                    f"argument {name} requires a gradient, and a replay has no backward: "
                    "detach it, or call under torch.no_grad()"
                )
            if isinstance(self._backend, CudaBackend) and tensor.get_device() != _current_device():
                raise ValueError(f"argument {name} must be on the current CUDA device, got {tensor.device}")

    def _capture(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured:
        inputs: list[torch.Tensor] = []

        def placed(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            inputs.append(_room_for(value))
            return inputs[-1]

        at_args = [placed(value) for value in args]
        at_kwargs = {name: placed(value) for name, value in kwargs.items()}
        written = [tensor._version for tensor in inputs]
        for _ in range(WARM_UP):
            self._call(*at_args, **at_kwargs)
        for i, (tensor, version) in enumerate(zip(inputs, written, strict=True)):
            if tensor._version != version:
                raise CaptureError(
                    f"the call writes into its tensor argument number {i}, of which a graph has a copy: let the "
                    "callable hold what it changes"
                )
        replay, result = self._backend.capture(lambda: self._call(*at_args, **at_kwargs))
        _check_result(result)
        return Captured(replay, tuple(inputs), result)


def _current_device() -> int:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else 0


def _room_for(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides, but for those that let elements share memory."""
    tensor = tensor.detach()
    if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        return tensor.contiguous()
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_tensors, value.values()))
    return isinstance(value, torch.Tensor) or (isinstance(value, list | tuple) and any(map(_holds_tensors, value)))


def _check_result(result: Any) -> None:
    if isinstance(result, dict):
        result = tuple(result.values())
    if isinstance(result, list | tuple):
        for part in result:
            _check_result(part)
    elif not (result is None or isinstance(result, torch.Tensor)):
        raise CaptureError(
            f"the call returns a {type(result).__name__}, which a replay cannot renew: return tensors, or tuples, "
            "lists and dicts of them"
        )
