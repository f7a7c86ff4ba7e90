"""The page of the inference ladder as Markdown, from measured results alone."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attnkit.llama import LADDER
from perf.peers import PEERS
from perf.tune_matvec import SHAPES
from perfgate.report import Results, Row, sentences, units
from perfgate.report.units import DASH

if TYPE_CHECKING:
    from perf.inference import Collected, Origin, Run

__all__ = ["before", "best_peer", "of_suite", "render", "roofs", "shares", "sizes"]

HEAD = """# How fast is inference, and what made it so?

This page is generated: `nox -s ladder` measures on a GPU, and makes it of what was measured, which docs/inference.json
keeps. Every case is checked before it is timed. A share is of the bandwidth or matrix rate measured in the same run."""
OURS = ("cuda_matvec", "cuda_matvec_overlap", "triton_product", "triton_dynamic")
LIBRARIES = (
    "sdpa_flash",
    "sdpa_cudnn",
    "sdpa_efficient",
    "flash_attn",
    "flash_attn_3",
    "flash_attn_4",
    "flashinfer",
    "transformer_engine",
)
ROWS_AT_MOST = 8
"""Rows of x up to which a product is bound by the bytes of its weight."""


def render(collected: Collected) -> str:
    """The page."""
    sections = [HEAD]
    kernels = {
        size: rows for _, results in of_suite(collected, "llama-kernels") for size, rows in sizes(results).items()
    }
    for run, results in of_suite(collected, "llama"):
        sections.append(f"## The Llama ladder\n\n{_origin(run, results)}\n\n{_ladder(results, kernels)}")
    for title, suite, write in (
        ("Products with a few rows", "linear", _products),
        ("Attention of the newest token", "decode", _decode),
        ("The block", "block", _block),
    ):
        for run, results in of_suite(collected, suite):
            sections.append(f"## {title}\n\n{_origin(run, results)}\n\n{write(results)}")
    for entry in collected.latencies:
        sections.append(f"## Latency of single requests to a block\n\n{_latency(entry)}")
    for name, run in roofs(collected).items():
        picture = f"![Attained rate over operational intensity]({name})"
        suites = ", ".join(dict.fromkeys(row.case.name.partition("/")[0] for row in run.results.rows))
        sections.append(f"## Under the roof: {suites}\n\n{_measured(run.origin)}\n\n{picture}")
    if len(sections) == 1:
        sections.append("Nothing was measured yet.")
    return "\n\n".join(sections) + "\n"


def of_suite(collected: Collected, suite: str) -> Iterable[tuple[Run, Results]]:
    """The runs that have cases of a suite, with these alone."""
    for run in collected.runs:
        if any(row.case.name.startswith(f"{suite}/") for row in run.results.rows):
            yield run, run.results.select(f"^{suite}/")


def roofs(collected: Collected) -> dict[str, Run]:
    """The runs of which there is a roof to draw, by the names of the pictures."""
    known = [run for run in collected.runs if run.results.ceilings]
    return {f"inference-roofline{f'-{i}' if i > 1 else ''}.svg": run for i, run in enumerate(known, 1)}


def _measured(origin: Origin) -> str:
    here = origin.environment
    versions = ", ".join(f"{name} {version}" for name, version in sorted(here.versions.items()))
    which = f" `{here.facts['uuid'][:8]}`" if "uuid" in here.facts else ""
    return f"Measured on **{here.device}**{which} ({versions}), {origin.date}, commit `{_short(origin.commit)}`."


def _short(commit: str) -> str:
    return commit[:7] if re.fullmatch(r"[0-9a-f]+", commit) else commit


def _origin(run: Run, results: Results) -> str:
    absent = ", ".join(f"`{name}`" for name in results.absent)
    lines = [*sentences.methods(results), sentences.ceilings(results), *sentences.notes(results)]
    lines.append(absent and f"not installed: {absent}")
    return "\n".join([_measured(run.origin), "", *(f"- {line}" for line in lines if line)])


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    marks = ["---" if i < left else "--:" for i in range(len(titles))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (titles, marks, *rows))


def _parts(row: Row) -> tuple[str, str]:
    """Alternative and problem of ``suite/alternative/problem``."""
    _, alternative, problem = row.case.name.split("/", 2)
    return alternative, problem


def sizes(results: Results) -> dict[str, dict[str, Row]]:
    """Rows by problem and alternative, in their order."""
    found: dict[str, dict[str, Row]] = {}
    for row in results.rows:
        alternative, problem = _parts(row)
        found.setdefault(problem, {})[alternative] = row
    return found


# ---- the ladder


def before(name: str) -> str | None:
    """What a rung is held against: with int8 weights the same with 16 bits, else the 16-bit rung above it."""
    if name.endswith("_int8"):
        return name.removesuffix("_int8")
    above = [rung.name for rung in LADDER if not rung.int8]
    return above[above.index(name) - 1] if name in above[1:] else None


def best_peer(rows: Mapping[str, Row], *, int8: bool | None = None) -> str | None:
    """The fastest that is no rung, of all or of those with or without int8 weights."""
    rungs = {rung.name for rung in LADDER} | {"batched"}
    peers = [name for name, row in rows.items() if name not in rungs and row.tokens_per_second]
    peers = [name for name in peers if int8 in (None, name.endswith("_int8"))]
    return min(peers, key=lambda name: rows[name].median, default=None)


def _ladder(results: Results, kernels: Mapping[str, Mapping[str, Row]]) -> str:
    parts = ["![Tokens a second, rung by rung](inference-llama.svg)"]
    found = sizes(results)
    for size, rows in found.items():
        adds = {rung.name: rung.adds for rung in LADDER}
        known = [name for name in adds if name in rows]
        others = sorted((name for name in rows if name not in adds), key=lambda name: rows[name].median)
        first = known[0] if known else None
        table = []
        for name in (*known, *others):
            row, below = rows[name], before(name) if name in adds else None
            alone = kernels.get(size, {}).get(name)
            table.append(
                [
                    f"`{name}`",
                    adds.get(name, "a peer" if name != "batched" else "for more sequences than the fused kernels take"),
                    _number_of(row.tokens_per_second),
                    _number_of(alone.tokens_per_second if alone else None),
                    units.rates(row.bytes_per_second, 1e9),
                    units.percent(row.bandwidth_share),
                    units.multiple(_faster(row, rows.get(below or ""))),
                    units.multiple(_faster(row, rows.get(first or ""))),
                ]
            )
        titles = ["rung", "what it adds", "tokens/s", "of its kernels alone", "GB/s", "% of bandwidth"]
        titles += ["× the rung before", "× the first"]
        parts.append(f"**{size}**\n\n{_table(titles, table, left=2)}")
        parts.extend(_against_peers(rows, known))
    if missing := [f"`{name}`" for name in PEERS if not any(name in rows for rows in found.values())]:
        parts.append(f"Peers that were not there: {', '.join(missing)}.")
    parts.append(
        "The rung before one with int8 weights is the same with 16 bits; before any other it is the one above it with "
        "16 bits. The share is of the bytes that a token must read. Rungs without a graph launch kernel by kernel, and "
        "the GPU waits for the host: what their kernels alone would do is measured of one token, replayed as a graph. "
        "A case is several tokens in a row; of a rung that replays graphs itself the clock makes no further one."
    )
    return "\n\n".join(parts)


def _against_peers(rows: Mapping[str, Row], known: Sequence[str]) -> list[str]:
    peer = best_peer(rows)
    if peer is None or not known:
        return []
    said = []
    for what, int8 in (("16 bits", False), ("int8", True)):
        ours = [name for name in known if name.endswith("_int8") == int8]
        if ours:
            best = min(ours, key=lambda name: rows[name].median)
            text = f"in {what} `{best}` is {units.multiple(_faster(rows[best], rows[peer]))} as fast"
            alike = best_peer(rows, int8=int8)
            if alike is not None and alike != peer:
                text += f" ({units.multiple(_faster(rows[best], rows[alike]))} as `{alike}`)"
            said.append(text)
    return [f"Against the fastest peer, `{peer}`: {', '.join(said)}."]


def _faster(row: Row, than: Row | None) -> float | None:
    return than.median / row.median if than else None


def _number_of(value: float | None) -> str:
    return DASH if value is None else f"{value:.1f}"


# ---- products


def shares(results: Results) -> dict[tuple[int, bool], dict[str, dict[str, Row]]]:
    """Rows by (rows of x, whether int8), shape and product."""
    names = {f"n{n}-k{k}": name for name, (n, k) in SHAPES.items()}
    found: dict[tuple[int, bool], dict[str, dict[str, Row]]] = {}
    for row in results.rows:
        product, problem = _parts(row)
        match = re.match(r"m(\d+)-(n\d+-k\d+)-", problem)
        if match and int(match[1]) <= ROWS_AT_MOST:
            key = (int(match[1]), problem.endswith("-int8"))
            found.setdefault(key, {}).setdefault(names.get(match[2], match[2]), {})[product] = row
    return found


def _read(results: Results) -> float | None:
    """The read bandwidth measured, or the best there is."""
    every = [rate for name, rate in results.ceilings.items() if name.endswith("bytes_per_second")]
    return results.ceilings.get("read_bytes_per_second", max(every, default=None))


def _products(results: Results) -> str:
    parts, read, found = [], _read(results), shares(results)
    order = list(SHAPES)
    for (m, int8), by_shape in sorted(found.items()):
        shown = sorted(by_shape, key=lambda name: order.index(name) if name in order else len(order))
        products = list(dict.fromkeys(name for shape in shown for name in by_shape[shape]))
        products.sort(key=lambda name: (name not in OURS, name))
        table = [
            [shape, *(_share_cell(by_shape[shape].get(p), read) for p in products)]
            for shape in shown
        ]  # fmt: skip
        for title, of in (("worst", min), ("geometric mean", statistics.geometric_mean)):
            table.append([f"*{title}*", *(_over(by_shape, p, read, of) for p in products)])
        work = next(iter(by_shape[shown[0]].values())).case.work
        weights = "int8" if int8 else str(work.dtype if work else "16-bit")
        head = f"**{weights} weights, {m} row{'s' if m > 1 else ''} of x**: % of the read bandwidth (µs)"
        parts.append(f"{head}\n\n{_table(['weight', *(f'`{p}`' for p in products)], table)}")
    parts.extend(_int8_against(found, read))
    return "\n\n".join(parts)


def _share_cell(row: Row | None, read: float | None) -> str:
    if row is None or row.bytes_per_second is None or read is None:
        return DASH
    return f"{units.percent(row.bytes_per_second / read)} ({row.median * 1e6:.2f})"


def _over(
    by_shape: Mapping[str, Mapping[str, Row]], product: str, read: float | None, of: Callable[[list[float]], float]
) -> str:
    """Of a product over all shapes; a dash where it lacks one."""
    rates = [rows[product].bytes_per_second for rows in by_shape.values() if product in rows]
    known = [rate for rate in rates if rate]
    return units.percent(of(known) / read) if read and len(known) == len(by_shape) else DASH


def _int8_against(found: Mapping[tuple[int, bool], Mapping[str, Mapping[str, Row]]], read: float | None) -> list[str]:
    """How much faster int8 is than 16 bits, and than others' int8, in the geometric mean over the shapes of both.

    And how much faster it would be if it took no longer than reading its bytes does.
    """
    said = []
    for m in sorted({m for m, _ in found}):
        ours = {shape: rows["cuda_matvec"] for shape, rows in found.get((m, True), {}).items() if "cuda_matvec" in rows}
        rivals = {"`cuda_matvec` in 16 bits": {s: r.get("cuda_matvec") for s, r in found.get((m, False), {}).items()}}
        for rows in found.get((m, True), {}).values():
            for name in rows:
                if name not in OURS:
                    rivals[f"`{name}`"] = {s: r.get(name) for s, r in found[m, True].items()}
        for name, theirs in rivals.items():
            both = [(other, ours[s]) for s, other in theirs.items() if other is not None and s in ours]
            if not both:
                continue
            ratios = [other.median / row.median for other, row in both]
            mean = units.multiple(statistics.geometric_mean(ratios))
            text = f"- {m} row{'s' if m > 1 else ''} of x: {mean} as fast as {name}"
            rates = [row.bytes_per_second for _, row in both if row.bytes_per_second]
            if read and len(rates) == len(both):
                most = statistics.geometric_mean(ratio * read / rate for ratio, rate in zip(ratios, rates, strict=True))
                text += f"; the read bandwidth allows {units.multiple(most)}"
            said.append(text)
    return (
        ["`cuda_matvec` with int8 weights, in the geometric mean over the shapes:\n\n" + "\n".join(said)]
        if said
        else []
    )


# ---- decode


def _decode(results: Results) -> str:
    read = _read(results)
    by_problem = sizes(results)
    variants = list(dict.fromkeys(name for rows in by_problem.values() for name in rows))
    variants.sort(key=lambda name: (not name.startswith("triton_splitkv"), name))
    table = []
    for problem, rows in by_problem.items():
        work = next(iter(rows.values())).case.work
        ideal = work.bytes / read if work and read else None
        fastest = min((row.median for name, row in rows.items() if name in LIBRARIES), default=None)
        ours = rows.get("triton_splitkv")
        against = fastest / ours.median if fastest and ours else None
        cells = [_ideal_cell(rows.get(name), ideal) for name in variants]
        table.append([f"`{problem}`", DASH if ideal is None else f"{ideal * 1e6:.2f}", *cells, units.multiple(against)])
    titles = ["problem", "ideal µs", *(f"`{name}`" for name in variants), "× the fastest library"]
    return (
        "Microseconds, GB/s, and in brackets the share of the ideal: the bytes of queries, cache and result at the "
        "read bandwidth, as a sum over a large tensor reads. What reads faster than that has more than 100 %.\n\n"
        + _table(titles, table)
    )


def _ideal_cell(row: Row | None, ideal: float | None) -> str:
    if row is None:
        return DASH
    share = f" ({units.percent(ideal / row.median)} %)" if ideal else ""
    return f"{row.median * 1e6:.2f}, {units.rates(row.bytes_per_second, 1e9)}{share}"


# ---- the block


def _block(results: Results) -> str:
    rows = [
        [
            f"`{problem}`",
            f"`{alternative}`",
            units.seconds(row.median),
            units.quantity(row.tokens_per_second, ""),
            units.quantity(row.peak_bytes, "B"),
            units.multiple(row.speedup),
        ]
        for problem, found in sizes(results).items()
        for alternative, row in found.items()
    ]
    gone = [
        [f"`{problem}`", f"`{alternative}`", "out of memory", DASH, DASH, DASH]
        for _, alternative, problem in (name.split("/", 2) for name in sorted(results.out_of_memory, key=units.natural))
    ]
    rows.extend(gone)
    return _table(
        ["projections and size", "attention", "median", "tokens/s", "peak mem", "× the reference"], rows, left=2
    )


def _latency(entry: Mapping[str, Any]) -> str:
    from perf.inference import Origin

    parts = [_measured(Origin.from_json(entry["origin"])), f"Attention above *standard* is `{entry['attention']}`."]
    kinds = {"isolated": "One request at a time", "open loop": "Requests that come at a rate, answered or not"}
    for kind, title in kinds.items():
        rows = [row for row in entry["record"] if row["kind"] == kind]
        table = [
            [
                f"`{row['shape']}`",
                row["rung"],
                *(
                    f"{row[name] * 1e6:.1f} ({units.signed_percent(1 - row['reduction'][name])})"
                    for name in ("median", "p95", "p99")
                ),
                str(row["requests"]),
                *([f"{row['requests_per_second']:.0f}"] if kind == "open loop" else []),
            ]
            for row in rows
        ]
        if table:
            titles = ["size", "rung", "median µs", "P95 µs", "P99 µs", "requests"]
            titles += ["requests a second"] if kind == "open loop" else []
            parts.append(f"**{title}** (in brackets the change against *standard*)\n\n{_table(titles, table, left=2)}")
    return "\n\n".join(parts)
