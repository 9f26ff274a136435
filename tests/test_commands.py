"""Scripts and installed commands that are interrupted while they import their libraries."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [p.name for p in sorted(ROOT.glob("*.py")) if "import start" in p.read_text()]
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
INTERRUPT = """
import importlib.abc, runpy, sys
class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("jax", "numpy"):
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
"""


@pytest.mark.parametrize(
    "program",
    [
        *(f"runpy.run_path({name!r}, run_name='__main__')" for name in SCRIPTS),
        *(
            "from {} import {} as command; command()".format(*entry.split(":"))
            for entry in COMMANDS.values()
        ),
    ],
)
def test_an_interrupt_during_imports_prints_one_line(program):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT + program], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "error: interrupted\n")


def test_every_script_and_command_is_tested():
    assert len(SCRIPTS) == 7 and len(COMMANDS) == 8
