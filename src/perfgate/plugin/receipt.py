"""The receipt of a session that came to its end, for whoever started it (`perfgate.ending`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perfgate.plugin.state import idle, run_of

__all__ = ["Receipt"]


class Receipt:
    """Writes the exit code and how many cases were measured, last of all.

    Args:
        path: Where to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session: pytest.Session | None = None

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Remember the session, whose exit code is known in the end."""
        self._session = session

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Write it; without a session (``--help``) all went well. Where nothing was to be timed there is no count."""
        code: int = pytest.ExitCode.OK
        measured: int | None = None
        if self._session is not None:
            code, run = self._session.exitstatus, run_of(config)
            measured = None if idle(config) else len(run.records) + len(run.out_of_memory)
        self._path.write_text(json.dumps({"code": int(code), "measured": measured}), encoding="utf-8")
