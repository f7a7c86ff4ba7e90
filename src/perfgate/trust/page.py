"""docs/trust.md: what was found out about perfgate itself, from the data alone. The same data give the same page."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Iterable, Sequence

from perfgate import contest, contrast, stats
from perfgate.ab.blocks import ORDERS
from perfgate.ab.stages import CONTROLS
from perfgate.contest import ContestRule
from perfgate.trust import chance, clocks, data, gates, resample, rivals, stages, starts, suites
from perfgate.trust.chance import binomial_interval
from perfgate.trust.data import Contest, Entry, Spread, Timing
from perfgate.trust.resample import SIZES, Plan, Row, compare, recorded
from perfgate.trust.stages import judged_again
from perfgate.trust.suites import false_alarms, measured
from perfgate.trust.table import table
from perfgate.verdict import Rule, State, Verdict

__all__ = ["DRAWN", "comparison", "render"]

SEED = 20260101
DECIDING = (contest, contrast, stats, chance, resample, rivals, stages, suites)
"""Modules by whose code what is drawn is drawn and judged: where one changes, the page is to be made again."""
STEADY = 0.006
"""Relative sd between processes up to which the slowdowns found are promised."""
KINDS = (f"at most {STEADY:.1%}", "more, or unknown", "its floor is larger")
"""Of slowed cases: of the last, calls of a few microseconds, such a slowdown is not to be called."""
DRAWN = ("Unchanged code that is made up", "The same samples through others' rules")
"""Sections that are of random numbers."""
NOISIEST = 5
"""Cases named for their spread between processes."""
NEWEST = 3
"""Commits that timed one of these in several processes and are told apart: what they changed about it."""

HEAD = """# How far can a verdict be trusted?

This page is generated: `nox -s calibrate` makes it of `docs/trust.jsonl`, where every run is kept with its origin and
its samples. A share is given with the interval of shares that its count does not contradict (95 %, Clopper and Pearson
1934)."""


def render(entries: Sequence[Entry], plan: Plan | None = None, *, draw: bool = True) -> str:
    """The page.

    Args:
        entries: All that was collected.
        plan: How often the recorded samples are drawn again for the comparison with others' rules.
        draw: Whether to draw at all, which takes long: else sections of `DRAWN` have their titles and no text.
    """
    plan = plan or Plan()
    contests = [entry for entry in entries if isinstance(entry, Contest)]
    timings = [entry for entry in entries if isinstance(entry, Timing)]
    by_clock = [entry for entry in entries if isinstance(entry, Spread)]
    spreads = _spreads(contests)
    unchanged, planted, disturbed = ([c for c in contests if c.what == what] for what in ("aa", "planted", "drift"))
    sections = [
        HEAD,
        "## Where the data come from\n\n" + _origins(entries, plan),
        "## Unchanged code against itself\n\n" + _unchanged(unchanged, plan.rule),
        f"## {DRAWN[0]}\n\n" + (_made_up(unchanged, plan) if draw else ""),
        "## How far processes differ\n\n" + _processes(spreads, contests),
        "## How far they would differ by a plain clock\n\n" + clocks.render(by_clock, steady=STEADY, named=NOISIEST),
        "## How far starts of a machine differ\n\n" + _starts(unchanged),
        "## One start against a baseline of another\n\n" + _gates(unchanged),
        "## Planted slowdowns\n\n" + _planted(planted, spreads),
        f"## {DRAWN[1]}\n\n" + (_rivals(unchanged, plan) if draw else ""),
        "## A machine that is disturbed\n\n" + _disturbed(disturbed),
        "## The clock against other timers\n\n" + _timers(timings),
    ]
    return "\n\n".join(sections) + "\n"


def _origins(entries: Sequence[Entry], plan: Plan) -> str:
    if not entries:
        return "Nothing was collected yet."
    found: dict[tuple[str, str, str, str], list[Entry]] = {}
    for entry in entries:
        origin = entry.origin
        driver = origin.environment.versions.get("driver", "unknown")
        key = (origin.occasion, origin.environment.key, driver, origin.commit[:7])
        found.setdefault(key, []).append(entry)
    rows = [
        [
            occasion,
            min(entry.origin.date for entry in them)[:10],
            environment,
            driver,
            f"`{commit}`",
            *(str(sum(entry.what == what for entry in them)) for what in ("aa", "planted", "drift", "timer", "spread")),
        ]
        for (occasion, environment, driver, commit), them in found.items()
    ]
    titles = [
        "machine started",
        "date",
        "environment",
        "driver",
        "commit",
        "unchanged",
        "planted",
        "disturbed",
        "timers",
        "clocks",
    ]
    sources = "".join([*map(inspect.getsource, DECIDING), repr((CONTROLS, ORDERS))]).encode()
    digest = hashlib.sha256(b"".join(map(data.line, entries)) + repr(plan).encode() + sources).hexdigest()
    drawn = f"What is drawn further down is drawn from these data, by the same code and parameters: `{digest[:12]}`."
    return f"{table(titles, rows, left=5)}\n\n{drawn}"


def _unchanged(runs: Sequence[Contest], rule: ContestRule) -> str:
    if not runs:
        return "No run of unchanged code was collected yet."
    rows = []
    for suite in sorted({run.suite for run in runs}):
        them = [run for run in runs if run.suite == suite]
        verdicts = _verdicts(them)
        red = sum(any(v.state is State.REGRESSED for v in run.verdicts.values()) for run in them)
        rows.append(
            [
                suite,
                str(len(them)),
                str(len({run.origin.occasion for run in them})),
                str(len(verdicts)),
                *(str(sum(v.state is state for v in verdicts)) for state in (State.REGRESSED, State.IMPROVED)),
                str(sum(v.state is State.UNRESOLVED for v in verdicts)),
                str(sum(run.unfit is not None for run in them)),
                _share(red, len(them)),
                _seconds([run.seconds["screen"] for run in them if "screen" in run.seconds]),
                _seconds([run.seconds["whole"] for run in them if "whole" in run.seconds]),
            ]
        )
    titles = [
        "suite",
        "runs",
        "starts",
        "cases judged",
        "called slower",
        "called faster",
        "unresolved",
        "machine unfit",
    ]
    titles += ["runs with a red case", "screen, at most", "whole, at most"]
    text = table(titles, rows, left=1)
    again = [judged_again(run, rule) for run in runs]
    of_cases = [[v for v in found.verdicts if v.case in run.verdicts] for run, found in zip(runs, again, strict=True)]
    states = [{verdict.state for verdict in verdicts} for verdicts in of_cases]
    slower, faster = (sum(state in them for them in states) for state in (State.REGRESSED, State.IMPROVED))
    text += (
        "\n\nThese are the verdicts of the rule that each run was decided by. Judged again by the rule of today, a "
        f"case is called slower in {_share(slower, len(runs))} runs and faster in {_share(faster, len(runs))}; in "
        f"{sum(found.unfit is not None for found in again)} the machine seems unfit, so none is called."
    )
    held: dict[int, list[bool]] = {1: [], 2: []}
    for run, found, verdicts in zip(runs, again, of_cases, strict=True):
        fresh = {name for block in run.blocks if block.stage == 2 for name in block.visits}
        for verdict in verdicts:
            if verdict.low is not None and verdict.high is not None:
                stage = 2 if verdict.case in fresh.intersection(found.suspects) else 1
                held[stage].append(verdict.low <= 1 <= verdict.high)
    if held[1] and held[2]:
        text += (
            f" Of the intervals of head/base {_share(sum(held[2]), len(held[2]))} held 1 where stage 2 decided, and "
            f"{_share(sum(held[1]), len(held[1]))} where stage 1 did, which leaves to stage 2 what is not near 1."
        )
    wrong = sorted({v.case for v in _verdicts(runs) if v.state is State.REGRESSED})
    return text + (f"\n\nCalled slower though nothing had changed: {', '.join(wrong)}." if wrong else "")


def _made_up(runs: Sequence[Contest], plan: Plan) -> str:
    suite = measured(runs)
    if suite is None:
        return "This is drawn from the spreads of unchanged code, and no two processes of it were timed yet."
    found = false_alarms(suite, plan.rule, plan.made_up, SEED)
    return (
        f"Runs of {suite.size} cases, drawn with replacement from the {len(suite.cases)} that were timed, that screen "
        f"them in {suite.screens} block{'' if suite.screens == 1 else 's'} as the largest run did"
        f"{', and what this leaves unsettled in another' * (suite.screens < plan.rule.screen_blocks)}. Processes "
        "and visits scatter normally, by the standard deviations that these cases had and by what all cases of a "
        f"process shared ({suite.common:.2%}). A case was called slower in {_share(found.red, found.runs)} runs and "
        f"faster in {_share(found.green, found.runs)}; in {found.unfit} the machine seemed unfit, so none was called. "
        f"A run left {found.unresolved / found.runs:.1f} cases unresolved in the mean. Of the intervals of head/base "
        f"{found.held / found.intervals:.1%} held 1."
    )


def _verdicts(runs: Iterable[Contest]) -> list[Verdict]:
    return [verdict for run in runs for verdict in run.verdicts.values()]


def _spreads(runs: Sequence[Contest]) -> dict[str, float]:
    """Relative sd between the processes of one side in one run, by case: pooled over sides and runs."""
    squares: dict[str, list[tuple[float, int]]] = {}
    for run in runs:
        if run.what == "drift":
            continue
        medians: dict[tuple[str, str], list[float]] = {}
        for block in run.blocks:
            for name, visits in block.visits.items():
                for side in ("base", "head"):
                    logs = [math.log(visit.samples.median) for visit in visits if visit.side == side]
                    if logs:
                        medians.setdefault((name, side), []).append(math.fsum(logs) / len(logs))
        for (name, _), logs in medians.items():
            if len(logs) > 1:
                squares.setdefault(name, []).append((stats.variance(logs), len(logs) - 1))
    return {
        name: math.sqrt(math.fsum(v * df for v, df in found) / sum(df for _, df in found))
        for name, found in squares.items()
    }


def _processes(spreads: dict[str, float], runs: Sequence[Contest]) -> str:
    if not spreads:
        return "No case was timed in several processes yet."
    values = list(spreads.values())
    shares = [f"{stats.quantile(values, q):.2%}" for q in (0.1, 0.5, 0.9, 1.0)]
    steady = sum(value <= STEADY for value in values)
    text = (
        f"Relative standard deviation between processes of the same code, {len(values)} cases: "
        f"10 % of them below {shares[0]}, half below {shares[1]}, 90 % below {shares[2]}, the worst {shares[3]}. "
        f"{steady} of them are at most {STEADY:.1%}."
    )
    worst = sorted(spreads, key=lambda name: (-spreads[name], name))[:NOISIEST]
    commits = dict.fromkeys(run.origin.commit for run in sorted(runs, key=lambda run: run.origin.date))
    by_commit = {
        commit: them
        for commit in commits
        if not (them := _spreads([run for run in runs if run.origin.commit == commit])).keys().isdisjoint(worst)
    }
    newest = list(by_commit)[-NEWEST:]
    rows = [
        [name, f"{spreads[name]:.2%}"]
        + [f"{by_commit[commit][name]:.2%}" if name in by_commit[commit] else "" for commit in newest]
        for name in worst
    ]
    titles = ["the noisiest cases", "between processes", *(f"of `{commit[:7]}`" for commit in newest)]
    return text + "\n\n" + table(titles, rows, left=1)


def _starts(runs: Sequence[Contest]) -> str:
    found = {key: starts.apart(runs, key) for key in sorted({run.origin.environment.key for run in runs})}
    rows, late = [], ""
    for key, apart in found.items():
        if apart is not None:
            half, most, worst = (stats.quantile([*apart.cases.values()], q) for q in (0.5, 0.9, 1.0))
            sds = (half, most, worst, apart.session)
            rows.append([key, str(apart.count), str(len(apart.cases)), *(f"{sd:.2%}" for sd in sds)])
            for fills, seconds in apart.seconds.items():
                if seconds:
                    late += (
                        f"\n\n{key}: of {len(seconds)} calls of up to {starts.SHORT * 1e6:.0f} us that "
                        f"{'copy or fill' if fills else 'neither copy nor fill'} memory apart from their kernels the "
                        f"slowest start takes {stats.quantile(seconds, 0.5) * 1e6:.2f} us more than the fastest "
                        f"(median; {max(seconds) * 1e6:.2f} at most)."
                    )
    if not rows:
        return f"Fewer than {starts.FEWEST} starts of machines of one kind were collected yet."
    titles = ["environment", "starts", "cases", "half below", "90 % below", "the worst", "what a baseline carries"]
    return (
        "Relative standard deviation of a case's median between starts, each mostly on another GPU of the kind, and "
        "with whatever changed in the code between them. A baseline may carry what two starts differ by, in nine of "
        f"ten cases and without what short calls differ by in seconds; of another {Rule().session:.2%} is assumed.\n\n"
        + table(titles, rows, left=1)
        + late
    )


def _gates(runs: Sequence[Contest]) -> str:
    found = {key: gates.between(runs, key) for key in sorted({run.origin.environment.key for run in runs})}
    rows: list[list[str]] = []
    slower: set[str] = set()
    for key, gate in found.items():
        if gate is not None:
            called = [str(gate.called.get(state, 0)) for state in (State.REGRESSED, State.IMPROVED)]
            count, unresolved = sum(gate.states.values()), gate.states.get(State.UNRESOLVED, 0)
            rows.append([key, str(gate.starts), str(gate.pairs), *called, str(count), str(unresolved)])
            slower |= gate.cases
    if not rows:
        return "No two starts of machines of one kind were collected yet whose runs tell which calls fill memory."
    titles = ["environment", "starts", "pairs", "with a case called slower", "with one called faster"]
    titles += ["verdicts", "unresolved"]
    return (
        "Each start's runs are taken for a baseline, and each other's first processes are held against it by the "
        "default rule of `nox -s perf`, with two processes more where a case looks slower. Pairs share their starts, "
        "the code may have changed between them, and what the rule lets short calls differ by on another GPU was set "
        "with some of these data in view: so no interval is given.\n\n"
        + table(titles, rows, left=1)
        + (f"\n\nCalled slower: {', '.join(sorted(slower))}." if slower else "")
    )


def _planted(runs: Sequence[Contest], spreads: dict[str, float]) -> str:
    if not runs:
        return "No run with a planted slowdown was collected yet."
    trials: dict[tuple[float, str], list[tuple[float, State, bool | None]]] = {}
    seconds: dict[str, list[float]] = {}
    for run in runs:
        for name, planted in run.planted.items():
            verdict = run.verdicts[name]
            covered = None
            if verdict.low is not None and verdict.high is not None:
                covered = verdict.low <= 1 + planted.true <= verdict.high
            kind = KINDS[0] if spreads.get(name, math.inf) <= STEADY else KINDS[1]
            if verdict.floor is not None and verdict.floor > planted.asked:
                kind = KINDS[2]
            trials.setdefault((planted.asked, kind), []).append((planted.true, verdict.state, covered))
            visits = [visit for block in run.blocks for visit in block.visits.get(name, ()) if visit.side == "base"]
            seconds.setdefault(name, []).extend(visit.samples.median for visit in visits)
    rows = []
    for asked in sorted({asked for asked, _ in trials}):
        for kind in KINDS:
            if them := trials.get((asked, kind)):
                states = [state for _, state, _ in them]
                rows.append(
                    [
                        f"{asked:.1%}",
                        f"{stats.quantile([true for true, _, _ in them], 0.5):.2%}",
                        kind,
                        _share(states.count(State.REGRESSED), len(them)),
                        str(states.count(State.UNRESOLVED)),
                        str(states.count(State.UNCHANGED)),
                    ]
                )
    medians = [stats.quantile(found, 0.5) for found in seconds.values() if found]
    took = f" of {min(medians) * 1e6:.1f} to {max(medians) * 1e6:.0f} us" if medians else ""
    text = f"In {len(runs)} run{'' if len(runs) == 1 else 's'} {len(seconds)} cases{took} were slowed.\n\n"
    titles = ["planted", "measured apart (median)", "between processes", "called slower", "unresolved", "unchanged"]
    text += table(titles, rows, left=0)
    others = [v for run in runs for name, v in run.verdicts.items() if name not in run.planted]
    red = sum(v.state is State.REGRESSED for v in others)
    text += f"\n\nOf the {len(others)} verdicts on other cases in the same runs {red} were red."
    intervals = [covered for them in trials.values() for _, _, covered in them if covered is not None]
    if intervals:
        text += (
            f" The interval held the true slowdown in {_share(sum(intervals), len(intervals))} of the planted cases."
        )
    return text


def _rivals(runs: Sequence[Contest], plan: Plan) -> str:
    source = recorded(runs, plan.rule)
    if source is None:
        blocks = plan.rule.screen_blocks + plan.rule.confirm_blocks
        needed = f"{blocks} screening blocks of unchanged code"
        return f"This is drawn from {needed}, and no GPU at one start of a machine has them yet."
    drawn = "Recorded runs of unchanged code, drawn again: whole blocks of processes, their sides exchanged by chance."
    return f"{drawn} {comparison(compare(source, plan, SEED), plan.rule)}"


def comparison(rows: Iterable[Row], rule: ContestRule) -> str:
    """The table of what perfgate and others make of the same samples."""
    told = {"its own": "its own", "one": "one, its first visit", "as many": "as many as perfgate's run, pooled"}
    lines = [
        [row.rule, told[row.processes], _rate(*row.alarms), _share(*row.red)]
        + [_rate(*row.found[size]) if size in row.found else "" for size in SIZES]
        for row in rows
    ]
    titles = ["rule", "processes a side", "unchanged cases called slower", "unchanged runs with a red case"]
    titles += [f"+{size:.1%} found" for size in SIZES]
    least = rule.floor_seconds / rule.floor * 1e6
    return (
        f"Slowdowns are planted by a factor on the samples of some cases of {least:.0f} us and more: their floor is "
        f"{rule.floor:.0%}. perfgate screens in "
        f"{rule.screen_blocks} blocks and confirms its suspects in {rule.confirm_blocks} others at most; the last rows "
        "give a rival all the samples of as many blocks of the whole suite as take the same time on the GPU.\n\n"
        + table(titles, lines, left=2)
    )


def _disturbed(runs: Sequence[Contest]) -> str:
    if not runs:
        return "No run on a disturbed machine was collected yet."
    rows = []
    for how in sorted({run.disturbance for run in runs}):
        them = [run for run in runs if run.disturbance == how]
        verdicts = _verdicts(them)
        red = sum(v.state is State.REGRESSED for v in verdicts)
        unfit = sum(run.unfit is not None for run in them)
        rows.append([how, str(len(them)), str(len(verdicts)), str(red), str(unfit)])
    return table(["disturbance", "runs", "cases judged", "called slower", "runs that said so"], rows, left=1)


def _timers(timings: Sequence[Timing]) -> str:
    if not timings:
        return "The clock was not held against another timer yet."
    found: dict[str, dict[str, list[float]]] = {}
    for timing in timings:
        for kernel, seconds in timing.seconds.items():
            for timer, value in seconds.items():
                found.setdefault(kernel, {}).setdefault(timer, []).append(value)
    timers = {timer for kernel in found.values() for timer in kernel} - {"perfgate"}
    # what the clock says while another timer watches the same windows is what that one is held against
    beside = {timer: f"perfgate with {timer}" for timer in timers if f"perfgate with {timer}" in timers}
    others = sorted(timers - set(beside.values()))
    rows = []
    for kernel, by_timer in sorted(found.items(), key=lambda item: stats.quantile(item[1]["perfgate"], 0.5)):
        medians = {timer: stats.quantile(seconds, 0.5) for timer, seconds in by_timer.items()}
        row = [kernel, f"{medians['perfgate'] * 1e6:.2f}"]
        for timer in others:
            ours, theirs = medians.get(beside.get(timer, "perfgate")), medians.get(timer)
            if timer in beside:
                row.append("" if ours is None else f"{ours * 1e6:.2f}")
            row.append("" if theirs is None else f"{theirs * 1e6:.2f}")
            row.append("" if ours is None or theirs is None else f"{ours / theirs - 1:+.2%}")
        rows.append(row)
    titles = ["kernel", "perfgate, us"]
    for timer in others:
        titles += [f"{beside[timer]} at work, us"] if timer in beside else []
        titles += [f"{timer}, us", f"perfgate against {timer}"]
    text = f"Medians of {len(timings)} run{'' if len(timings) == 1 else 's'}."
    if "NVBench" in others:
        text += (
            " NVBench has one call between two events: what such a window takes for itself is in its durations, and "
            "perfgate takes it off its own."
        )
    return f"{text}\n\n{table(titles, rows, left=1)}"


def _share(hits: int, tries: int) -> str:
    """A count with the shares that it does not contradict."""
    if not tries:
        return ""
    low, high = binomial_interval(hits, tries)
    return f"{hits} of {tries} [{low:.1%}, {high:.1%}]"


def _rate(hits: int, tries: int) -> str:
    return f"{hits / tries:.1%}" if tries else ""


def _seconds(values: Sequence[float]) -> str:
    return f"{max(values):.0f} s" if values else ""
