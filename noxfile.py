"""The project's commands; `nox -l` lists them, and what follows `--` goes to pytest (or to perfgate).

A session runs in a virtualenv of its own, with the pinned and tested set of pyproject.toml's dependency groups.
Torch is not installed where it is there already:

- `nox --no-venv -s ...` installs nothing. It runs the Python that has torch, with the packages of this checkout.
- Where the Python that runs nox is no virtualenv and has a torch in our range (a container made for GPU work), the
  sessions' virtualenvs see that torch, and only the rest is installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
SRC = Path("src").resolve()
RESULTS = Path(".perfgate")

# Asked of the Python that will run a session: what has to be known before pytest starts there.
PROBE = """
import importlib.metadata, importlib.util, json, torch
print(json.dumps({
    "perfgate": bool(importlib.metadata.entry_points(group="pytest11", name="perfgate")),
    "xdist": importlib.util.find_spec("xdist") is not None,
    "timeout": importlib.util.find_spec("pytest_timeout") is not None,
    "gpu": torch.cuda.is_available(),
}))
"""

# What is measured of the full suite for docs/inference.md: Llama-2-7B's ladder; its first and last rungs at longer
# contexts, and the first and `batched` with more sequences; its weights times one row and eight, attention on caches of
# a thousand keys and more, and the block over the length of the sequence.
LADDER = (
    "(test_llama and (b1-c256 or ((matmul or persistent) and (b1-c512 or b1-c4000))"
    " or ((matmul or batched) and (b16 or b64))))"
    " or (test_linear and (m1- or m8-))"
    " or (test_decode and (skv1024 or skv4096) and (b1- or b32-) and not naive)"
    " or (test_block and b4-s and (naive or sdpa_flash or sdpa_cudnn or triton_flash))"
)

# Fair and steady host timings: one thread (several sit in slow modes for a whole process), and an allocator that keeps
# its memory as the GPU's does (glibc maps and unmaps each large temporary, which doubles the naive variant's time).
HOST_TIMING = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30)}


def torch_there() -> str | None:
    """Return the version of the torch that a virtualenv made by this Python can see, if our range takes it."""
    if sys.prefix != sys.base_prefix:
        return None  # a virtualenv made from a virtualenv sees the packages of neither
    accepted = next(r for r in map(Requirement, PYPROJECT["project"]["dependencies"]) if r.name == "torch")
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    return version if accepted.specifier.contains(version, prereleases=True) else None


PATIENCE = 60.0
"""Seconds that what Ctrl-C interrupts has for saying what it knows and tidying up; nox's own limit is half of one."""
TORCH = torch_there()
TORCH_ENVIRONMENT = ["--system-site-packages"] if TORCH else []


@dataclass(frozen=True)
class Target:
    """The Python that a session runs, its environment variables, and what PROBE found in it."""

    session: nox.Session
    python: str
    env: dict[str, str]
    found: dict[str, bool]

    def run(self, *args: str, env: dict[str, str] | None = None, codes: tuple[int, ...] = (0,)) -> None:
        """Run this Python; what the caller's own environment sets wins over `env`."""
        defaults = {name: value for name, value in (env or {}).items() if name not in os.environ}
        self.session.run(self.python, *args, env=self.env | defaults, success_codes=codes, interrupt_timeout=PATIENCE)

    def pytest(
        self, default: str, *options: str, env: dict[str, str] | None = None, codes: tuple[int, ...] = (0,)
    ) -> None:
        """Run pytest on `default`, or on the paths among the session's arguments (those with a slash)."""
        arguments = [*options, *paths(self.session, default), *self.session.posargs]
        self.run("-m", "pytest", *arguments, env=env, codes=codes)


def paths(session: nox.Session, default: str) -> list[str]:
    """Return the default path, or nothing where the arguments have one: with a slash, as a word after -k has none."""
    given = any("/" in arg and Path(arg.partition("::")[0]).exists() for arg in session.posargs)
    return [] if given else [default]


def pins(*groups: str) -> list[str]:
    """Return the pinned requirements of these dependency groups."""
    return list(nox.project.dependency_groups(PYPROJECT, *groups))


def from_checkout() -> dict[str, str]:
    """Return the environment in which Python finds the packages of this checkout without installing them."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(SRC), os.environ.get("PYTHONPATH", "")]))}


def has(python: str, module: str) -> bool:
    """Say whether this Python has that module."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def python_there(session: nox.Session, module: str) -> str:
    """Return the Python to use with --no-venv: nox's own or the one on PATH, whichever has the module."""
    candidates = [sys.executable, shutil.which("python"), shutil.which("python3")]
    for python in filter(None, candidates):
        if has(python, module):
            session.log(f"nothing is installed: using {python}, which has {module}")
            return python
    session.error(f"--no-venv needs a Python with {module}, got {candidates}: activate one, or leave --no-venv out")


def provision(session: nox.Session, *groups: str) -> Target:
    """Return a Python with torch, these groups and both packages: a virtualenv's, or with --no-venv the one there."""
    env: dict[str, str] = {}
    if session.venv_backend == "none":
        python = python_there(session, "torch")
        env |= from_checkout()
    else:
        python = "python"
        torch = [f"torch=={TORCH}"] if TORCH else pins("torch")
        session.install(*torch, *pins(*groups), "--editable", ".")
    answer = session.run(python, "-c", PROBE, env=env, silent=True, log=False)
    found = dict.fromkeys(["perfgate", "xdist", "timeout", "gpu"], False)
    if isinstance(answer, str):  # with --install-only there is none
        found = json.loads(answer.splitlines()[-1])
    if not found["perfgate"]:
        env["PYTEST_PLUGINS"] = "perfgate.plugin"  # not installed, hence no entry point
    return Target(session, python, env, found)


def provision_without_torch(session: nox.Session, module: str, *groups: str) -> Target:
    """Return a Python with these groups (with --no-venv: the one with the module) and the packages of the checkout."""
    if session.venv_backend == "none":
        python = python_there(session, module)
    else:
        python = "python"
        session.install(*pins(*groups))
    return Target(session, python, from_checkout(), found={})


@nox.session(venv_params=TORCH_ENVIRONMENT)
def tests(session: nox.Session) -> None:
    """Test both packages, on as many processes as there are cores; what times a GPU runs afterwards, alone."""
    target = provision(session, "test")
    cores = len(os.sched_getaffinity(0))
    options = ["--timeout=300"] if target.found["timeout"] else []
    if not target.found["xdist"] or cores == 1:
        target.pytest("tests", *options)
        return
    many = [*options, f"--numprocesses={min(cores, 16)}", "--dist=worksteal"]
    env = {"OMP_NUM_THREADS": "1"}  # a process a core is enough
    if not target.found["gpu"]:
        target.pytest("tests", *many, env=env)
        return
    some_or_none = (0, 5)  # pytest's code for no tests: those that were chosen may all be of the other part
    try:
        target.pytest("tests", *many, "-m", "not times_gpu", env=env, codes=some_or_none)
    finally:
        target.pytest("tests", *options, "-m", "times_gpu", codes=some_or_none)


@nox.session(venv_params=TORCH_ENVIRONMENT)
def mutants(session: nox.Session) -> None:
    """Plant bugs and see that the tests' laws find them all; `-- flash` takes those with that in their name."""
    target = provision(session, "test")
    target.env["PYTHONPATH"] = from_checkout()["PYTHONPATH"]  # the laws' modules beside the copy with the bug in it
    target.run("-m", "tests.mutants", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(venv_params=TORCH_ENVIRONMENT)
def fuzz(session: nox.Session) -> None:
    """Put thousands of drawn problems to every variant; .perfgate/fuzz.json has failures and errors."""
    target = provision(session, "test")
    target.env["PYTHONPATH"] = from_checkout()["PYTHONPATH"]  # the tests' own modules are not installed
    RESULTS.mkdir(exist_ok=True)
    target.run("-m", "tests.fuzz", *session.posargs)


@nox.session(venv_params=TORCH_ENVIRONMENT)
def perf(session: nox.Session) -> None:
    """Time the suites and hold them against baselines/; the run's JSON is .perfgate/perf.json."""
    target = provision(session, "perf")
    RESULTS.mkdir(exist_ok=True)
    arguments = [f"--benchmark-json={RESULTS / 'perf.json'}", *session.posargs]
    env = {} if target.found["gpu"] else HOST_TIMING
    target.run("-m", "perfgate", "gate", *paths(session, "perf"), "--", *arguments, env=env)


@nox.session(venv_params=TORCH_ENVIRONMENT)
def ladder(session: nox.Session) -> None:
    """Time inference on a GPU, rung by rung, and write docs/inference.md; `-- FILE ...` writes it of these."""
    target = provision(session, "perf", "report")
    files = list(session.posargs)
    if not files:
        RESULTS.mkdir(exist_ok=True)
        files = [str(RESULTS / "ladder.json"), str(RESULTS / "latency.json")]
        timed = ["--perf-suite=full", "-k", LADDER, "--benchmark-only", f"--benchmark-json={files[0]}"]
        # what fails is said on the page, and does not cost what was timed
        target.run("-m", "pytest", "perf", "--perf-device=cuda", *timed, codes=(0, 1))
        target.run("-m", "perf.block_latency", "--out", files[1])
    target.run("-m", "perf.inference", *files)


@nox.session(venv_params=TORCH_ENVIRONMENT)
def ab(session: nox.Session) -> None:
    """Time the working tree against another commit (`-- BASE`, or where it left origin/main), in turn on one device."""
    target = provision(session, "perf")
    arguments = list(session.posargs)
    first = arguments[0] if arguments else "-"
    if not first.startswith("-") and not Path(first.partition("::")[0]).exists():
        arguments[0] = f"--base={first}"
    env = {} if target.found["gpu"] else HOST_TIMING
    target.run("-m", "perfgate", "ab", *paths(session, "perf"), *arguments, env=env)


@nox.session(venv_params=TORCH_ENVIRONMENT)
def baseline(session: nox.Session) -> None:
    """Measure this machine's baseline in fresh processes and file it under baselines/."""
    target = provision(session, "perf")
    arguments = [*paths(session, "perf"), *session.posargs]
    target.run("-m", "perfgate", "baseline", *arguments, env={} if target.found["gpu"] else HOST_TIMING)


@nox.session(venv_params=TORCH_ENVIRONMENT)
def kernels(session: nox.Session) -> None:
    """Compile our kernels for GPUs that are not here and compare with baselines/static; `-- --renew` renews those."""
    target = provision(session)
    if session.venv_backend != "none":
        session.install("--no-deps", *pins("kernels"))  # torch's CUDA build asks for others and is not used
    target.run("-m", "perfgate", "static", "attnkit.ahead", *session.posargs)


@nox.session
def report(session: nox.Session) -> None:
    """Write the tables and plots of measured results."""
    target = provision_without_torch(session, "matplotlib", "perf", "report")
    target.run("-m", "perfgate", "report", *session.posargs)


@nox.session
def calibrate(session: nox.Session) -> None:
    """Write docs/trust.md, how often perfgate cries wolf and what it finds; `-- add FILE` adds collected runs first."""
    target = provision_without_torch(session, "pytest_benchmark", "perf")
    if session.posargs:
        target.run("-m", "perfgate", "calibrate", *session.posargs)
    target.run("-m", "perfgate", "calibrate", "page")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and who imports whom; `-- --fix` repairs what can be repaired."""
    target = provision_without_torch(session, "ruff", "lint")
    target.run("-m", "ruff", "check", *session.posargs)
    target.run("-m", "ruff", "format", *([] if "--fix" in session.posargs else ["--check"]))
    target.run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()")


@nox.session(venv_params=TORCH_ENVIRONMENT)
def types(session: nox.Session) -> None:
    """Check the types: strictly in perfgate."""
    provision(session, "types").run("-m", "mypy", *session.posargs)


if __name__ == "__main__":
    nox.main()
