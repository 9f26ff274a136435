"""Settings of an edit that the page saved; the scripts read them with ``--settings``."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, no_type_check

from absl import flags

from styleclip_jax.errors import InputError
from styleclip_jax.io.files import expand_user, parse_json, require_file

# The flag counts as one of the script that calls define_flag.
flags.disclaim_key_flags()


# A run-time type checker would stand between the script and its flags.
@no_type_check
def define_flag() -> None:
    """Defines ``--settings``."""
    flags.DEFINE_string(
        "settings",
        None,
        "A settings.json that the page of app.py saved: flags, and the latents beside it that they"
        " are for. Flags that are given prevail.",
    )


def expand(argv: Sequence[str], script: str) -> list[str]:
    """Puts the flags of ``--settings`` into a command line, but for those that it has already.

    Args:
        argv: The program's name, and its arguments.
        script: The name of the script, such as ``optimize.py``.

    Raises:
        InputError: There is no such file, or it is damaged, or for another script.
    """
    path = _value_of("settings", argv)
    if path is None:
        return list(argv)
    file = expand_user(path)
    require_file(file, "a settings.json that the page saved")
    settings = _read(file)
    if settings["script"] != script:
        raise InputError(f"the settings in {file} are for {settings['script']}, this is {script}")
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
    for argument, following in zip(argv[1:], [*argv[2:], ""], strict=True):
        if match := re.fullmatch(rf"--?{name}(=(.*))?", argument, re.DOTALL):
            return following if match[1] is None else match[2]
    return None


def _read(file: Path) -> dict[str, Any]:
    try:
        settings = parse_json(file.read_text())
        flags_, latents, script = settings["flags"], settings["latents"], settings["script"]
        names = all(re.fullmatch(r"\w+", name) for name in flags_)
        # The settings name a file beside them, and no other one.
        valid = names and latents == Path(latents).name and isinstance(script, str)
    except (ValueError, KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise InputError(f"{file} is damaged; expected a settings.json that the page saved")
    return settings
