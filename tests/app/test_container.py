"""Runs the steps of the Dockerfile without Docker; a directory replaces the file system."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.app.calls import TIMEOUT, call

ROOT = Path(__file__).parents[2]
INSTANT = ("a person with a hat", 0, None, "a person", "", None, "any_text")


def read_stages():
    """Returns the instructions of every stage; each one is a name and its arguments."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = filter(None, text.replace("\\\n", "").splitlines())
    instructions = [tuple(line.split(maxsplit=1)) for line in lines]
    begins = [i for i, (name, _) in enumerate(instructions) if name == "FROM"]
    ends = [*begins[1:], len(instructions)]
    return [instructions[begin:end] for begin, end in zip(begins, ends, strict=True)]


def arguments(stage, name):
    return [rest for instruction, rest in stage if instruction == name]


BUILD, RUNTIME = read_stages()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The directory into which pip installs the package, without its dependencies."""
    source, wheels, site = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "site"))
    offered = (ROOT / ".dockerignore").read_text().splitlines()
    for copied in arguments(BUILD, "COPY"):
        *names, place = copied.split()
        for name in names:
            assert f"!{name}" in offered
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / place)
            else:
                shutil.copy(ROOT / name, source / place)
    # Nothing is downloaded.
    offline = {"PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_TARGET": str(site)}
    (make_wheels,) = arguments(BUILD, "RUN")
    install, _ = arguments(RUNTIME, "RUN")
    install = re.sub(r"^--mount=type=bind,from=build,source=/wheels,target=/wheels ", "", install)
    for step in (make_wheels, install):
        command = step.strip().replace("/wheels", str(wheels))
        assert command.startswith("pip ")
        subprocess.run(
            ["bash", "-euc", f"{sys.executable} -m {command}"],
            cwd=source,
            env=os.environ | offline,
            check=True,
        )
    return site


# A sitecustomize module that lets a process write only to a directory.
READ_ONLY = """
import os, sys
def check(event, arguments):
    path, writes = None, event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir")
    if event == "open":
        path, _, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    elif writes:
        path = arguments[0]
    if writes and isinstance(path, (str, bytes, os.PathLike)):
        place = os.path.realpath(os.fsdecode(path))
        if not place.startswith(({directory!r}, "/dev/", "/proc/")):
            raise OSError(30, "Read-only file system", place)
sys.addaudithook(check)
"""


@pytest.fixture
def container(start_service, installed, tmp_path):
    """The service as the Dockerfile starts it, with a single writable directory."""
    (command,), (check,), (variables,) = (
        arguments(RUNTIME, name) for name in ("CMD", "HEALTHCHECK", "ENV")
    )
    command, check = json.loads(command), json.loads(check.partition("CMD ")[2])
    (tmp_path / "sitecustomize.py").write_text(READ_ONLY.format(directory=str(tmp_path)))
    compilation = "XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"
    environment = {
        **{name: os.environ[name] for name in compilation},
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{tmp_path}:{installed}",
        "TMPDIR": str(tmp_path),
        **dict(x.split("=") for x in variables.replace("/tmp", str(tmp_path)).split()),
    }
    service = start_service(
        "--nowarmup",
        # Long enough to compile the edit on a busy machine.
        f"--grace_seconds={TIMEOUT}",
        *command[1:],
        command=(sys.executable, str(installed / "bin" / command[0])),
        cwd=tmp_path,
        env=environment,
    )
    port = service.url.rpartition(":")[2]
    service.check = [sys.executable, *(word.replace("7860", port) for word in check[1:])]
    return service


def test_the_user_is_unprivileged_and_owns_no_files():
    _, add_user = arguments(RUNTIME, "RUN")
    (user,) = arguments(RUNTIME, "USER")
    assert re.fullmatch(rf"useradd --uid=[1-9]\d* --no-create-home {user}", add_user)
    order = [name for name, _ in RUNTIME]
    # The user would own the files that later steps create.
    assert not {"RUN", "COPY", "ADD"} & {*order[order.index("USER") :]}


def test_the_page_runs_on_a_read_only_root_and_lets_running_edits_finish(container, tmp_path):
    subprocess.run(container.check, check=True)
    results = []

    def edit():
        results.append(call(container.url, "instant", *INSTANT))

    client = threading.Thread(target=edit)
    client.start()
    while container.health()["edits"] == 0:
        time.sleep(0.05)
    container.process.send_signal(signal.SIGTERM)
    client.join(TIMEOUT)
    assert results and results[0]["image"]
    assert container.process.wait(TIMEOUT) == 0
    assert not [*tmp_path.glob("styleclip-app-*")]
