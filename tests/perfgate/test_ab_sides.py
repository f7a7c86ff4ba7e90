"""Base against head: each side runs its own code, and a side that does not is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from perfgate.ab import crew, trees
from perfgate.ab.workers import Worker, WorkerDied
from perfgate.contest import Side
from perfgate.gate import Exit

from .ab_repository import KERNELS, Repository


def test_both_sides_measure_with_the_running_perfgate_and_run_their_own_code(repository: Repository) -> None:
    (repository.path / "src" / "perfgate").mkdir()
    repository.write("src/perfgate/__init__.py", "raise RuntimeError('not this one')\n")
    repository.commit("has a perfgate of its own")
    repository.slow("a")
    assert repository.ab() == Exit.REGRESSED


@pytest.mark.parametrize("other", ["base", "head"])
def test_what_a_side_runs_is_looked_at_where_the_others_worker_dies_of_the_question(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, other: Side
) -> None:
    looked: list[Side] = []

    class Dying(Worker):
        def receive(self) -> Mapping[str, Any]:
            said = super().receive()
            if "foreign" in said and self.side == other:
                raise WorkerDied(self.side, "died")
            return said

    def seen(side: Side, of: Side, found: Mapping[str, Any]) -> str | None:
        looked.append(side)
        return "not its own" if len(looked) > 1 else None

    monkeypatch.setattr(crew, "Worker", Dying)
    monkeypatch.setattr(crew, "not_its_own", seen)
    assert repository.ab("--base=HEAD") == Exit.REFUSED
    assert set(looked) == {"base", "head"} - {other}


def test_a_side_that_runs_the_others_code_is_refused(
    repository: Repository, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.git("mv", "src", "python")
    repository.commit("a place that nobody looks at")
    site = "import sys\nsys.path.append({!r})\n".format(str(repository.path / "python"))
    elsewhere = repository.path.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "sitecustomize.py").write_text(site)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(elsewhere)]))
    assert repository.ab("--base=HEAD") == Exit.REFUSED
    assert "the base runs code of the head: " in capfd.readouterr().err
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["python", os.environ["PYTHONPATH"]]))
    repository.journal.unlink()
    assert repository.ab("--base=HEAD") == Exit.OK


WRITES = """
import os, sys
from pathlib import Path
from types import ModuleType

path = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"], {path!r})
path.parent.mkdir(parents=True, exist_ok=True)
path.touch()
sys.modules[path.stem] = ModuleType(path.stem)
sys.modules[path.stem].__file__ = str(path)
"""


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("fr/cfrvet.py", Exit.OK),
        ("fr/cfrvet.main.so", Exit.OK),
        ("kernels2.py", Exit.REFUSED),
        ("fr/k.py", Exit.REFUSED),
    ],
)
def test_what_torch_compile_keeps_in_the_working_tree_is_nobodys_code(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, path: str, code: Exit
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(repository.path / "cache"))
    conftest = repository.path / "conftest.py"
    conftest.write_text(conftest.read_text() + WRITES.format(path=path))
    repository.commit("compiles")
    assert repository.ab("--base=HEAD", "--blocks=2") == code


@pytest.mark.parametrize("name", ["TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"])
def test_what_a_compiler_keeps_in_the_working_tree_is_no_change_of_it(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    cache = repository.path / "cache"
    cache.mkdir()
    (cache / "kept.py").write_text("")
    repository.commit("has a file there")
    monkeypatch.setenv(name, str(cache))
    (cache / "written.py").write_text("")
    assert not trees.head(repository.path).dirty
    (cache / "kept.py").write_text("x = 1")
    assert trees.head(repository.path).dirty
    repository.git("checkout", "-q", "cache")
    (repository.path / "mine.py").write_text("")
    assert trees.head(repository.path).dirty
    monkeypatch.setenv(name, str(repository.path))
    assert trees.head(repository.path).dirty


def installed(repository: Repository, *, copied: bool) -> Path:
    """Where pip would have put the package, from the tree; a copy of it, or the path of the tree's (editable)."""
    site = repository.path.parent / "site-packages"
    information = site / "kernels-1.dist-info"
    information.mkdir(parents=True, exist_ok=True)
    origin = {"url": f"file://{repository.path}", "dir_info": {} if copied else {"editable": True}}
    (information / "direct_url.json").write_text(json.dumps(origin))
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 1\n")
    (information / "RECORD").write_text("kernels.py,,\n" if copied else "kernels_finder.py,,\n")
    if copied:
        (site / "kernels.py").write_text(KERNELS)
    else:
        (site / "kernels.pth").write_text("import kernels_finder\n")
        (site / "kernels_finder.py").write_text(f"import sys\nsys.path.append({str(repository.path / 'src')!r})\n")
    return site


def test_an_installed_copy_of_what_a_tree_holds_is_refused(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    site = installed(repository, copied=True)
    conftest = repository.path / "conftest.py"
    conftest.write_text(f"import sys\nsys.path.insert(0, {str(site)!r})\n{conftest.read_text()}")
    repository.commit("finds what is installed first")
    repository.slow("b")
    assert repository.ab() == Exit.REFUSED
    said = capfd.readouterr().err
    assert f"code that is not its tree's: expected kernels from the tree, got {site}/kernels.py. Uninstall that" in said


def test_an_installed_copy_is_refused_also_where_nobody_finds_the_trees_own(
    repository: Repository, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = installed(repository, copied=True)
    repository.git("mv", "src", "python")
    repository.commit("a place that nobody looks at")
    repository.write("python/kernels.py", KERNELS.replace("2e-3", "3e-3"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(site)]))
    assert repository.ab() == Exit.REFUSED
    said = capfd.readouterr().err
    assert f"expected kernels from each tree, got {site}/kernels.py. Uninstall it" in said


def test_code_that_is_loaded_late_is_looked_at_too(repository: Repository, capfd: pytest.CaptureFixture[str]) -> None:
    site = installed(repository, copied=True)
    suite = repository.path / "test_speed.py"
    late = f"    import sys; sys.path.insert(0, {str(site)!r})\n    from kernels import SECONDS\n    gpu_benchmark"
    text = suite.read_text().replace("from kernels import SECONDS\n", "").replace('"case", SECONDS', '"case", "abc"')
    suite.write_text(text.replace("    gpu_benchmark", late, 1))
    repository.commit("loads late")
    repository.slow("b")
    assert repository.ab() == Exit.REFUSED
    assert "code that is not its tree's: expected kernels from the tree" in capfd.readouterr().out


def test_an_editable_installation_is_no_hindrance(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    site = installed(repository, copied=False)
    (site / "sitecustomize.py").write_text(f"import site\nsite.addsitedir({str(site)!r})\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(site)]))
    repository.slow("b")
    assert repository.ab() == Exit.REGRESSED
    assert repository.states()["speed/b"] == "regressed"
