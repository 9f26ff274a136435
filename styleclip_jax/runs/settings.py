"""Settings of an edit, saved by the page of app.py and read by scripts with ``--settings``."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, no_type_check

from absl import flags

from styleclip_jax.errors import InputError
from styleclip_jax.io.files import expand_user, parse_json, require_file

# --help lists the flag with those of the script that calls define_flag.
flags.disclaim_key_flags()


# absl finds the calling script in the stack, where a run-time type checker would be in between.
@no_type_check
def define_flag() -> None:
    """Defines ``--settings``."""
    flags.DEFINE_string(
        "settings",
        None,
        "A settings.json saved by the page of app.py, with flags and the name of the latents next"
        " to it. Flags on the command line prevail.",
    )


def expand(argv: Sequence[str], script: str) -> list[str]:
    """Adds the flags of ``--settings`` to a command line, except those that it already has.

    Args:
        argv: The program's name and its arguments.
        script: The name of the script, such as ``optimize.py``.

    Raises:
        InputError: The file is missing, damaged, or for another script.
    """
    path = _value_of("settings", argv)
    if path is None:
        return list(argv)
    file = expand_user(path)
    require_file(file, "a settings.json saved by the page")
    settings = _read(file)
    if settings["script"] != script:
        raise InputError(
            f"the settings in {file} are for {settings['script']}, not for {script}; run"
            f" {settings['script']}"
        )
    values = settings["flags"] | {"latents": str(file.parent / settings["latents"])}
    arguments = [
        f"--{name}={value}"
        for name, values_ in values.items()
        if _value_of(name, argv) is None
        for value in (values_ if isinstance(values_, list) else [values_])
    ]
    return [argv[0], *arguments, *argv[1:]]


def _value_of(name: str, argv: Sequence[str]) -> str | None:
    """The value of a flag on a command line, or None."""
    for argument, following in itertools.zip_longest(argv[1:], argv[2:], fillvalue=""):
        if match := re.fullmatch(rf"--?{name}(=(.*))?", argument, re.DOTALL):
            return following if match[1] is None else match[2]
    return None


def _read(file: Path) -> dict[str, Any]:
    try:
        settings = parse_json(file.read_text())
        flags_, latents, script = settings["flags"], settings["latents"], settings["script"]
        names = all(re.fullmatch(r"\w+", name) for name in flags_)
        # Only a file in the same directory.
        valid = names and latents == Path(latents).name and isinstance(script, str)
    except (ValueError, KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise InputError(f"{file} is damaged, expected a settings.json saved by the page")
    return settings
