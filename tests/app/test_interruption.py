"""Signals that reach app.py before everything is compiled."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.app.calls import call
from tests.app.conftest import ROOT, TIMEOUT
from tests.ports import free_port


@pytest.fixture
def environment(tmp_path):
    """The environment of a process with an empty compilation cache."""
    return os.environ | {
        "TMPDIR": str(tmp_path),
        "JAX_ENABLE_COMPILATION_CACHE": "True",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture
def process(environment, installed_app, small_models):
    """An app.py that has just been started."""
    process = subprocess.Popen(
        [sys.executable, "app.py", f"--port={free_port()}", *small_models],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def compiles(directory: Path) -> bool:
    return any(directory.glob("compiled/*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_before_the_page_opens_it_ends_in_one_line_and_leaves_no_file(process, tmp_path, number):
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


def test_while_the_rest_is_compiled_a_running_edit_finishes_and_no_file_is_left(
    start_service, small_models, environment, tmp_path
):
    service = start_service(*small_models, f"--grace_seconds={TIMEOUT}", env=environment)
    with ThreadPoolExecutor() as pool:
        edit = pool.submit(call, service.url, "optimize", "a hat", 0, 100, 0.35, "a face", [], "")
        while not service.health()["edits"]:
            time.sleep(0.05)
        assert not service.health()["warm"]
        service.process.send_signal(signal.SIGTERM)
        assert edit.result()["image"]
    output, _ = service.process.communicate(timeout=TIMEOUT)
    assert service.process.returncode == 0, output
    assert "Traceback" not in output
    assert not [*tmp_path.glob("styleclip-app-*")]
