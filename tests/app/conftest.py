"""Fixtures that serve the page and open it in a real browser."""

import contextlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from styleclip_jax.app.passwords import hash_password
from styleclip_jax.io.checkpoints import save_model
from styleclip_jax.methods.relevance import build_directions
from styleclip_jax.models import DeltaMapper, DeltaMapperConfig, DirectionsConfig
from styleclip_jax.models.directions import channel_widths
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
# Only ends tests that hang; generous, because the machine may be busy.
TIMEOUT = 300


class Service:
    """A running service.

    Args:
        flags: Flags of app.py.
        command: Command that starts app.py.
        options: Further arguments of ``subprocess.Popen``.
    """

    def __init__(self, *flags, command=(sys.executable, "app.py"), **options):
        port = free_port()
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
        """Resident memory of the process in megabytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1000

    def end(self):
        self.process.terminate()
        self.process.communicate(timeout=TIMEOUT)


@pytest.fixture(scope="session")
def installed_app():
    """Skips tests that start app.py where its extra is not installed."""
    if not importlib.util.find_spec("gradio"):
        pytest.skip("the extra 'app' is not installed")


@pytest.fixture(scope="session")
def start_service(installed_app):
    """Starts services with the arguments of :class:`Service`; ends them after the tests."""
    services = []

    def start(*flags, **options):
        services.append(Service(*flags, **options))
        return services[-1]

    yield start
    for service in services:
        service.end()


@pytest.fixture(scope="session")
def directions_path(generator, tmp_path_factory):
    """A checkpoint of random directions for the random models."""
    config = DirectionsConfig(channel_widths(generator.config, "stylespace"), 16)
    relevance = np.random.default_rng(0).normal(size=(config.channels, 16)).astype(np.float32)
    relevance /= np.linalg.norm(relevance, axis=1, keepdims=True)
    path = tmp_path_factory.mktemp("checkpoints") / "directions"
    scales = np.full(config.channels, 0.5, np.float32)
    save_model(path, build_directions(config, relevance, scales))
    return path


@pytest.fixture(scope="session")
def any_text_path(generator, tmp_path_factory):
    """A checkpoint of a random mapper for any text."""
    config = DeltaMapperConfig(generator.config.style_dims, embed_dim=16, width=8)
    path = tmp_path_factory.mktemp("mappers") / "any"
    save_model(path, DeltaMapper(config, rngs=nnx.Rngs(0)))
    return path


@pytest.fixture(scope="session")
def small_models(generator_path, long_text_clip_path, any_text_path):
    """Flags that serve random models, whose programs compile and run faster than the avatars'."""
    return (
        f"--generator={generator_path}",
        f"--clip={long_text_clip_path}",
        f"--mappers_dir={any_text_path.parent}",
    )


@pytest.fixture(scope="session")
def protected(start_service, small_models, tmp_path_factory):
    """A service with low limits that admits olena, whose password is "secret"."""
    file = tmp_path_factory.mktemp("users") / "users"
    file.write_text(f"olena:{hash_password('secret')}\n")
    limits = "--max_waiting=2", "--max_seconds=1.5", "--max_steps=100000"
    return start_service(*small_models, *limits, "--nowarmup", f"--auth_file={file}")


@pytest.fixture(scope="session")
def service(start_service):
    return start_service()


@pytest.fixture(scope="session")
def browser():
    if not CHROMIUM:
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tab(browser):
    """A page of the browser's default options, whose process and cached scripts tests share."""
    return browser.new_page()


@pytest.fixture
def open_page(browser, tab, service):
    """Opens the page, with a locale in a tab of its own; errors of the page fail the test."""
    errors, opened = [], []
    listeners = {
        "console": lambda message: _record_message(errors, message),
        "pageerror": lambda error: errors.append(str(error)),
        "request": lambda request: _record_request(errors, request.url, service.url),
    }

    def open_page(color_scheme="light", **options):
        page = browser.new_page(**options) if options else tab
        opened.append(page)
        page.set_viewport_size({"width": 1280, "height": 720})
        page.emulate_media(color_scheme=color_scheme)
        page.set_default_timeout(1000 * TIMEOUT)
        for event, listener in listeners.items():
            page.on(event, listener)
        page.goto(service.url)
        page.locator("#image img").wait_for()
        page.locator("#gallery button").first.wait_for()
        return page

    yield open_page
    for page in opened:
        for event, listener in listeners.items():
            page.remove_listener(event, listener)
        # Ends the session, as closing the tab does; requests that it aborts are no errors.
        page.goto("about:blank")
        if page is not tab:
            page.close()
    assert not errors


def _record_message(errors, message):
    if message.type == "error":
        errors.append(message.text)


def _record_request(errors, url, home):
    if not url.startswith((home, "data:", "blob:")):
        errors.append(f"a request to another host: {url}")
