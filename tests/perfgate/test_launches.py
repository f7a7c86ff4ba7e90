"""Reading a graph's nodes, with a driver that answers from a script."""

from __future__ import annotations

import sys
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from perfgate import launches, libraries
from perfgate.binaries import LIBRARY, Binaries
from perfgate.kernels import Kernel
from perfgate.launches import Unreadable, read

KERNEL, COPY, FILL, EVENT, CHILD, HOST = "KERNEL", "MEMCPY", "MEMSET", "EVENT_RECORD", "GRAPH", "HOST"


class Code(int):
    name = "CUDA_ERROR_INVALID_VALUE"


class Attribute(Enum):
    CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1
    CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = 3
    CU_FUNC_ATTRIBUTE_NUM_REGS = 4


class Driver(ModuleType):
    """Nodes are pairs of a kind and what is in them; a kernel's function has the handle of its index plus one."""

    CUgraph = int
    CUfunction_attribute = Attribute
    CUkernelNodeAttrID = SimpleNamespace(CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION=4)

    def __init__(self, *nodes: tuple[str, Any]) -> None:
        super().__init__("cuda.bindings.driver")
        self.graphs: dict[int, tuple[tuple[str, Any], ...]] = {1: nodes}
        self.refuses: set[str] = set()
        self.clusters = (1, 1, 1)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cu") and name in super().__getattribute__("refuses"):
            return lambda *args: (Code(1), None)
        return super().__getattribute__(name)

    def cuGraphGetNodes(self, graph: int, count: int) -> Any:
        nodes = self.graphs[graph]
        return Code(0), list(nodes)[:count], len(nodes)

    def cuGraphNodeGetType(self, node: tuple[str, Any]) -> Any:
        return Code(0), SimpleNamespace(name=f"CU_GRAPH_NODE_TYPE_{node[0]}")

    def cuGraphChildGraphNodeGetGraph(self, node: tuple[str, Any]) -> Any:
        return Code(0), node[1]

    def cuGraphKernelNodeGetParams(self, node: tuple[str, Any]) -> Any:
        sizes = dict.fromkeys(("gridDimY", "gridDimZ", "blockDimY", "blockDimZ"), 1)
        handle = {"func": 0, "kern": node[1]} if node[1] >= 100 else {"func": node[1], "kern": 0}
        return Code(0), SimpleNamespace(gridDimX=132, blockDimX=128, sharedMemBytes=1000, **sizes, **handle)

    def cuKernelGetFunction(self, kernel: int) -> Any:
        return Code(0), kernel - 100

    def cuFuncGetName(self, function: int) -> Any:
        return Code(0), f"kernel{function}".encode()

    def cuFuncGetAttribute(self, attribute: Attribute, function: int) -> Any:
        return Code(0), {1: 24, 3: 96, 4: 168}[attribute.value]

    def cuGraphKernelNodeGetAttribute(self, node: object, attribute: int) -> Any:
        x, y, z = self.clusters
        return Code(0), SimpleNamespace(clusterDim=SimpleNamespace(x=x, y=y, z=z))

    def cuGraphMemcpyNodeGetParams(self, node: object) -> Any:
        return Code(0), SimpleNamespace(WidthInBytes=4096, Height=2, Depth=1)

    def cuGraphMemsetNodeGetParams(self, node: object) -> Any:
        return Code(0), SimpleNamespace(elementSize=4, width=100, height=1)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "codes", lambda: Binaries({1: "c0de", 2: LIBRARY}).code)
    monkeypatch.setattr(libraries, "digest", lambda names: "+".join(sorted(names)))


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    def into(driver: Driver) -> Driver:
        bindings = ModuleType("cuda.bindings")
        bindings.driver = driver  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
        return driver

    return into


def kernel(name: str, **about: Any) -> Kernel:
    sizes: dict[str, Any] = {"shared": 1024, "registers": 168, "local": 96}
    return Kernel(name=name, grid=(132, 1, 1), block=(128, 1, 1), **sizes, **about)


def test_kernels_are_read_with_their_shapes_and_code(install: Any) -> None:
    install(Driver((KERNEL, 1), (EVENT, None), (KERNEL, 2), (COPY, None), (FILL, None)))
    found = read(1)
    assert found.launches == (
        kernel("kernel1", code="c0de"),
        kernel("kernel2"),
        Kernel(name="memcpy", bytes=8192),
        Kernel(name="memset", bytes=400),
    )
    assert found.libraries == "kernel2"  # of the others the code is known, or they are no kernels
    assert found.known


def test_a_kernel_that_a_library_loaded_is_found_by_its_function(install: Any) -> None:
    install(Driver((KERNEL, 101)))
    assert read(1).launches == (kernel("kernel1", code="c0de"),)


def test_kernels_of_a_graph_within_the_graph_count(install: Any) -> None:
    driver = install(Driver((CHILD, 2), (KERNEL, 1)))
    driver.graphs[2] = ((KERNEL, 1),)
    assert read(1).launches == (kernel("kernel1", code="c0de", count=2),)


def test_a_cluster_is_a_shape_of_the_launch(install: Any) -> None:
    driver = install(Driver((KERNEL, 1)))
    driver.clusters = (2, 1, 1)
    assert read(1).launches[0].cluster == (2, 1, 1)
    driver.refuses.add("cuGraphKernelNodeGetAttribute")
    assert read(1).launches[0].cluster == ()


def test_what_a_node_does_that_is_no_kernel_is_not_known(install: Any) -> None:
    install(Driver((KERNEL, 1), (HOST, None)))
    assert not read(1).known


def test_each_of_several_calls_has_its_share(install: Any) -> None:
    one = install(Driver((KERNEL, 1), (KERNEL, 2), (KERNEL, 1)))
    several = Driver(*one.graphs[1] * 4)
    whole = read(1)
    install(several)
    assert read(1, calls=4) == whole


def test_calls_that_launch_other_kernels_each_time_are_not_known(install: Any) -> None:
    install(Driver((KERNEL, 1), (KERNEL, 2)))
    with pytest.raises(Unreadable, match="do not launch the same kernels each time"):
        read(1, calls=2)


@pytest.mark.parametrize("question", ["cuGraphGetNodes", "cuGraphKernelNodeGetParams", "cuFuncGetName"])
def test_a_driver_that_refuses_is_named_by_what_it_was_asked(install: Any, question: str) -> None:
    install(Driver((KERNEL, 1))).refuses.add(question)
    with pytest.raises(Unreadable, match=f"{question} failed with CUDA_ERROR_INVALID_VALUE"):
        read(1)


def test_a_driver_that_lacks_a_question_is_named_likewise(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install(Driver((KERNEL, 1)))
    monkeypatch.delattr(Driver, "cuFuncGetName")
    with pytest.raises(Unreadable, match="cuFuncGetName"):
        read(1)


def test_without_the_bindings_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(Unreadable, match="pip install cuda-bindings"):
        read(1)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("CUkernelNodeAttrID", SimpleNamespace()),
        ("CUgraph", lambda handle: int("no handle")),
        ("cuGraphMemcpyNodeGetParams", lambda self, node: (Code(0), SimpleNamespace(width=4096))),
        ("cuFuncGetName", lambda self, function: (Code(0), None)),
        ("cuFuncGetAttribute", lambda self, attribute: None),
    ],
)
def test_bindings_that_answer_otherwise_are_no_error_of_the_case(
    install: Any, monkeypatch: pytest.MonkeyPatch, name: str, instead: Any
) -> None:
    install(Driver((KERNEL, 1), (COPY, None)))
    monkeypatch.setattr(Driver, name, instead if name.startswith("cu") else staticmethod(instead))
    with pytest.raises(Unreadable):
        read(1)
