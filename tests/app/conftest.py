"""The page as it is served, in a real browser."""

import contextlib
import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
# Only ends tests that hang, even if other programs use most of the processor.
TIMEOUT = 300


class Service:
    """A served page, and the process that serves it.

    Args:
        flags: Of app.py.
        command: Starts it.
        options: Of the process.
    """

    def __init__(self, *flags, command=(sys.executable, "app.py"), **options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [*command, f"--port={port}", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **{"cwd": ROOT, **options},
        )
        output = ""
        while "the page is at" not in output:
            line = self.process.stdout.readline() if self.process.stdout else ""
            if not line:
                self.process.communicate()
                raise AssertionError(f"app.py ended: {output}")
            output += line
        deadline = time.monotonic() + TIMEOUT
        while True:
            with contextlib.suppress(OSError):
                self.health()
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def health(self):
        with urllib.request.urlopen(f"{self.url}/health", timeout=TIMEOUT) as response:
            return json.load(response)

    @property
    def memory(self):
        """Megabytes of memory that the process has taken."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1000

    def end(self):
        self.process.terminate()
        self.process.communicate(timeout=TIMEOUT)


@pytest.fixture(scope="session")
def start_service():
    """Starts services as :class:`Service` does, and ends them."""
    if not importlib.util.find_spec("gradio"):
        pytest.skip("the extra 'app' is not installed")
    services = []

    def start(*flags, **options):
        services.append(Service(*flags, **options))
        return services[-1]

    yield start
    for service in services:
        service.end()


@pytest.fixture(scope="session")
def service(start_service):
    return start_service()


@pytest.fixture(scope="session")
def browser():
    if not CHROMIUM:
        pytest.skip("there is no chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, service):
    """Opens the page with options of a browser context; every fault it shows fails the test."""
    faults, contexts = [], []

    def open_page(**options):
        context = browser.new_context(accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * TIMEOUT)
        page.on("console", lambda message: _note(faults, message))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: _note_host(faults, request.url, service.url))
        page.goto(service.url)
        page.locator("#picture img").wait_for()
        page.locator("#gallery button").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def _note(faults, message):
    if message.type == "error":
        faults.append(message.text)


def _note_host(faults, url, home):
    if not url.startswith((home, "data:", "blob:")):
        faults.append(f"a request to another host: {url}")
