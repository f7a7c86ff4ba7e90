"""What pytest-benchmark saves and compares with: filed by environment, checked before use, whole or not at all.

`configure` runs before pytest-benchmark's own, so the storage is keyed when it looks for something to compare with.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

import pytest

from perfgate import accept, baseline, preflight
from perfgate.baseline import BaselineError
from perfgate.gate import Exit
from perfgate.plugin.state import environment_of, idle, run_of

__all__ = ["Storage"]


class LateFile:
    """Stands in for a file that pytest-benchmark before 5.3 opens at the start, and writes in a ``with`` at the end.

    Opened only then, an earlier run's file can be removed, and a run that dies leaves none.
    """

    def __init__(self, opened: IO[bytes]) -> None:
        self.path = Path(opened.name)
        opened.close()

    def __enter__(self) -> IO[bytes]:
        self._file = self.path.open("wb")
        return self._file

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __str__(self) -> str:
        return str(self.path)


class Storage:
    """The hooks around what is saved and compared in one session.

    Args:
        config: pytest's.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.run = config, run_of(config)
        self._foreign: Path | None = None
        self._unfound: str | None = None
        self._judged: set[str] = set()

    @property
    def _path(self) -> Path:
        return preflight.storage_path(self.config.getoption("benchmark_storage"))

    @property
    def _json(self) -> Path | None:
        """Where ``--benchmark-json`` puts it."""
        asked = self.config.getoption("benchmark_json")
        return asked.path if isinstance(asked, LateFile) else asked

    def configure(self) -> None:
        """File saved runs by environment, and refuse a baseline that cannot be compared with."""
        option = self.config.option
        if option.perf_fresh:  # a project's own settings may ask for what only the run that started this one is to save
            option.benchmark_json = option.benchmark_save = option.benchmark_compare = option.benchmark_histogram = None
            option.benchmark_autosave = False
        if option.benchmark_json is not None and not isinstance(option.benchmark_json, Path):
            option.benchmark_json = LateFile(option.benchmark_json)
        wanted = option.benchmark_save or option.benchmark_autosave or option.benchmark_compare
        if not wanted or idle(self.config) or option.benchmark_storage.startswith("elasticsearch+"):
            return
        key = environment_of(self.config).key
        option.benchmark_storage = f"{option.benchmark_storage.rstrip('/')}/{key}"
        if option.benchmark_compare:
            asked = option.benchmark_compare
            paths = preflight.compared(self._path, preflight.machine_id(), asked)
            if not paths and isinstance(asked, str):
                self._unfound = (
                    f"--benchmark-compare: there is no file {asked}, and none in {self._path} whose name begins so: "
                    "give one that is there, or none for the newest"
                )
                if preflight.unknown(asked):
                    pytest.exit(self._unfound, Exit.REFUSED)
            elif not paths:
                self.run.notes.append(f"no baseline of {key} in {self._path}: `perfgate baseline` measures one")
            for path in paths:
                try:
                    self._take(path)
                except BaselineError as error:
                    pytest.exit(str(error), Exit.REFUSED)

    def _take(self, path: Path) -> None:
        """Hold this run against a file; of several, against the last."""
        document = baseline.load(path)
        if isinstance(document, dict) and "benchmarks" in document and "perfgate" not in document:
            self._foreign = path  # pytest-benchmark compares with it; whether that is enough depends on the tests
            return
        found = baseline.from_document(document, path)
        differences = baseline.check_comparable(found, environment_of(self.config))
        if self.run.baseline is not None:
            self.run.notes.append(f"several files are compared with; the verdicts are against {path}")
        self.run.notes.extend(differences)
        self.run.baseline = found
        self.run.accepted = accept.read(path)
        self.run.baseline_nodes = baseline.nodes(document)
        self._judged.add(document["datetime"])

    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        """Say in what is saved where it was measured."""
        if self.run.environment is not None:
            machine_info["perfgate"] = self.run.environment.to_json()

    @pytest.hookimpl(wrapper=True)
    def pytest_benchmark_compare_machine_info(
        self, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
    ) -> Generator[None, object, object]:
        """Leave to pytest-benchmark only what we did not save: environments of our own are judged already."""
        ours = "perfgate" in compared_benchmark
        if ours and compared_benchmark["datetime"] not in self._judged:
            taken = self.run.baseline.path if self.run.baseline else "none"
            pytest.exit(f"pytest-benchmark compares with another file than perfgate, which took {taken}", Exit.REFUSED)
        theirs, here = compared_benchmark["machine_info"], machine_info.pop("perfgate", None)
        if ours:
            # infos that are equal are not warned of (4 KB on a line), so they are equal while they are looked at
            compared_benchmark["machine_info"] = machine_info
        try:
            return (yield)
        except ValueError as error:
            if "subpath" not in str(error):  # it warns with the storage's path, and fails if that is not below the cwd
                raise
            warnings.warn(pytest.PytestWarning("the compared run's machine_info is different"), stacklevel=1)
            return None
        finally:
            compared_benchmark["machine_info"] = theirs
            if here is not None:
                machine_info["perfgate"] = here

    def pytest_sessionstart(self) -> None:
        """Remove what an earlier run left at ``--benchmark-json``: after a crash it would look like this run's."""
        path = self._json
        if path is None or self.config.option.collectonly:
            return
        if sentence := preflight.target(path):
            raise pytest.UsageError(f"--benchmark-json: {sentence}")
        path.unlink(missing_ok=True)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self) -> None:
        """Before the first case is timed: is there a baseline of ours, and room for results?"""
        if not self.run.selected or idle(self.config):
            return
        if self._unfound is not None:  # pytest-benchmark warns, which is enough for what it times
            pytest.exit(self._unfound, Exit.REFUSED)
        if self._foreign is not None and self.run.baseline is None:
            pytest.exit(f"{self._foreign} was not saved with perfgate: measure the baseline anew", Exit.REFUSED)
        option = self.config.option
        if self.run.journal_path.exists():
            raise pytest.UsageError(f"--perf-journal: {self.run.journal_path} exists already: move it, or give another")
        paths = [self.run.journal_path, *([self._json] if self._json else [])]
        if option.benchmark_save or option.benchmark_autosave:
            paths.append(self._path)
        if sentence := preflight.room(paths):
            pytest.exit(sentence, Exit.LOST)

    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """Add this run's part; of a test that ran several times the last is kept."""
        if self.run.selected and not idle(self.config):
            output_json["benchmarks"][:] = {b["fullname"]: b for b in output_json["benchmarks"]}.values()
            output_json["perfgate"] = self.run.part()

    def guard_saving(self) -> None:
        """A full disk costs what would be saved, not the tables and the other plugins' reports; no half file stays."""
        benchmarks: Any = self.config.pluginmanager.getplugin("pytest-benchmark")
        save = benchmarks.handle_saving

        def guarded() -> None:
            before = set(self._path.rglob("*.json"))
            try:
                save()
            except OSError as error:
                opened = {self._json} if self._json else set()
                for path in opened | set(self._path.rglob("*.json")) - before:
                    path.unlink(missing_ok=True)
                self.run.lose(f"this run was not saved: {error}")

        benchmarks.handle_saving = guarded
