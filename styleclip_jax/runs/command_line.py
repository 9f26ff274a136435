"""What all scripts share: how they start, how they fail, and where their results go."""

import ast
import contextlib
import dataclasses
import itertools
import math
import os
import re
import shlex
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import jax
from absl import app, flags, logging

from styleclip_jax.errors import InputError, is_out_of_memory
from styleclip_jax.io.files import expand_user

CACHE = Path("~/.cache/styleclip_jax")
COMMAND_FILE = "command.txt"

Config = TypeVar("Config")


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a script: parses its absl flags, calls ``main``, and exits.

    Mistakes that the user can mend (:class:`InputError`, ``OSError``, a wrong flag), losses that
    are not finite (``FloatingPointError``), too little memory and an interruption (Ctrl-C, or
    SIGTERM) end in one line on stderr and exit code 1. Compiled programs are kept in
    ``~/.cache/styleclip_jax``, or in ``JAX_COMPILATION_CACHE_DIR``, so that the next run starts
    sooner.

    Args:
        main: Gets the program's name in a list, as with ``absl.app.run``.
        argv: The command line; None: that of the process.
    """

    def main_with_short_errors(arguments: Sequence[str]) -> None:
        try:
            if not flags.FLAGS["verbosity"].present:
                # What Orbax logs, with the stack of every thread, it also raises.
                logging.set_verbosity(logging.FATAL)
            keep_compiled_programs()
            # As Ctrl-C, so that what a run has begun is removed.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            main(arguments)
        except (InputError, FloatingPointError, OSError) as error:
            _fail(error)
        except KeyboardInterrupt:
            _fail("interrupted")
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            _fail("there is not enough memory; take fewer images at a time")

    app.run(main_with_short_errors, argv=list(argv) if argv else None, flags_parser=_parse_flags)
    sys.exit(0)


def keep_compiled_programs() -> None:
    """Switches JAX's persistent compilation cache on."""
    # A full disk or a home that cannot be written is no reason to bother the user.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(CACHE.expanduser()))


def refuse_random_images(latents_flag: str, *names: str) -> None:
    """Raises InputError where latents are given, and flags of random images in their place too."""
    given = [f"--{name}" for name in names if flags.FLAGS[name].present]
    if flags.FLAGS[latents_flag].value and given:
        raise InputError(
            f"{', '.join(given)}: for random images, but --{latents_flag} gives the images; leave"
            " out one or the other"
        )


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        arguments = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        _fail(f"{error}; --help explains all flags")
    except flags.Error as error:
        if missing := re.match(r"flag (--\w+)=None: ", str(error)):
            _fail(f"{missing[1]} is missing; write {missing[1]}=VALUE, several words in quotes")
        _fail(error)
    if len(arguments) > 1:
        _fail(
            f"unexpected argument {arguments[1]!r}; a flag is written --name=value, and a value of"
            " several words needs quotes"
        )
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        if flags.FLAGS[name].present and "" in (value if isinstance(value, list) else [value]):
            _fail(f"--{name} is empty; give it a value, or leave it out")
        if isinstance(value, float) and not math.isfinite(value):
            _fail(f"--{name} is {value}, expected a finite number")
    return arguments


def _fail(error: Exception | str) -> NoReturn:
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    sys.exit(1)


def config_from_flags(config_class: Callable[..., Config]) -> Config:
    """Makes a configuration dataclass of the flags that have the names of its fields."""
    values = {}
    for field in dataclasses.fields(cast(Any, config_class)):
        value = flags.FLAGS[field.name].value
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return config_class(**values)


def differences(config: Any, defaults: Any) -> dict[str, Any]:
    """The flags by which a configuration dataclass differs from another one."""
    names = (field.name for field in dataclasses.fields(defaults))
    values = {n: getattr(config, n) for n in names if getattr(config, n) != getattr(defaults, n)}
    return {n: list(value) if isinstance(value, tuple) else value for n, value in values.items()}


def describe_flags(values: Mapping[str, Any]) -> str:
    """Flags as one writes them."""
    return ", ".join(
        f"--{name}={','.join(value) if isinstance(value, list) else value}"
        for name, value in values.items()
    )


def parse_settings(assignments: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Reads ``name=value`` of settings, and fills in the defaults of the others.

    Args:
        assignments: The texts. Several words of a tuple are joined with ``+``.
        defaults: A value of the right type for every name; where it is None, a number is expected.

    Raises:
        InputError: There is no such setting, or the value has another type.
    """
    settings = dict(defaults)
    for assignment in assignments:
        name, mark, value = assignment.partition("=")
        if not mark or name not in defaults:
            raise InputError(
                f"there is no setting {assignment!r}, expected NAME=VALUE with a name of"
                f" {', '.join(defaults) or 'none, for there are no settings'}"
            )
        default = defaults[name]
        try:
            if isinstance(default, tuple):
                settings[name] = tuple(value.split("+"))
            else:
                settings[name] = (ast.literal_eval if default is None else type(default))(value)
        except (ValueError, SyntaxError):
            expected = "a number" if default is None else f"a value such as {default!r}"
            raise InputError(f"the setting {name} is {value!r}, expected {expected}") from None
    return settings


def script_flags(module: str) -> dict[str, Any]:
    """Values of the flags that a module, by its ``__name__``, defines."""
    return {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module(module)}


def new_run_directory(path: str | os.PathLike[str]) -> Path:
    """Makes a directory for the results of this run, and notes the command line in it.

    Nothing is ever overwritten: where ``path`` is taken, the directory is ``path-2``, ``path-3``
    and so on. Runs that start at the same time get different ones.

    Args:
        path: A directory that is absent or empty, or the one to make a numbered sibling of.

    Raises:
        InputError: The directory cannot be written.
    """
    path = Path(os.path.abspath(expand_user(path)))
    command = shlex.join(["python", *sys.argv]) + "\n"
    for number in itertools.count(1):
        directory = path if number == 1 else path.with_name(f"{path.name}-{number}")
        there = _nearest_directory(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if any(directory.iterdir()):
                continue
            with (directory / COMMAND_FILE).open("xb") as file:
                file.write(os.fsencode(command))
        except FileExistsError:
            # Another run was faster, or a file has this name.
            continue
        except OSError as error:
            _remove(directory, there)
            raise InputError(
                f"results cannot be written to {directory} ({error.strerror}); choose another"
                " directory"
            ) from None
        return directory
    raise AssertionError("the numbers do not end")


@contextlib.contextmanager
def run_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As :func:`new_run_directory`, for results that are worth nothing unless they are complete.

    A failure removes what was written, and the directories that were made for it.
    """
    path = Path(os.path.abspath(expand_user(path)))
    there = _nearest_directory(path)
    directory = new_run_directory(path)
    try:
        yield directory
    except BaseException:
        _remove(directory, there)
        raise


def _nearest_directory(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def _remove(directory: Path, there: Path) -> None:
    """Removes a directory and those above it that were made with it; empties it if it was there."""
    shutil.rmtree(directory, ignore_errors=True)
    if directory == there:
        directory.mkdir(exist_ok=True)
    for parent in directory.parents:
        if there.is_relative_to(parent):
            break
        with contextlib.suppress(OSError):  # Another run's results are in it.
            parent.rmdir()
