"""A MkDocs hook that fills ``reference/flags.md`` with the flags of every script.

The tables come from the scripts' ``--helpxml``, one process per script because several scripts
define a flag of the same name.
"""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = "reference/flags.md"
# absl's own flags are in every script, and it adds this to flags that can be repeated.
_ABSL = "absl."
_REPEATED = "; repeat this option to specify a list of values"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Appends a section per script to the page of flags."""
    if page.file.src_uri != PAGE:
        return markdown
    scripts = sorted(p for p in ROOT.glob("*.py") if "if __name__ ==" in p.read_text())
    return "\n\n".join([markdown, *map(script_section, scripts), _conversion_section()])


def script_section(script: Path) -> str:
    """Describes a script: its docstring and a table of its flags."""
    # absl exits with 1 after printing help.
    output = subprocess.run(
        [sys.executable, script.name, "--helpxml"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    root = ET.fromstring(output)
    rows = ["| flag | default | meaning |", "| --- | --- | --- |"]
    for flag in root.iter("flag"):
        if flag.findtext("key") == "yes" and not flag.findtext("file", "").startswith(_ABSL):
            name, default, meaning = (
                _cell(flag.findtext(tag)) for tag in ("name", "default", "meaning")
            )
            rows.append(f"| `--{name}` | {f'`{default}`' if default else ''} | {meaning} |")
    usage = root.findtext("usage", "").strip()
    return f"## {script.name}\n\n```text\n{usage}\n```\n\n" + "\n".join(rows)


def _conversion_section() -> str:
    output = subprocess.run(
        [sys.executable, "-m", "ckpt_convert", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return f"## python -m ckpt_convert\n\n```text\n{output.strip()}\n```"


def _cell(text: str | None) -> str:
    """Formats a text for a Markdown table; absl writes None if there is no default."""
    text = " ".join((text or "").split()).replace(_REPEATED, "")
    return "" if text in ("None", "[]", "") else text.replace("|", "\\|").replace("<", "&lt;")
