"""The stream between `perfgate ab` and a worker: whole messages, and an end that is noticed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from perfgate.ab.channel import Channel, Gone


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    here, there = map(Channel, socket.socketpair())
    yield here, there
    here.close()
    there.close()


def test_messages_arrive_whole_and_in_order(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    long = "x" * 2**22  # more than the socket holds
    sender = threading.Thread(target=lambda: (here.send(run=long), here.send(time=True)))
    sender.start()
    assert there.receive() == {"run": long}
    assert there.receive() == {"time": True}
    sender.join()


def test_the_other_end_closed_is_gone_for_reader_and_writer(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    there.close()
    with pytest.raises(Gone, match="ended"):
        here.receive()
    with pytest.raises(Gone):
        here.send(time=True)


def test_a_message_that_was_sent_before_the_end_is_read(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    there.send(ended="passed")
    there.close()
    assert here.receive(alive=lambda: False) == {"ended": "passed"}


def test_a_process_that_is_dead_is_not_waited_for_though_its_children_hold_the_stream(
    ends: tuple[Channel, Channel],
) -> None:
    with pytest.raises(Gone, match="the process ended"):
        ends[0].receive(alive=lambda: False)


def test_patience_ends(ends: tuple[Channel, Channel]) -> None:
    with pytest.raises(Gone, match=r"no answer in 0\.1 s"):
        ends[0].receive(patience=0.1)
