"""The project's own files agree with each other: metadata, pins, commands, documents, import contracts."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from perfgate.__main__ import main
from perfgate.gate import Exit

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOXFILE = ast.parse((ROOT / "noxfile.py").read_text())
GROUPS: dict[str, list[Any]] = PYPROJECT["dependency-groups"]
CONTRACTS = {contract["name"]: contract for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}


def ranges() -> dict[str, Requirement]:
    project = PYPROJECT["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def pins() -> list[Requirement]:
    return [Requirement(line) for group in GROUPS.values() for line in group if isinstance(line, str)]


def sessions() -> dict[str, ast.FunctionDef]:
    functions = [node for node in NOXFILE.body if isinstance(node, ast.FunctionDef)]
    return {f.name: f for f in functions if any("nox.session" in ast.unparse(d) for d in f.decorator_list)}


def modules(package: str) -> set[str]:
    files = (ROOT / "src" / package).iterdir()
    names = {path.stem for path in files if path.suffix == ".py" or (path / "__init__.py").exists()}
    return names - {"__init__"}


def test_a_pin_is_one_exact_version() -> None:
    assert [str(pin) for pin in pins() if not re.fullmatch(r"==[\d.]+", str(pin.specifier))] == []


def test_the_declared_ranges_take_the_tested_set() -> None:
    declared = ranges()
    tested = {pin.name: str(pin.specifier).removeprefix("==") for pin in pins()}
    required = {Requirement(line).name for line in PYPROJECT["project"]["dependencies"]}
    assert required <= tested.keys()
    assert [n for n, version in tested.items() if n in declared and version not in declared[n].specifier] == []


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_each_python_that_ci_tests_is_declared(python: str) -> None:
    assert python in SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert f"Programming Language :: Python :: {python}" in PYPROJECT["project"]["classifiers"]
    assert f'"{python}"' in (ROOT / ".github/workflows/ci.yml").read_text()


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    versions = re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert versions[0] == PYPROJECT["project"]["version"]


def test_an_installed_distribution_is_this_version_and_brings_the_plugin() -> None:
    try:
        distribution = importlib.metadata.distribution(PYPROJECT["project"]["name"])
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the packages are used from the checkout")
    assert distribution.version == PYPROJECT["project"]["version"]
    plugins = {entry.name: entry.value for entry in distribution.entry_points if entry.group == "pytest11"}
    assert plugins == PYPROJECT["project"]["entry-points"]["pytest11"]


def test_the_wheel_holds_both_typed_packages() -> None:
    packages = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["src/perfgate", "src/attnkit"]
    assert [f for p in packages for f in ("__init__.py", "py.typed") if not (ROOT / p / f).exists()] == []


def test_every_session_has_a_docstring_of_one_line() -> None:
    docstrings = {name: ast.get_docstring(function) or "" for name, function in sessions().items()}
    assert [name for name, text in docstrings.items() if not re.fullmatch(r"[^\n]+\.", text)] == []


def test_every_group_that_a_session_installs_exists() -> None:
    calls = [node for node in ast.walk(NOXFILE) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    strings = {
        "pins": lambda call: call.args,
        "provision": lambda call: call.args[1:],
        "provision_without_torch": lambda call: call.args[2:],
    }
    asked = {
        argument.value
        for call in calls
        if call.func.id in strings
        for argument in strings[call.func.id](call)
        if isinstance(argument, ast.Constant)
    }
    assert asked == {"torch", "test", "perf", "report", "lint", "types", "kernels"}
    assert asked <= GROUPS.keys()


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", "docs/design.md", ".ci/run", ".github/workflows/perf.yml"]
)
def test_every_nox_command_in_a_document_is_a_session(document: str) -> None:
    named = re.findall(r"nox(?: --[\w-]+)* -s ((?:[a-z]+ ?)+)", (ROOT / document).read_text())
    assert named
    assert {name for words in named for name in words.split() if name not in sessions()} == set()


def test_the_readme_has_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "$ pip install nox && nox -s perf\n$ nox -s tests\n" in readme


def test_the_readme_has_every_exit_code() -> None:
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert [int(row) for row in rows] == [int(code) for code in Exit]


def test_ci_runs_the_tests_as_the_readme_does() -> None:
    run = (ROOT / ".ci/run").read_text()
    assert re.search(r"/nox [^\n]*-s lint tests ", run)
    named = {name for words in re.findall(r"/nox [^\n]*-s ((?:[a-z]+ )+)", run) for name in words.split()}
    assert named == {"lint", "types", "tests", "mutants", "kernels"}


def test_markers_of_generated_parts_come_in_pairs() -> None:
    markers = re.findall(r"<!-- (generated: \w+|end) -->", (ROOT / "README.md").read_text())
    assert markers
    assert [marker == "end" for marker in markers] == [False, True] * (len(markers) // 2)


@pytest.mark.parametrize(
    ("name", "source", "forbidden"),
    [
        ("perfgate knows nothing of attention", "perfgate", {"attnkit"}),
        ("attnkit knows nothing of tests and timing", "attnkit", {"perfgate", "pytest", "hypothesis"}),
        ("only perfgate.plugin imports pytest", "perfgate", {"pytest"}),
        ("only the CUDA clock and what it stands on import torch", "perfgate", {"torch"}),
        ("variants do not import the oracle", "attnkit.variants", {"attnkit.oracle"}),
    ],
)
def test_the_import_contracts_are_there(name: str, source: str, forbidden: set[str]) -> None:
    contract = CONTRACTS[name]
    assert contract["type"] == "forbidden"
    assert contract["source_modules"] == [source]
    assert forbidden <= set(contract["forbidden_modules"])


@pytest.mark.parametrize("package", ["perfgate", "attnkit"])
def test_every_module_has_its_layer(package: str) -> None:
    (contract,) = [c for c in CONTRACTS.values() if c.get("containers") == [package]]
    layers = set(re.findall(r"\w+", " ".join(contract["layers"])))
    assert modules(package) <= layers
    assert contract["exhaustive"] is True


@pytest.mark.parametrize("package", ["perfgate", "attnkit"])
def test_the_table_of_parts_has_every_module_and_none_imports_one_below_it(package: str) -> None:
    _, _, table = (ROOT / "docs/design.md").read_text().partition(f"| module of {package} | knows |\n|---|---|\n")
    rows = [line.split("|")[1] for line in table.partition("\n\n")[0].splitlines()]
    place = {name: i for i, row in enumerate(rows) for name in re.findall(r"`(\w+)/?`", row)}
    assert modules(package) - place.keys() == set()
    upwards = []
    for path in (ROOT / "src" / package).rglob("*.py"):
        part = path.relative_to(ROOT / "src" / package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                first, *inside = node.module.split(".")
                names = inside[:1] or [alias.name for alias in node.names]
                upwards += [
                    (part, name)
                    for name in names
                    if first == package and part in place and place.get(name, -1) > place[part]
                ]
    assert upwards == []


@pytest.mark.parametrize("document", ["README.md", "docs/forward.svg"])
def test_what_is_generated_of_the_committed_baseline_is_of_it(document: str, tmp_path: Path) -> None:
    """By the commands that CONTRIBUTING.md has for it."""
    if document.endswith(".svg"):
        pytest.importorskip("matplotlib")
    block = re.search(r"```console\n(\$ b=.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert block
    first, *commands = block[1].replace("\\\n", " ").splitlines()
    (command,) = (each for each in commands if f"--out {document}" in each)
    shutil.copy(ROOT / document, tmp_path / "copy")
    arguments = shlex.split(command.partition(" -- ")[2].replace("$b", str(ROOT / first.removeprefix("$ b="))))
    arguments[arguments.index(document)] = str(tmp_path / "copy")
    if document.endswith(".md"):  # the table that is there must not be what is compared
        text = (tmp_path / "copy").read_text()
        begin, end = text.index("<!-- generated: table -->\n") + 26, text.index("<!-- end -->")
        (tmp_path / "copy").write_text(text[:begin] + text[end:])
    assert main(["report", *arguments]) == 0
    assert (tmp_path / "copy").read_text() == (ROOT / document).read_text()
