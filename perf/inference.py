"""Make docs/inference.md, the page of the inference ladder: ``python -m perf.inference [FILE ...]``.

Files are runs of the suites of decoding (pytest-benchmark's JSON, or the journal of a run that was cut off) and what
``perf.block_latency`` wrote. What the page says is taken from them and kept in docs/inference.json, so that without
files the page is made of that again. The same data give the same page.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perf import inference_page, inference_plot
from perfgate import baseline, journal
from perfgate.environment import Environment
from perfgate.record import Record
from perfgate.report import Results

__all__ = ["Collected", "Origin", "Run", "collect", "main"]

DOCS = Path(__file__).parents[1] / "docs"
SUITES = ("llama", "llama-kernels", "linear", "decode", "block")
"""What the page shows; the first word of the names of its cases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where and when numbers were measured, and of which code."""

    environment: Environment
    commit: str
    date: str

    def to_json(self) -> dict[str, Any]:
        """A JSON object, `from_json`'s inverse."""
        return {"environment": self.environment.to_json(), "commit": self.commit, "date": self.date}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Origin:
        """Read what `to_json` wrote."""
        return cls(
            environment=Environment.from_json(data["environment"]), commit=str(data["commit"]), date=str(data["date"])
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run of suites.

    Attributes:
        origin: Where it ran.
        results: What it found.
        records: The same as it is kept.
    """

    origin: Origin
    results: Results
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """All that the page is made of.

    Attributes:
        runs: Of suites.
        latencies: What `perf.block_latency` wrote, one object a run.
    """

    runs: tuple[Run, ...] = ()
    latencies: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON object, `from_json`'s inverse."""
        return {"runs": [_kept(run) for run in self.runs], "latencies": [dict(entry) for entry in self.latencies]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Collected:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If two runs have one case.
        """
        runs = tuple(_run(entry) for entry in data["runs"])
        names = [row.case.name for run in runs for row in run.results.rows]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected every case in one run, got {twice[0]} in several: give one of them")
        return cls(runs=runs, latencies=tuple(data["latencies"]))


def _kept(run: Run) -> dict[str, Any]:
    results = run.results
    return {
        "origin": run.origin.to_json(),
        "ceilings": dict(results.ceilings),
        "out_of_memory": dict(results.out_of_memory),
        "absent": dict(results.absent),
        "notes": list(results.notes),
        "records": [record.to_json() for record in run.records],
    }


def _run(data: Mapping[str, Any]) -> Run:
    records = tuple(Record.from_json(entry) for entry in data["records"])
    origin = Origin.from_json(data["origin"])
    said = {name: data[name] for name in ("ceilings", "out_of_memory", "absent", "notes")}
    return Run(origin=origin, results=Results.of(records, origin.environment, **said), records=records)


def collect(paths: Sequence[Path], commit: str = "unknown") -> Collected:
    """Take from files what the page shows.

    Args:
        paths: The files.
        commit: What journals are of: they do not say it.

    Raises:
        ValueError: If a file is neither a run nor latencies, or two have one case.
        JournalError: If a journal cannot be read.
    """
    runs, latencies = [], []
    for path in paths:
        with _named(path):
            part = _part(path, commit)
            _whole(part)
        runs += part["runs"]
        latencies += part["latencies"]
    return Collected.from_json({"runs": runs, "latencies": latencies})


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say of which file it is that something is missing, or is not what it should be."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} must hold what was measured as it was written, got {got}: measure it anew") from None


def _whole(data: Any) -> Collected:
    """Read what `Collected.to_json` wrote, of which a page can be made: what cannot be shown raises an error."""
    collected = Collected.from_json(data)
    inference_page.render(collected)
    return collected


def _part(path: Path, commit: str) -> dict[str, list[Any]]:
    if path.suffix == ".jsonl":
        return {"runs": [_of_journal(journal.read(path), commit, path)], "latencies": []}
    document = baseline.load(path)
    if isinstance(document, dict) and "record" in document and "origin" in document:
        return {"runs": [], "latencies": [document]}
    return {"runs": [_of_document(document, path)], "latencies": []}


def _of_journal(found: journal.Contents, commit: str, path: Path) -> dict[str, Any]:
    notes = () if found.complete else ("the run was not whole: what its journal has is shown",)
    return _shown(found, Origin(environment=found.environment, commit=commit, date=found.started[:10]), {}, notes, path)


def _of_document(document: Any, path: Path) -> dict[str, Any]:
    part = document.get("perfgate") if isinstance(document, dict) else None
    notes = []
    if isinstance(part, dict) and part.get("complete") is False:
        # a picture of what is there is better than none; a verdict would be another matter
        why = "some of its tests failed" if part.get("exitstatus") == 1 else "the run was cut off"
        counts = f"{part.get('measured')} of {part.get('collected')} cases were timed"
        notes = [f"{why}: {counts}; what else is not here failed or could not run"]
        document = {**document, "perfgate": {**part, "complete": True}}
    found = baseline.from_document(document, path)
    origin = Origin(
        environment=found.environment,
        commit=str((document.get("commit_info") or {}).get("id", "unknown")),
        date=str(document.get("datetime", ""))[:10],
    )
    return _shown(found, origin, document["perfgate"].get("absent", {}), notes, path)


def _shown(
    found: baseline.Baseline | journal.Contents,
    origin: Origin,
    absent: Mapping[str, str],
    notes: Sequence[str],
    path: Path,
) -> dict[str, Any]:
    records = [r for r in found.records.values() if r.case.name.split("/")[0] in SUITES]
    if not records:
        raise ValueError(f"{path} has no case of {', '.join(SUITES)}")
    return {
        "origin": origin.to_json(),
        "ceilings": dict(found.ceilings),
        "out_of_memory": {c: why for c, why in found.out_of_memory.items() if c.split("/")[0] in SUITES},
        "absent": dict(absent),
        "notes": list(notes),
        "records": [_without_kernels(record).to_json() for record in records],
    }


def _without_kernels(record: Record) -> Record:
    """What the page has no use for, and is most of a file."""
    return replace(record, processes=tuple(replace(samples, kernels=None) for samples in record.processes))


def write(texts: Mapping[str, str], docs: Path) -> list[Path]:
    """Write files by their names, when all of them could be written; each whole, or not at all."""
    with tempfile.TemporaryDirectory(prefix=".", dir=docs) as beside:
        for name, text in texts.items():
            Path(beside, name).write_text(text, encoding="utf-8")
        return [Path(beside, name).replace(docs / name) for name in texts]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    parse = argparse.ArgumentParser(prog="python -m perf.inference", description=(__doc__ or "").split("\n\n")[0])
    parse.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parse.add_argument("--commit", default="unknown", help="what journals are of: they do not say it")
    parse.add_argument("--docs", type=Path, default=DOCS, help="where the page and its data are")
    arguments = parse.parse_args(argv)
    kept = arguments.docs / "inference.json"
    texts, missing = {}, None
    try:
        if arguments.files:
            collected = collect(arguments.files, arguments.commit)
            texts[kept.name] = json.dumps(collected.to_json(), indent=1) + "\n"
        else:
            with _named(kept):
                collected = _whole(json.loads(kept.read_text(encoding="utf-8")))
        texts["inference.md"] = inference_page.render(collected)
        try:
            texts |= inference_plot.pictures(collected)
        except ModuleNotFoundError as error:  # there is no matplotlib
            missing = error
        made = write(texts, arguments.docs)
    except (ValueError, OSError, journal.JournalError) as error:
        print(error, file=sys.stderr)
        return 2
    if missing:
        print(f"{kept} and the page are written, not the pictures: {missing}", file=sys.stderr)
        return 3
    print("\n".join(str(path) for path in made))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
