"""The contents of an installed wheel."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

import styleclip_jax
from styleclip_jax.io.checkpoints import AVATARS, pretrained_mappers

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A directory with the wheel's content, as ``pip install`` writes it to ``site-packages``."""
    directory = tmp_path_factory.mktemp("wheel")
    (file,) = WheelBuilder(str(ROOT)).build(directory=str(directory), versions=["standard"])
    with zipfile.ZipFile(file) as archive:
        archive.extractall(directory / "installed")
    return directory / "installed"


def test_it_contains_the_models(wheel):
    packed = {
        str(file.relative_to(wheel)): file.stat().st_size
        for file in wheel.rglob("*")
        if file.is_file()
    }
    for parts, count, limit in (
        (("generator", "clip"), 2, 16),
        (("encoder",), 1, 8),
        (("mappers",), len(pretrained_mappers()), 6),
    ):
        sizes = {
            str(file.relative_to(ROOT)): file.stat().st_size
            for part in parts
            for file in Path(AVATARS, part).rglob("*")
            if file.is_file()
        }
        assert sum(name.endswith("/config.json") for name in sizes) == count
        assert sizes.items() <= packed.items()
        assert sum(sizes.values()) <= limit * 2**20


def test_it_is_typed_and_knows_its_version(wheel):
    (found,) = importlib.metadata.distributions(path=[str(wheel)])
    assert found.version == styleclip_jax.__version__
    assert (wheel / "styleclip_jax" / "py.typed").exists()


@pytest.mark.parametrize(
    "checker",
    [
        ("pyright", "--pythonpath", sys.executable),
        ("mypy", "--cache-dir=/dev/null", "--disable-error-code=import-untyped"),
    ],
    ids=["pyright", "mypy"],
)
def test_the_lines_of_the_readme_pass_a_type_checker_where_it_is_installed(
    wheel, tmp_path, checker
):
    lines = "\n".join(
        re.findall("```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    )
    assert "sc.edit_latents" in lines
    (tmp_path / "user.py").write_text(lines)
    config = {"extraPaths": [str(wheel)], "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", *checker, "user.py"],
        cwd=tmp_path,
        # Where mypy looks for installed packages.
        env=os.environ | {"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


# Starts every command in a process of its own, which need not import JAX again.
HELP = """
import importlib, os, sys, warnings
warnings.filterwarnings("ignore", "os.fork")
import styleclip_jax
for line in sys.stdin.read().splitlines():
    command, module, function = line.split()
    if not os.fork():
        for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
            os.dup2(os.open(f"{command}.{name}", os.O_CREAT | os.O_WRONLY), stream.fileno())
        sys.argv = [command, "--help"]
        # What pip writes to the command's file.
        sys.exit(getattr(importlib.import_module(module), function)())
    os.wait()
"""


@pytest.fixture(scope="module")
def helps(wheel, tmp_path_factory) -> Path:
    """A directory with what every command prints to both streams with ``--help``."""
    directory = tmp_path_factory.mktemp("help")
    (found,) = importlib.metadata.distributions(path=[str(wheel)])
    entries = found.entry_points.select(group="console_scripts")
    done = subprocess.run(
        [sys.executable, "-c", HELP],
        input="\n".join(f"{entry.name} {entry.module} {entry.attr}" for entry in entries),
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return directory


@pytest.mark.parametrize(
    ("command", "title"),
    [
        ("styleclip-optimize", "Edits images until they match a text"),
        ("styleclip-train-mapper", "Trains a mapper"),
        ("styleclip-apply-mapper", "Edits images with a trained mapper"),
        ("styleclip-invert", "Finds the latents of photos"),
        ("styleclip-directions", "Edits images with any text in one forward pass"),
        ("styleclip-make-directions", "Measures the relevance of a generator's style channels"),
        ("styleclip-app", "Serves a page for editing faces with text"),
        ("styleclip-convert", "Converts official PyTorch weights"),
    ],
)
def test_its_commands_have_help(helps, command, title):
    out, err = ((helps / f"{command}.{name}").read_text() for name in ("out", "err"))
    assert title in out and "--" in out.replace("--help", ""), err
    assert not err
