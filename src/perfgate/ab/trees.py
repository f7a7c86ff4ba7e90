"""Two trees of one repository: the head, which is the working tree as it is, and the base, checked out beside it.

    <temporary directory>/base       a git worktree, detached; removed whatever happens
    <temporary directory>/harness    a copy of the perfgate that runs now: both sides measure with it

The temporary directory is locked for as long as it is in use. One without a lock is a killed run's, and the next run
removes it. Nothing in the working tree is touched; .git has a worktree's entry for as long as the base is there.
"""

from __future__ import annotations

import compileall
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import perfgate
from perfgate import fresh
from perfgate.contest import Side

__all__ = ["BuildFailed", "Tree", "TreeError", "Trees", "build", "compared_with", "fingerprint", "head", "opened"]

PREFIX = "perfgate-ab-"
LOCK = "lock"
UPSTREAM = ("origin/HEAD", "origin/main", "origin/master")
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
UNCOMMITTED = "with uncommitted changes"
"""The end of the words for a head of which not all is in its commit."""


class TreeError(ValueError):
    """The revisions cannot be had: no git, no repository, no such revision."""


class BuildFailed(Exception):
    """The command that builds a tree failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """One side's files.

    Attributes:
        side: Which one.
        root: The top of the tree.
        start: Where commands run: the same place below `root` on both sides.
        commit: The commit's full name.
        words: The commit as a reader wants it: ``1a2b3c4 Subject``, and what is not committed.
        dirty: Whether there are uncommitted changes in it.
    """

    side: Side
    root: Path
    start: Path
    commit: str
    words: str
    dirty: bool = False

    @property
    def places(self) -> list[Path]:
        """Where Python finds what is the tree's own."""
        own = (tree / place for place in ("src", "") for tree in dict.fromkeys((self.start, self.root)))
        return [place for place in own if place.is_dir()]

    def environment(self, harness: Path, head: Tree) -> dict[str, str]:
        """The environment of this side's processes.

        Python finds the harness first, then what is the tree's, then what it found before; what lay in the head's tree
        is taken from this one.
        """
        before = [Path(entry).absolute() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        paths = [harness, *self.places, *(self.instead(p, head) for p in before)]
        return clean() | {
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(map(str, paths))),
            "PYTHONDONTWRITEBYTECODE": "1",  # a tree is not written to
        }

    def instead(self, path: Path, head: Tree) -> Path:
        """This path, or its like in this tree if it lies in the head's."""
        resolved = path.resolve()
        return self.root / resolved.relative_to(head.root) if resolved.is_relative_to(head.root) else path

    def arguments(self, arguments: Sequence[str], head: Tree) -> tuple[list[str], bool]:
        """pytest's arguments for this tree, and whether there is anything to collect.

        Paths that the head has and this tree lacks are left out; a suite with none of its paths is not there.
        """
        kept, named, found = [], 0, 0
        for argument in arguments:
            path, mark, inside = argument.partition("::")
            if argument.startswith("-") or not (head.start / path).exists():
                kept.append(argument)
                continue
            named += 1
            here = self.instead((head.start / path).absolute(), head)
            if here.exists():
                found += 1
                kept.append(f"{os.path.relpath(here, self.start)}{mark}{inside}")
        return kept, self.start.is_dir() and (found > 0 or not named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trees:
    """Both sides' files, and the measuring code that both run."""

    base: Tree
    head: Tree
    harness: Path

    def __getitem__(self, side: Side) -> Tree:
        return self.base if side == "base" else self.head

    def environment(self, side: Side) -> dict[str, str]:
        """The environment of a side's processes."""
        return self[side].environment(self.harness, self.head)


def clean() -> dict[str, str]:
    """This process's environment without what git's hooks and another pytest would have said there."""
    theirs = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "PYTEST_CURRENT_TEST")
    return {k: v for k, v in os.environ.items() if k not in theirs and not k.startswith("PYTEST_XDIST")}


def git(*arguments: str, at: Path) -> str:
    """Run git there and return what it says.

    Raises:
        TreeError: With the first line of what git says is wrong.
    """
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, cwd=at, env=clean(), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise TreeError("git is not installed, and a base is checked out with it") from None
    if done.returncode:
        said = next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise TreeError(f"git {arguments[0]}: {said.removeprefix('fatal: ')}")
    return done.stdout.strip()


def head(here: Path) -> Tree:
    """The working tree around this directory.

    Raises:
        TreeError: If it is in no git repository, or there is no commit yet.
    """
    root = Path(git("rev-parse", "--show-toplevel", at=here)).resolve()
    commit = _commit("HEAD", root)
    ours = [":(exclude,glob)**/.perfgate/**", *(f":(exclude,literal){cache}" for cache in _caches(root))]
    seen = (git("diff", "--name-only", "HEAD", at=root), git("status", "--porcelain", "--", ".", *ours, at=root))
    dirty = any(seen)
    words = _words(commit, root) + (f" {UNCOMMITTED}" if dirty else "")
    return Tree(side="head", root=root, start=here.resolve(), commit=commit, words=words, dirty=dirty)


def _caches(root: Path) -> list[Path]:
    """Where in a tree compilers keep what they wrote; untracked files there are nobody's edits."""
    places = [Path(value).resolve() for name in CACHES if (value := os.environ.get(name))]
    return [place.relative_to(root) for place in places if place != root and place.is_relative_to(root)]


def compared_with(wanted: str | None, head: Tree) -> tuple[str, str]:
    """The base's commit and how it was found.

    What is wanted, or where the head left the upstream's main branch; with uncommitted changes on that branch itself,
    or without an upstream, the last commit.

    Raises:
        TreeError: If there is no such commit, or nothing to compare.
    """
    if wanted is not None:
        return _commit(wanted, head.root), wanted
    for upstream in UPSTREAM:
        try:
            common = git("merge-base", "HEAD", upstream, at=head.root)
        except TreeError:
            continue
        if common != head.commit:
            return common, f"where HEAD left {upstream}"
        if not head.dirty:
            raise TreeError(f"nothing differs: HEAD is in {upstream} and nothing is uncommitted; give --base REF")
        break
    if not head.dirty:
        raise TreeError(f"there is none of {', '.join(UPSTREAM)} to compare with: give --base REF")
    return head.commit, "HEAD, for the changes are not committed"


def fingerprint(tree: Tree) -> str:
    """What changes when a tracked file of the tree or its commit does."""
    text = git("rev-parse", "HEAD", at=tree.root) + git("diff", "--no-ext-diff", "--binary", "HEAD", at=tree.root)
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


@contextlib.contextmanager
def opened(head: Tree, commit: str) -> Iterator[Trees]:
    """Check out the base beside the head, with a copy of the harness; on exit both are gone.

    Raises:
        TreeError: If it cannot be checked out.
    """
    _sweep(head.root)
    place = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    try:
        if place.is_relative_to(head.root):
            raise TreeError(f"temporary files are kept in the repository ({place.parent}): set TMPDIR to another place")
        with (place / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            root = place / "base"
            # a repository's hooks are made for people who check out
            git("-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", str(root), commit, at=head.root)
            start = root / head.start.relative_to(head.root)
            base = Tree(side="base", root=root, start=start, commit=commit, words=_words(commit, head.root))
            yield Trees(base=base, head=head, harness=_harness(place))
    finally:
        _remove(place, head.root)


def build(command: str, trees: Trees, side: Side, log: Path) -> None:
    """Run a shell command in a tree.

    Raises:
        BuildFailed: With the end of what it said.
    """
    tree = trees[side]
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            shell=True,
            cwd=tree.start,
            env=trees.environment(side),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = child.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
    if code:
        raise BuildFailed(f"--build failed in the {side}'s tree with exit code {code}; its end:\n{fresh.tail(log)}")


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let nobody interrupt what must be done to its end; who tried does so after it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _commit(name: str, root: Path) -> str:
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", at=root)
    except TreeError:
        raise TreeError(f"there is no commit {name!r} in {root}: fetch it, or give another --base") from None


def _words(commit: str, root: Path) -> str:
    return git("log", "-1", "--format=%h %s", commit, at=root)


def _harness(place: Path) -> Path:
    """A copy of this perfgate alone, so that no edit meanwhile and neither tree's own perfgate is measured with."""
    source = Path(perfgate.__file__).parent
    shutil.copytree(source, place / "harness" / "perfgate", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(place / "harness", quiet=2)
    return place / "harness"


def _sweep(root: Path) -> None:
    """Remove what killed runs left: worktrees of ours whose lock is there and nobody holds."""
    for line in git("worktree", "list", "--porcelain", at=root).splitlines():
        path = Path(line.removeprefix("worktree "))
        ours = line.startswith("worktree ") and path.name == "base" and path.parent.name.startswith(PREFIX)
        if ours and (path.parent / LOCK).is_file() and not _held(path.parent / LOCK):
            _remove(path.parent, root)


def _held(lock: Path) -> bool:
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _remove(place: Path, root: Path) -> None:
    with undisturbed():
        with contextlib.suppress(TreeError):  # it was perhaps never added
            git("worktree", "remove", "--force", "--force", str(place / "base"), at=root)
        shutil.rmtree(place, ignore_errors=True)
        if place.exists():
            print(f"perfgate: {place} could not be removed", file=sys.stderr)
