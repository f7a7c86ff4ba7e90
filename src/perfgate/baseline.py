"""Baselines: reading, merging and writing them, in pytest-benchmark's JSON.

Our parts of a document are ``machine_info.perfgate`` (the environment), ``extra_info.perfgate`` of each benchmark (its
record) and ``perfgate`` (the run). Whatever is not whole is refused with one sentence; nothing half is ever written.
Knows nothing of pytest.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_benchmark.stats import Stats

from perfgate import nvml, stats
from perfgate.environment import Environment
from perfgate.record import Record
from perfgate.roofline import saved
from perfgate.verdict import Noise, Rule, visible

__all__ = [
    "ALLOWED",
    "SCHEMA",
    "Baseline",
    "BaselineError",
    "check_comparable",
    "from_document",
    "load",
    "merge",
    "nodes",
    "read",
    "rule_for",
    "spread",
    "without",
    "write",
]

SCHEMA = 1
ALLOWED = 0.25
"""Visible slowdown above which processes disagree too much for a baseline: by the default rule, an sd between them of
about 5 %, which is no noise but two modes or a disturbed run. At 10 %, an sd of 1.7 %, chance alone would refuse 4 to 9
of 150 cases; these are kept, and their verdicts say what they cannot see."""
REMEDY = "measure the baseline anew"


class BaselineError(ValueError):
    """A baseline cannot be used, merged or written; the message is one sentence with the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a run is held against.

    Attributes:
        path: Where it was read from.
        environment: Where it was measured.
        records: By case name.
        ceilings: What the machine could do at best, e.g. ``{"copy_bytes_per_second": 4.1e12}``.
        out_of_memory: Reasons by name of the cases that did not fit.
        processes: How many processes it holds.
        session: Relative sd of what two sessions of such machines differ by, if that was measured.
    """

    path: Path | None = None
    environment: Environment
    records: Mapping[str, Record]
    ceilings: Mapping[str, float] = field(default_factory=dict)
    out_of_memory: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1
    session: float | None = None


def read(path: str | os.PathLike[str]) -> Baseline:
    """Read a baseline from a file.

    Raises:
        BaselineError: If it cannot be read, is broken, or is not a whole baseline.
    """
    path = Path(path)
    return from_document(load(path), path)


def load(path: Path) -> Any:
    """The JSON document in a file.

    Raises:
        BaselineError: If the file cannot be read or is not JSON.
    """
    try:
        data = path.read_bytes()
        if not data.strip():
            raise BaselineError(f"{path} is empty: {REMEDY}")
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise BaselineError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BaselineError(f"{path} is not text (byte {error.start} is not UTF-8): {REMEDY}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise BaselineError(f"{path} is broken or cut off at {where} ({error.msg}): {REMEDY}") from error
    except RecursionError as error:
        raise BaselineError(f"{path} is nested too deep to be a baseline: {REMEDY}") from error
    except _NotANumber as error:
        raise BaselineError(f"{path} holds {error} where a number must be: {REMEDY}") from error


class _NotANumber(Exception):
    pass


def _no_constant(text: str) -> float:
    raise _NotANumber(text)


def from_document(document: Any, path: Path | None = None) -> Baseline:
    """Read a baseline from pytest-benchmark's JSON. Benchmarks that perfgate did not time are passed over.

    Raises:
        BaselineError: If the document is not pytest-benchmark's, has no part of ours, has another schema, is of an
            incomplete run, or names a case twice.
    """
    what = str(path or "the document")
    benchmarks = document.get("benchmarks") if isinstance(document, dict) else None
    machine = document.get("machine_info") if isinstance(document, dict) else None
    if not (
        isinstance(benchmarks, list) and isinstance(machine, dict) and all(isinstance(b, dict) for b in benchmarks)
    ):
        raise BaselineError(f"{what} is not pytest-benchmark's: expected an object with machine_info and benchmarks")
    run, place = document.get("perfgate"), machine.get("perfgate")
    if not (isinstance(run, dict) and isinstance(place, dict)):
        raise BaselineError(f"{what} was not saved by perfgate: it says nothing of device and samples; {REMEDY}")
    if run.get("schema") != SCHEMA:
        raise BaselineError(f"{what} has schema {run.get('schema')!r}, expected {SCHEMA}: {REMEDY}")
    if run.get("complete") is not True:
        counts = f"{run.get('measured')} of {run.get('collected')} cases, exit status {run.get('exitstatus')}"
        raise BaselineError(f"{what} is of an incomplete run ({counts}): {REMEDY}")
    records: dict[str, Record] = {}
    try:
        environment = Environment.from_json(place)
        for record in map(Record.from_json, _parts(benchmarks)):
            if record.case.name in records:
                raise BaselineError(f"{what} holds the case {record.case.name} twice: {REMEDY}")
            records[record.case.name] = record
        baseline = Baseline(
            path=path,
            environment=environment,
            records=records,
            ceilings=_positive(run.get("ceilings", {})),
            out_of_memory={str(k): str(v) for k, v in run.get("out_of_memory", {}).items()},
            processes=int(run.get("processes", 1)),
            session=_session(run),
        )
    except BaselineError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise BaselineError(f"{what} is damaged: {error}; {REMEDY}") from error
    if not (records or baseline.out_of_memory):
        raise BaselineError(f"{what} holds no case that perfgate timed: {REMEDY}")
    return baseline


def nodes(document: Mapping[str, Any]) -> dict[str, str]:
    """The node id of the test behind each case of a document that `from_document` reads."""
    named = ((_name(benchmark), benchmark["fullname"]) for benchmark in document["benchmarks"])
    return {name: node for name, node in named if name is not None}


def _name(benchmark: Mapping[str, Any]) -> str | None:
    """The name of the case that a benchmark is, if perfgate timed it."""
    ours = (benchmark.get("extra_info") or {}).get("perfgate")
    return None if ours is None else str(ours["case"]["name"])


def _parts(benchmarks: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for benchmark in benchmarks:
        part = (benchmark.get("extra_info") or {}).get("perfgate")
        if part is not None:
            yield part


def _positive(ceilings: Mapping[str, Any]) -> dict[str, float]:
    found = {str(name): float(value) for name, value in ceilings.items()}
    bad = [name for name, value in found.items() if not (math.isfinite(value) and value > 0)]
    if bad:
        raise ValueError(f"ceiling {bad[0]} is {found[bad[0]]}, expected a positive number")
    return found


def _session(run: Mapping[str, Any]) -> float | None:
    if "session" not in run:
        return None
    sd = float(run["session"].get("sd"))
    if not 0 <= sd < 1:
        raise ValueError(f"sessions differ by an sd of {sd}, expected a share from 0 to 1")
    return sd


def check_comparable(baseline: Baseline, environment: Environment) -> list[str]:
    """What differs without forbidding a comparison, a sentence each.

    Raises:
        BaselineError: If the keys differ.
    """
    here, there = environment.key, baseline.environment.key
    if here != there:
        where = f"the baseline {baseline.path}" if baseline.path else "the baseline"
        raise BaselineError(f"this is {here}, {where} is of {there}: measure a baseline here")
    return environment.differences(baseline.environment)


def rule_for(baseline: Baseline | None, environment: Environment | None, rule: Rule | None = None) -> Rule:
    """The rule by which what was measured here is held against a baseline.

    What sessions differ by is what the baseline says, if it does; and one device does not differ from itself.
    """
    rule = rule or Rule()
    if baseline is not None and baseline.session is not None:
        rule = replace(rule, session=baseline.session)
    same = baseline is not None and environment is not None and environment.same_device(baseline.environment)
    return replace(rule, device=0.0, fill=0.0) if same else rule


def merge(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the processes of one suite into one document.

    Every record then holds all processes, and pytest-benchmark's own statistics are those of the pooled samples. All
    else is the first document's, but for the host's name and kernel.

    Raises:
        BaselineError: If a document is not whole, or the documents differ in environment, code, cases or methods.
    """
    if not documents:
        raise BaselineError("nothing to merge: expected the documents of at least one process, got none")
    parts = [_part(document, f"process {i}") for i, document in enumerate(documents, 1)]
    for i, (document, part) in enumerate(zip(documents, parts, strict=True), 1):
        _same_suite(documents[0], parts[0], document, part, f"process {i}")
        again = next((j for j, other in enumerate(parts[: i - 1], 1) if other.records == part.records != {}), None)
        if again:
            raise BaselineError(f"process {i} is process {again} again: a process counts once, give each file once")
    merged: dict[str, Any] = copy.deepcopy(dict(documents[0]))
    ceilings = {
        name: stats.quantile([p.ceilings[name] for p in parts if name in p.ceilings], 0.5) for name in parts[0].ceilings
    }
    benchmarks = [benchmark for benchmark in merged["benchmarks"] if _name(benchmark) is not None]
    for benchmark in benchmarks:
        name = benchmark["extra_info"]["perfgate"]["case"]["name"]
        records = [part.records[name] for part in parts]
        record = Record(case=records[0].case, processes=tuple(s for r in records for s in r.processes))
        benchmark["extra_info"].pop("roofline", None)
        benchmark["extra_info"].update(saved(record, ceilings))
        benchmark["stats"] = _statistics(record, benchmark.get("stats", {}))
    first = parts[0]
    facts = {k: v for k, v in first.environment.facts.items() if all(p.environment.facts.get(k) == v for p in parts)}
    if all("uuid" in p.environment.facts for p in parts):  # what the devices differ by is in the processes' spread
        facts["uuid"] = ",".join(dict.fromkeys(p.environment.facts["uuid"] for p in parts))
    merged["machine_info"]["perfgate"] = replace(first.environment, facts=facts).to_json()
    for private in ("node", "release"):  # a committed file names no host
        merged["machine_info"].pop(private, None)
    merged["benchmarks"] = benchmarks
    merged["perfgate"]["ceilings"] = ceilings
    merged["perfgate"]["processes"] = sum(p.processes for p in parts)
    return merged


def without(document: Mapping[str, Any], pattern: str) -> dict[str, Any]:
    """A document less the cases whose name a regular expression finds.

    Raises:
        BaselineError: If the document is not whole, or the pattern is no regular expression or finds no case.
    """
    from_document(document)
    try:
        found = re.compile(pattern).search
    except re.error as error:
        raise BaselineError(f"expected a regular expression for names of cases, got {pattern!r}: {error}") from error
    fewer: dict[str, Any] = copy.deepcopy(dict(document))
    timed = nodes(document)
    gone = {name for name in (*timed, *document["perfgate"].get("out_of_memory", {})) if found(name)}
    if not gone:
        near = difflib.get_close_matches(pattern, timed, n=1, cutoff=0.0)
        raise BaselineError(f"{pattern!r} is found in the name of no case, such as {', '.join(near) or 'none'}")
    fewer["benchmarks"] = [b for b in fewer["benchmarks"] if _name(b) not in gone]
    for name in gone & fewer["perfgate"].get("out_of_memory", {}).keys():
        del fewer["perfgate"]["out_of_memory"][name]
    return fewer


def _part(document: Mapping[str, Any], what: str) -> Baseline:
    try:
        return from_document(document)
    except BaselineError as error:
        raise BaselineError(str(error).replace("the document", what, 1)) from error


def _same_suite(first: Mapping[str, Any], one: Baseline, other: Mapping[str, Any], part: Baseline, what: str) -> None:
    """Raise unless `what` is another process of the same suite."""
    if one.environment.key != part.environment.key:
        raise BaselineError(
            f"process 1 ran on {one.environment.key}, {what} on {part.environment.key}: not one baseline"
        )
    old, new = one.environment.versions, part.environment.versions
    if different := [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]:
        versions = ", ".join(f"{k} {old.get(k, 'absent')} and {new.get(k, 'absent')}" for k in different)
        raise BaselineError(f"process 1 and {what} ran with different software ({versions}): not one baseline")
    codes = [(d.get("commit_info") or {}).get("id") for d in (first, other)]
    if codes[0] != codes[1]:
        raise BaselineError(f"process 1 measured the code of {codes[0]}, {what} that of {codes[1]}: not one baseline")
    cases = [set(p.records) | {f"{name} (out of memory)" for name in p.out_of_memory} for p in (one, part)]
    if cases[0] != cases[1]:
        odd = sorted(cases[0] ^ cases[1])
        raise BaselineError(f"process 1 and {what} hold different cases ({len(odd)}, e.g. {odd[0]}): not one baseline")
    for name, record in one.records.items():
        if record.method != part.records[name].method:
            methods = f"{record.method} in process 1, {part.records[name].method} in {what}"
            raise BaselineError(f"{name} was timed by different methods: {methods}")
        if record.case != part.records[name].case:
            raise BaselineError(f"{name} does other work in process 1 than in {what}: not one baseline")


def _statistics(record: Record, before: Mapping[str, Any]) -> dict[str, Any]:
    make: Callable[[], Any] = Stats  # it has no types
    pooled = make()
    for samples in record.processes:
        for seconds in samples.seconds:
            pooled.update(seconds)
    return {**pooled.as_dict(), "iterations": before.get("iterations", 1)}


def spread(records: Iterable[Record], *, allowed: float = ALLOWED, rule: Rule | None = None) -> list[str]:
    """Why these records make no baseline, a sentence each: processes that disagree, and heat.

    Args:
        records: With all their processes.
        allowed: Smallest visible slowdown that a case may have because its processes disagree; what the clock cannot
            resolve is not held against them.
        rule: The rule by which verdicts will be made.
    """
    records = list(records)
    rule = replace(rule or Rule(), floor_seconds=0.0, device=0.0, fill=0.0)
    noise = Noise.of(records)
    said = []
    for record in records:
        name, n = record.case.name, len(record.processes)
        least = visible(record, rule, noise)
        if n > 1 and least > allowed:
            medians = [s.median for s in record.processes]
            unseen = f"slowdowns below {least:.1%} would not" if least < 10 else "hardly any slowdown would"
            said.append(
                f"{name}: the medians of {n} processes lie {max(medians) / min(medians) - 1:.1%} apart, so {unseen} "
                f"be seen ({allowed:.0%} is allowed)"
            )
        hot = [i for i, s in enumerate(record.processes, 1) if nvml.hot(s.counters)]
        if hot:
            said.append(f"{name}: the GPU slowed down for heat in process {', '.join(map(str, hot))} of {n}")
    return said


def write(document: Mapping[str, Any], directory: str | os.PathLike[str], label: str) -> Path:
    """Write a document as ``NNNN_label.json`` under the next free number; whole, or not at all.

    Args:
        document: What `merge` made.
        directory: The storage directory of one machine id; made if it is not there.
        label: Name of the suite.

    Raises:
        BaselineError: If the document or label cannot be written as JSON file, the disk is full, or no number is free.
    """
    directory = Path(directory)
    if not re.fullmatch(r"[A-Za-z0-9._-]+", label):
        raise BaselineError(f"a label is made of letters, digits, '.', '_' and '-', got {label!r}")
    try:
        data = json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise BaselineError(f"the baseline is not valid JSON ({error}): nothing was written") from error
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return _place(data, directory, label)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BaselineError(f"nothing was written to {directory}: {reason}; make room or check its rights") from error


def _place(data: bytes, directory: Path, label: str) -> Path:
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=directory)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        while True:
            target = directory / f"{_next_number(directory):04}_{label}.json"
            with contextlib.suppress(FileExistsError):  # another process took the number
                os.link(temporary, target)
                break
    finally:
        os.unlink(temporary)
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return target


def _next_number(directory: Path) -> int:
    taken = [int(found[1]) for path in directory.iterdir() if (found := re.match(r"(\d{4})_", path.name))]
    number = max(taken, default=0) + 1
    if number > 9999:
        raise BaselineError(
            f"{directory} has no number left after 9999, which pytest-benchmark reads: remove old files"
        )
    return number
