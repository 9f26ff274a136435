"""Runs the programs in docs/guide/page.md and the README against a running service."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE, README = ROOT / "docs" / "guide" / "page.md", ROOT / "README.md"
# Only ends tests that hang.
TIMEOUT = 600


def programs(language, section, page=GUIDE):
    """Returns the programs in a section of a page."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", page.read_text(), re.M | re.S)
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run(language, program, url, directory):
    """Runs a program of the guide and returns the finished process."""
    assert "http://127.0.0.1:7860" in program
    if language == "bash" and not shutil.which("curl"):
        pytest.skip("curl is not installed")
    if language == "python":
        pytest.importorskip("gradio_client")
    command = ["bash", "-euc"] if language == "bash" else [sys.executable, "-c"]
    return subprocess.run(
        [*command, program.replace("http://127.0.0.1:7860", url)],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def printed_by(*arguments):
    outcome = run(*arguments)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def test_gradio_client_edits_and_chains(service, tmp_path):
    (program,) = programs("python", "Over HTTP")
    printed = printed_by("python", program, service.url, tmp_path)
    assert printed.count("data:image/png;base64,") == 2
    assert "'strength': [1.5]" in printed and "apply_mapper.py" in printed


def test_curl_edits_and_checks_the_health(service, tmp_path):
    edit, health = programs("bash", "Over HTTP")
    printed = printed_by("bash", edit, service.url, tmp_path)
    assert "event: complete" in printed and "data:image/png;base64," in printed
    assert json.loads(printed_by("bash", health, service.url, tmp_path))["status"] == "ok"


def test_the_programs_in_the_readme_run(service, tmp_path):
    (edit,), (health,) = (programs(x, "In the browser", README) for x in ("python", "bash"))
    settings = printed_by("python", f"{edit}print(answer['settings'])", service.url, tmp_path)
    assert "a person with a beard" in settings
    assert json.loads(printed_by("bash", health, service.url, tmp_path))["status"] == "ok"


@pytest.mark.parametrize("language", ["python", "bash"])
def test_a_user_in_the_auth_file_can_log_in(protected, tmp_path, language):
    (program,) = programs(language, "Passwords")
    assert "data:image/png;base64," in printed_by(language, program, protected.url, tmp_path)


@pytest.mark.parametrize("language", ["python", "bash"])
def test_a_wrong_password_is_rejected(protected, tmp_path, language):
    (program,) = programs(language, "Passwords")
    outcome = run(language, program.replace("secret", "secrets"), protected.url, tmp_path)
    assert outcome.returncode != 0 and "data:image" not in outcome.stdout
