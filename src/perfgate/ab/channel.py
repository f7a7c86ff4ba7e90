"""One message a line: what `perfgate ab` and a worker say to each other, as JSON objects over a socket.

    worker    {"used": true if torch has used a GPU}    all is collected
    to it     {"begin": true}                           from here on it may use one
    worker    {"collected": [node, ...], "canaries": [...], "environment": {...}, "errors": [...], "harness": path}
              or {"refused": reason, "code": exit code}
    to it     {"run": node, "check": true}
    worker    {"ready": case's name, "plan": {...}, "checked": 0.1}
              prepared, with so many seconds for a first call and its check; or {"ended": ...} if it came to nothing
    to it     {"time": true}                            as often as is wanted
    worker    {"record": {...}}                         samples of one visit; or {"ended": ...}
    to it     {"release": true}
    worker    {"ended": how, "reason": ..., "case": name or null, "checking": true if it was the check}
    to it     {"other": path, "root": path, "places": [path, ...], "head": path}        what was loaded from where?
    worker    {"foreign": [file, ...], "astray": {module: file}, "installed": {module: file}}

The end of the stream means: go away.
"""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["FAILED", "OUT_OF_MEMORY", "PASSED", "SKIPPED", "Channel", "Gone"]

PASSED, FAILED, SKIPPED, OUT_OF_MEMORY = "passed", "failed", "skipped", "out of memory"

LOOK = 0.5
"""Seconds after which a reader looks whether the other process is still there."""


class Gone(Exception):
    """The other end is closed, or does not answer."""


class Channel:
    """One end of the stream.

    Args:
        end: A connected socket; it is the channel's from now on.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._end.settimeout(LOOK)
        self._buffer = bytearray()

    def send(self, **message: object) -> None:
        """Send one message.

        Raises:
            Gone: If nobody is there to read it.
        """
        line = memoryview(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        while line:
            try:
                line = line[self._end.send(line) :]
            except TimeoutError:
                continue  # the reader is busy
            except OSError as error:
                raise Gone(str(error)) from None

    def receive(self, *, alive: Callable[[], bool] = lambda: True, patience: float = math.inf) -> Mapping[str, Any]:
        """Wait for one message.

        Args:
            alive: Whether there is still somebody who could send one.
            patience: Seconds to wait at most.

        Raises:
            Gone: If none can come, or none came in time.
        """
        start = time.monotonic()
        while (end := self._buffer.find(b"\n")) < 0:
            try:
                chunk = self._end.recv(2**20)
            except TimeoutError:
                if not alive():
                    raise Gone("the process ended") from None
                if time.monotonic() - start > patience:
                    raise Gone(f"no answer in {patience:g} s") from None
                continue
            except OSError as error:
                raise Gone(str(error)) from None
            if not chunk:
                raise Gone("the stream ended")
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        message: Mapping[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Close this end: the other one is told to go away."""
        self._end.close()
