"""Signals that reach app.py before everything is compiled."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.app.conftest import ROOT, TIMEOUT

pytest.importorskip("gradio")


@pytest.fixture
def start(tmp_path):
    """Starts app.py with an empty compilation cache, and ends it."""
    compiled, processes = tmp_path / "compiled", []

    def start(*flags):
        environment = {"TMPDIR": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": str(compiled)}
        command = [sys.executable, "app.py", f"--port={7000 + os.getpid() % 1000}", *flags]
        processes.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def compiles(directory: Path) -> bool:
    return any(directory.glob("compiled/*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_during_the_warm_up_it_ends_in_one_line_and_leaves_no_file(start, tmp_path, number):
    process = start()
    deadline = time.monotonic() + TIMEOUT
    while not compiles(tmp_path):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert "the page is at" not in out and err.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in err
    assert not [*tmp_path.glob("styleclip-app-*")]


def test_while_the_rest_is_compiled_it_ends_well_and_leaves_no_file(start, tmp_path):
    process = start()
    for line in process.stdout:
        if "the page is at" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert not [*tmp_path.glob("styleclip-app-*")]
