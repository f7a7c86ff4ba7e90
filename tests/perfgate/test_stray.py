"""Work on another stream that nobody waits for; on a real device it is looked for in test_cuda."""

from __future__ import annotations

import itertools
import random
import types

import pytest

from perfgate import stray


class Device:
    """The current stream and another one; the host waits for the one, or for both."""

    def __init__(self) -> None:
        self.now = self.current = self.other = 0.0
        self.hiccups: list[float] = []
        self.asking, self.drowsy, self.waited = 5e-6, 0.0, 0.0

    def perf_counter(self) -> float:
        return self.now

    def synchronize(self) -> None:
        self.now = max(self.now, self.current, self.other) + self.asking + self.drowsy * self.waited
        self.now += self.hiccups.pop() if self.hiccups else 0.0
        self.waited = 0.0

    def launch(self, seconds: float, elsewhere: float) -> None:
        self.now += 4e-6
        self.current = max(self.now, self.current) + seconds
        if elsewhere:
            self.other = max(self.now, self.other) + elsewhere

    def event(self, enable_timing: bool) -> Event:
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.at = device, 0.0

    def record(self) -> None:
        self.at = max(self.device.now, self.device.current)

    def synchronize(self) -> None:
        self.device.waited = max(0.0, self.at - self.device.now)
        self.device.now += self.device.waited

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    cuda = types.SimpleNamespace(
        synchronize=device.synchronize, Event=device.event, _sleep=lambda cycles: device.launch(cycles / 1.7e9, 0.0)
    )
    monkeypatch.setattr(stray, "torch", types.SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(stray, "time", device)
    return device


@pytest.mark.parametrize("seconds", [2e-6, 1e-4, 1e-2])
def test_a_call_on_its_own_stream_leaves_nothing(device: Device, seconds: float) -> None:
    assert stray.of_call(lambda: device.launch(seconds, 0.0), seconds) is None


@pytest.mark.parametrize(("seconds", "elsewhere"), [(2e-6, 2e-5), (1e-4, 2e-4), (1e-2, 1.02e-2)])
def test_work_on_another_stream_is_found_and_named(device: Device, seconds: float, elsewhere: float) -> None:
    found = stray.of_call(lambda: device.launch(seconds, elsewhere), seconds)
    assert found is not None
    assert found.startswith("the call leaves work behind on another stream: ")
    assert "wait_stream" in found


def test_work_on_another_stream_that_ends_before_the_current_one_is_not_told(device: Device) -> None:
    """It need not be waited for to be timed: the time is that of the current stream."""
    assert stray.of_call(lambda: device.launch(1e-3, 5e-4), 1e-3) is None


def test_a_host_that_takes_long_to_find_the_device_idle_finds_no_work(device: Device) -> None:
    device.asking = 80e-6
    assert stray.of_call(lambda: device.launch(1e-3, 0.0), 1e-3) is None
    assert stray.of_call(lambda: device.launch(1e-3, 1.2e-3), 1e-3) is not None


def test_a_host_that_needs_longer_the_longer_it_has_waited_finds_no_work(device: Device) -> None:
    device.drowsy = 0.02
    assert stray.of_call(lambda: device.launch(5e-3, 0.0), 5e-3) is None
    assert stray.of_call(lambda: device.launch(5e-3, 5.3e-3), 5e-3) is not None


def test_a_share_too_small_to_matter_is_not_told(device: Device) -> None:
    assert stray.of_call(lambda: device.launch(1e-2, 1.008e-2), 1e-2) is None


@pytest.mark.parametrize("late", range(6))
def test_a_host_that_comes_late_once_hides_no_work(device: Device, late: int) -> None:
    """Before the calls or after them, before a kernel that they are compared with or after it."""
    device.hiccups = [4e-4 if i == late else 0.0 for i in range(6)]
    device.hiccups.reverse()
    assert stray.of_call(lambda: device.launch(1e-3, 1.4e-3), 1e-3) is not None


@pytest.mark.parametrize("late", range(8))
def test_a_host_that_is_late_with_the_end_of_the_calls_once_hides_no_work(device: Device, late: int) -> None:
    """Work elsewhere has ended by then, and what is timed seems to last as long."""
    turns = itertools.count()

    def call() -> None:
        device.launch(1e-3, 1.4e-3)
        if next(turns) == late:
            device.now += 1e-2

    assert stray.of_call(call, 1e-3) is not None


def test_a_host_that_comes_late_is_no_work(device: Device) -> None:
    late = [0.0, 3e-3, 0.0, 0.0]  # before the calls, after them; before and after none
    device.hiccups = [*late, *late]
    device.hiccups.reverse()
    assert stray.of_call(lambda: device.launch(1e-4, 0.0), 1e-4) is None
    assert not device.hiccups  # it was late twice


@pytest.mark.parametrize("seed", range(40))
def test_a_host_that_is_slow_nearly_always_finds_no_work(device: Device, seed: int) -> None:
    """It is quick after one of many kernels, by luck, and after none of fewer calls."""
    chance = random.Random(seed)
    device.hiccups = [chance.choices((0.0, 7e-5), (1, 12))[0] for _ in range(1000)]
    hiccups = device.hiccups.copy()
    assert stray.of_call(lambda: device.launch(3.6e-3, 0.0), 3.6e-3) is None
    device.hiccups = hiccups
    assert stray.of_call(lambda: device.launch(3.6e-3, 3.75e-3), 3.6e-3) is not None


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("CUDA error: capturing stream has unjoined work", "leaves work behind on another stream"),
        ("CUDA error: dependency created on uncaptured work in another stream", "waits for work on another stream"),
        ("CUDA error: operation not permitted when stream is capturing", None),
    ],
)
def test_a_capture_that_failed_for_another_stream_says_so(said: str, wrong: str | None) -> None:
    """Its first error is followed by one of the capture's end, which says less."""
    try:
        try:
            raise RuntimeError(said)
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
    except RuntimeError as error:
        found = stray.of_capture(error)
    assert (found is None) == (wrong is None)
    assert wrong is None or wrong in str(found)
