"""What nox starts has time to end, and what times a GPU is not started without one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.perfgate.reported import H200

pytest.importorskip("nox")
ROOT = Path(__file__).parents[1]
SLOW_TO_END = """
import pathlib, sys, time
pathlib.Path("begun").touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(2)  # a report, a worktree to remove
    pathlib.Path("tidied").touch()
    sys.exit(2)
"""
NOXFILE = f"""
import os, sys
import nox
here = os.getcwd()
os.chdir({str(ROOT)!r})
sys.path.insert(0, {str(ROOT)!r})
import importlib.util
spec = importlib.util.spec_from_file_location("project", {str(ROOT / "noxfile.py")!r})
project = sys.modules["project"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(project)
os.chdir(here)

@nox.session(venv_backend="none")
def slow(session):
    project.Target(session, sys.executable, {{}}, {{}}).run("slow.py")
"""


def test_what_is_interrupted_can_say_what_it_knows_and_tidy_up(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_TO_END)
    (tmp_path / "noxfile.py").write_text(NOXFILE)
    command = [sys.executable, "-m", "nox", "--no-venv", "-s", "slow"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        start_new_session=True,
        # a shell lets what it starts in the background ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        end = time.monotonic() + 30
        while not (tmp_path / "begun").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal sends Ctrl-C
        said, _ = process.communicate(timeout=30)
    assert (tmp_path / "tidied").exists(), said
    assert process.returncode != 0


def test_the_ladder_s_page_is_of_a_gpu_or_of_given_files(tmp_path: Path) -> None:
    for name in ("noxfile.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "perf", tmp_path / "perf")
    (tmp_path / "src").symlink_to(ROOT / "src")
    (tmp_path / "docs").mkdir()
    origin = {"environment": H200.to_json(), "commit": "0123456", "date": "2026-01-02"}
    latency = {"origin": origin, "attention": "sdpa_cudnn", "record": []}
    (tmp_path / "latency.json").write_text(json.dumps(latency))

    def ladder(*files: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nox", "--no-venv", "-s", "ladder", "--", *files]
        # not what tells a process that it is one of xdist's
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")} | {"CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(
            command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )

    refused = ladder()
    assert refused.returncode != 0
    assert "ERROR: --perf-device cuda: " in refused.stdout
    assert list((tmp_path / "docs").iterdir()) == []
    written = ladder("latency.json")
    assert written.returncode == 0, written.stdout
    assert (tmp_path / "docs" / "inference.md").exists()
