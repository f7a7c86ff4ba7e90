"""What a captured CUDA graph launches, read off its nodes.

The graph is one that nobody times: the clock captures each call once to find out how long it takes, and this reads that
capture. Needs NVIDIA's ``cuda.bindings``, which torch's CUDA builds bring along; without it nothing is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from perfgate import libraries
from perfgate.binaries import LIBRARY, UNKNOWN, codes
from perfgate.kernels import Kernel, Kernels

__all__ = ["Unreadable", "read"]

SILENT = ("EMPTY", "EVENT_RECORD", "WAIT_EVENT", "MEM_ALLOC", "MEM_FREE")
"""Kinds of nodes that do no work on the device."""
CodeOf = Callable[[int, str], str]
"""The code of a function of this handle and name."""


class Unreadable(Exception):
    """Which kernels a graph launches cannot be known: the message says why."""


def read(graph: int, *, calls: int = 1) -> Kernels:
    """The kernels of one call.

    Args:
        graph: The driver's ``CUgraph`` as an integer, e.g. ``torch.cuda.CUDAGraph(keep_graph=True).raw_cuda_graph()``.
        calls: How many calls were captured into it, one after the other.

    Raises:
        Unreadable: If ``cuda.bindings`` is not there or answers otherwise than it should, the driver refuses, or the
            calls do not launch the same.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise Unreadable(f"cuda.bindings cannot be imported ({error}): pip install cuda-bindings") from error
    try:
        counts = Counter(_launches(driver, driver.CUgraph(graph), codes()))
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # other bindings: no reason to fail a case
        raise Unreadable(f"cuda.bindings is not as expected: {error}") from error
    if any(count % calls for count in counts.values()):
        raise Unreadable(f"its calls do not launch the same kernels each time ({counts.total()} in {calls} calls)")
    found = [replace(kernel, count=n // calls) for kernel, n in counts.items()]
    of_libraries = (kernel.name for kernel in found if kernel.grid and kernel.code == LIBRARY)
    return Kernels.of(found, libraries.digest(of_libraries))


def _launches(driver: Any, graph: Any, code_of: CodeOf) -> Iterator[Kernel]:
    """A kernel a node, in the graph's order; those of a graph within it in its place."""
    _, count = _asked(driver, "cuGraphGetNodes", graph, 0)
    nodes, _ = _asked(driver, "cuGraphGetNodes", graph, count) if count else ((), 0)
    for node in nodes:
        (kind,) = _asked(driver, "cuGraphNodeGetType", node)
        name = kind.name.removeprefix("CU_GRAPH_NODE_TYPE_")
        if name == "GRAPH":
            (inner,) = _asked(driver, "cuGraphChildGraphNodeGetGraph", node)
            yield from _launches(driver, inner, code_of)
        elif name == "KERNEL":
            yield _kernel(driver, node, code_of)
        elif name == "MEMCPY":
            (copy,) = _asked(driver, "cuGraphMemcpyNodeGetParams", node)
            yield Kernel(name="memcpy", bytes=int(copy.WidthInBytes * copy.Height * copy.Depth))
        elif name == "MEMSET":
            (fill,) = _asked(driver, "cuGraphMemsetNodeGetParams", node)
            yield Kernel(name="memset", bytes=int(fill.elementSize * fill.width * fill.height))
        elif name not in SILENT:
            yield Kernel(name=name.lower(), code=UNKNOWN)


def _kernel(driver: Any, node: Any, code_of: CodeOf) -> Kernel:
    (launch,) = _asked(driver, "cuGraphKernelNodeGetParams", node)
    function = launch.func
    if not int(function):
        (function,) = _asked(driver, "cuKernelGetFunction", launch.kern)
    (name,) = _asked(driver, "cuFuncGetName", function)
    shared, local, registers = (
        int(_asked(driver, "cuFuncGetAttribute", getattr(driver.CUfunction_attribute, attribute), function)[0])
        for attribute in (
            "CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES",
            "CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES",
            "CU_FUNC_ATTRIBUTE_NUM_REGS",
        )
    )
    name = name.decode()
    return Kernel(
        name=name,
        grid=(int(launch.gridDimX), int(launch.gridDimY), int(launch.gridDimZ)),
        block=(int(launch.blockDimX), int(launch.blockDimY), int(launch.blockDimZ)),
        cluster=_cluster(driver, node),
        shared=shared + int(launch.sharedMemBytes),
        registers=registers,
        local=local,
        code=code_of(int(function), name),
    )


def _cluster(driver: Any, node: Any) -> tuple[int, ...]:
    """Blocks of a cluster; none where the launch asks for none."""
    attribute = driver.CUkernelNodeAttrID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    try:
        (value,) = _asked(driver, "cuGraphKernelNodeGetAttribute", node, attribute)
    except Unreadable:  # it has none to tell
        return ()
    cluster = (int(value.clusterDim.x), int(value.clusterDim.y), int(value.clusterDim.z))
    return cluster if any(size > 1 for size in cluster) else ()


def _asked(driver: Any, name: str, *arguments: Any) -> tuple[Any, ...]:
    """The driver's answer to a question.

    Raises:
        Unreadable: If it has none.
    """
    try:
        code, *answer = getattr(driver, name)(*arguments)
    except (AttributeError, RuntimeError) as error:  # this driver does not have it, or there is no driver
        raise Unreadable(f"{name}: {error}") from error
    if int(code):
        raise Unreadable(f"{name} failed with {code.name}")
    return tuple(answer)
