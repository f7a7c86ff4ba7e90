"""The rules: an old and a new profile of one build, and what became of it.

Knows nothing of files, compilers or terminals. Each rule is a function of (old, new, architecture) that returns the
sentence to be said where it is broken:

    spills       local memory is used where it was not, enters the main loop, or doubles
    lost         a kind of matrix instruction or of asynchronous copy is gone
    exposed      a wait moved before the exponentials: fewer of them run under a product in flight
    serialised   the main loop waits twice as often a matrix instruction
    crowded      registers or shared memory took a step: fewer blocks fit on a multiprocessor
    unset        a uniform register is read that nothing has written, in the old profile or not: the compiler is wrong

What else differs is listed and fails nothing: a compiler that allots registers otherwise is not a slowdown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from perfgate.gate import Exit
from perfgate.static import occupancy, sass
from perfgate.static.profile import Profile

__all__ = ["RULES", "State", "Verdict", "exit_code", "judge", "judge_all"]

SLACK = 0.1
"""Share of a loop's exponentials that may leave the cover of a product: the scheduler moves a few across a wait."""


class State(StrEnum):
    """What can be said of a build: perfgate's words, and one that only profiles need."""

    REGRESSED = "regressed"
    REFUSED = "refused"
    MISSING = "missing"
    NEW = "new"
    CHANGED = "changed"
    """Not as it was, and no rule is broken."""
    UNCHANGED = "unchanged"


WORST_FIRST = tuple(State)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a build.

    Attributes:
        name: The build's.
        arch: The architecture's number.
        state: What can be said of it.
        old: The baseline's profile, if it has one.
        new: This run's, if it compiled.
        why: Sentences: the broken rules first, then what else differs.
    """

    name: str
    arch: int
    state: State
    old: Profile | None = None
    new: Profile | None = None
    why: tuple[str, ...] = ()


def spills(old: Profile, new: Profile, arch: int) -> str | None:
    """Local memory is used where it was not, enters the main loop, or doubles: its bytes, or its loads and stores."""
    before, after = _in_loop(old), _in_loop(new)
    if (new.stack or new.local) and not (old.stack or old.local):
        return f"spills: {new.stack} bytes a thread and {new.local} loads and stores of local memory, none before"
    if after and not before:
        return f"spills in the main loop: {after} loads and stores of local memory, none before"
    if new.stack >= 2 * old.stack > 0:
        return f"spills {new.stack} bytes a thread, {old.stack} before"
    if new.local >= 2 * old.local > 0:
        return f"spills: {new.local} loads and stores of local memory, {old.local} before"
    return None


def lost(old: Profile, new: Profile, arch: int) -> str | None:
    """A kind of matrix instruction or of asynchronous copy is gone."""
    gone = [
        kind for kind in (*sass.matrix(old.counts), *sass.COPIES) if old.counts.get(kind) and not new.counts.get(kind)
    ]
    if not gone:
        return None
    left = " ".join(sass.matrix(new.counts)) or "none"
    return f"lost {', '.join(f'{kind} ({old.counts[kind]} before)' for kind in gone)}; matrix instructions now: {left}"


def exposed(old: Profile, new: Profile, arch: int) -> str | None:
    """A wait moved before the exponentials: fewer of them run while a product is in flight."""
    if _cover(old) - _cover(new) <= SLACK:
        return None
    before, after = (f"{p.covered} of {p.loop.get(sass.EXPONENTIAL, 0)}" for p in (old, new))
    return f"a wait moved before the exponentials: {after} run under a product in flight, {before} before"


def serialised(old: Profile, new: Profile, arch: int) -> str | None:
    """The main loop waits at least twice as often a matrix instruction."""
    before, after = _waits(old), _waits(new)
    if not 0 < 2 * before <= after:
        return None
    rates = (f"{p.loop[sass.WAIT]} waits for {sum(sass.matrix(p.loop).values())} products" for p in (new, old))
    return "the main loop waits more often: {}, {} before".format(*rates)


def crowded(old: Profile, new: Profile, arch: int) -> str | None:
    """Fewer blocks fit on a multiprocessor, counted in warps where a block has another number of them."""
    limit = occupancy.limits(arch).block_shared
    if new.shared > limit:
        return f"asks for {new.shared} bytes of shared memory, a block can have {limit}"
    before, after = (p.blocks(arch) * p.warps for p in (old, new))
    if after >= before:
        return None
    parts = [
        f"{word} {was} to {now}"
        for word, was, now in (
            ("registers", old.registers, new.registers),
            ("shared memory", old.shared, new.shared),
            ("warps a block", old.warps, new.warps),
        )
        if was != now
    ]
    return f"{after} warps fit on a multiprocessor, {before} before: {', '.join(parts)}"


def unset(old: Profile, new: Profile, arch: int) -> str | None:
    """A uniform register is read that nothing has written: the compiler lost what should be in it."""
    if not new.unset:
        return None
    return f"reads {new.unset}, which nothing has written: the compiler is wrong, and so may be what is computed"


Rule = Callable[[Profile, Profile, int], str | None]
RULES: tuple[Rule, ...] = (unset, lost, spills, exposed, serialised, crowded)


def judge(name: str, arch: int, old: Profile | None, new: Profile | str | None) -> Verdict:
    """What became of one build; `new` is a sentence where it does not compile, None where it is not built any more."""
    if isinstance(new, str):
        return Verdict(name=name, arch=arch, state=State.REGRESSED, old=old, why=(f"does not compile: {new}",))
    if new is None:
        return Verdict(name=name, arch=arch, state=State.MISSING, old=old, why=("in the baseline, and not built",))
    if old is None:
        # against itself only what no kernel may do is a fault
        broken = [why for rule in RULES if (why := rule(new, new, arch))]
        state = State.REGRESSED if broken else State.NEW
        return Verdict(name=name, arch=arch, state=state, new=new, why=(*broken, "not in the baseline"))
    if old.compiler != new.compiler:
        why = f"compiled by {new.compiler}, the baseline by {old.compiler}: use that one, or renew the baseline"
        return Verdict(name=name, arch=arch, state=State.REFUSED, old=old, new=new, why=(why,))
    broken = [why for rule in RULES if (why := rule(old, new, arch))]
    other = list(differences(old, new, arch))
    state = State.REGRESSED if broken else State.CHANGED if other else State.UNCHANGED
    return Verdict(name=name, arch=arch, state=state, old=old, new=new, why=(*broken, *other))


def judge_all(arch: int, old: Mapping[str, Profile], new: Mapping[str, Profile | str]) -> list[Verdict]:
    """The verdicts of an architecture's builds, worst first, by name within a state."""
    verdicts = [judge(name, arch, old.get(name), new.get(name)) for name in old.keys() | new.keys()]
    return sorted(verdicts, key=lambda v: (WORST_FIRST.index(v.state), v.name))


def exit_code(verdicts: Iterable[Verdict], *, strict: bool = False) -> Exit:
    """The run's exit code; `strict` fails it for new and missing builds too."""
    states = {v.state for v in verdicts}
    if State.REGRESSED in states:
        return Exit.REGRESSED
    if State.REFUSED in states:
        return Exit.REFUSED
    compared = states & {State.CHANGED, State.UNCHANGED}
    if not compared or (strict and states & {State.NEW, State.MISSING}):
        return Exit.INCOMPLETE
    return Exit.OK


def differences(old: Profile, new: Profile, arch: int) -> Iterable[str]:
    """What differs, a phrase each; none for equal profiles."""
    for word in ("registers", "stack", "shared", "warps", "covered"):
        was, now = getattr(old, word), getattr(new, word)
        if was != now:
            yield f"{word} {was} to {now}"
    if (was := old.blocks(arch)) != (now := new.blocks(arch)):
        yield f"blocks a multiprocessor {was} to {now}"
    for kind in sorted(old.counts.keys() | new.counts.keys()):
        if (was := old.counts.get(kind, 0)) != (now := new.counts.get(kind, 0)):
            yield f"{kind} {was} to {now}"
    if old.unset != new.unset:
        yield f"read and written by nothing: {old.unset or 'none'} to {new.unset or 'none'}"
    if old.order != new.order:
        yield "another order in the main loop"
    elif old.loop != new.loop:
        yield "other numbers in the main loop"


def _in_loop(profile: Profile) -> int:
    return sum(profile.loop.get(kind, 0) for kind in sass.LOCAL)


def _cover(profile: Profile) -> float:
    exponentials = profile.loop.get(sass.EXPONENTIAL, 0)
    return profile.covered / exponentials if exponentials else 0.0


def _waits(profile: Profile) -> float:
    products = sum(sass.matrix(profile.loop).values())
    return profile.loop.get(sass.WAIT, 0) / products if products else 0.0
