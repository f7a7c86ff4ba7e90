"""The receipt of a session that came to its end, for whoever started it (`perfgate.ending`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

__all__ = ["Receipt"]


class Receipt:
    """Writes the exit code, last of all.

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
    def pytest_unconfigure(self) -> None:
        """Write it; without a session (``--help``) all went well."""
        code = self._session.exitstatus if self._session is not None else pytest.ExitCode.OK
        self._path.write_text(json.dumps(int(code)), encoding="utf-8")
