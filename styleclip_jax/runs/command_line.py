"""Starting scripts, reading flags, and reporting errors."""

import ast
import dataclasses
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TypeVar, cast

import jax
import numpy as np
from absl import app, flags, logging

from styleclip_jax.errors import InputError, is_out_of_memory
from styleclip_jax.runs import settings
from styleclip_jax.runs.compilation_cache import enable_compilation_cache

Config = TypeVar("Config")

# Maximum length of a message in characters.
_LONGEST_LINE = 1000
_LARGEST = float(np.finfo(np.float32).max)


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a script: parses its absl flags, calls ``main``, and exits.

    Mistakes that the user can fix (:class:`InputError`, ``OSError``, a wrong flag), losses that are
    not finite (``FloatingPointError``), insufficient memory and an interruption (Ctrl-C, SIGTERM)
    print one line to stderr and exit with code 1. Compiled programs are cached in
    ``~/.cache/styleclip_jax``, or in ``JAX_COMPILATION_CACHE_DIR``, so the next run starts faster.

    Args:
        main: Called with the program's name in a list, as by ``absl.app.run``.
        argv: The command line. None: that of the process.
    """
    script = sys.modules[main.__module__]

    def main_with_short_errors(arguments: Sequence[str]) -> None:
        try:
            if not flags.FLAGS["verbosity"].present:
                # Orbax logs errors with the stack of every thread, and raises them as well.
                logging.set_verbosity(logging.FATAL)
            enable_compilation_cache()
            _handle_interruptions()
            main(arguments)
        except (InputError, FloatingPointError, OSError) as error:
            _fail(error)
        except KeyboardInterrupt:
            _fail("interrupted")
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            _fail("out of memory; use fewer images or a smaller batch")

    def parse(arguments: Sequence[str]) -> list[str]:
        return _parse_flags(arguments, script)

    _let_help_describe(script)
    app.run(main_with_short_errors, argv=list(argv) if argv else None, flags_parser=parse)
    sys.exit(0)


# Number of times to resend a signal that a callback has swallowed.
_SENT_AGAIN = 20


def _handle_interruptions() -> None:
    """Makes Ctrl-C and SIGTERM end the run exactly once.

    Python reports exceptions in callbacks of its garbage collector, such as JAX's, but does not
    raise them, so a signal that arrives there is sent again. If an array cannot be written,
    Tensorstore's threads report a closed event loop the same way; this is hidden, because the run
    reports the error itself.
    """

    def interrupt(*_: object) -> NoReturn:
        # A second signal must not interrupt the cleanup.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    def listen() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, interrupt)

    def unraisable(ignored: Any) -> None:
        if str(ignored.exc_value) == "Event loop is closed":
            return
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(ignored)
            return
        threading.Thread(target=send_again, daemon=True).start()
        # Last, because a signal in this function would also be lost.
        listen()

    def send_again() -> None:
        """Sends the signal after the callback; once one was handled, others are ignored."""
        for _ in range(_SENT_AGAIN):
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

    sys.unraisablehook = unraisable
    listen()


def check_devices() -> None:
    """Raises InputError if JAX finds no device of its platform."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that one platform has devices.
        platforms = os.environ.get("JAX_PLATFORMS")
        advice = f"; unset JAX_PLATFORMS={platforms}" if platforms else ""
        reason = f" ({error})" if str(error) else ""
        raise InputError(f"JAX finds no device{reason}{advice}") from None


def _let_help_describe(script: ModuleType) -> None:
    """Makes ``--help`` show the docstring and flags of a script, whichever program started it."""
    if script.__name__ != "__main__":
        sys.modules["__main__"].__doc__ = script.__doc__
        for flag in flags.FLAGS.get_key_flags_for_module(script):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def refuse_random_images(latents_flag: str, *names: str) -> None:
    """Raises InputError if both latents and flags of random images are given."""
    given = [f"--{name}" for name in names if flags.FLAGS[name].present]
    if flags.FLAGS[latents_flag].value and given:
        raise InputError(
            f"{', '.join(given)} has no effect with --{latents_flag}, which selects the"
            " images; remove one of them"
        )


def _parse_flags(argv: Sequence[str], script: ModuleType) -> list[str]:
    try:
        if "settings" in flags.FLAGS:
            argv = settings.expand(argv, Path(getattr(script, "__file__", "")).name)
        arguments = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        _fail(f"{error}; --help lists all flags")
    except InputError as error:
        _fail(error)
    except UnicodeDecodeError:
        _fail("a --flagfile is not a text file; expected one --name=value per line")
    except flags.Error as error:
        if missing := re.match(r"flag (--\w+)=None: ", str(error)):
            _fail(f"{missing[1]} is missing; add {missing[1]}=VALUE, with quotes around words")
        _fail(error)
    if len(arguments) > 1:
        _fail(
            f"unexpected argument {arguments[1]!r}, expected --name=value; put quotes around a"
            " value of several words"
        )
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        values = value if isinstance(value, list) else [value]
        if flags.FLAGS[name].present and "" in values:
            _fail(f"--{name} is empty; give it a value or remove it")
        for number in values:
            if isinstance(number, float) and not math.isfinite(number):
                _fail(f"--{name} is {number}, expected a finite number")
            # It would overflow in float32.
            if isinstance(number, float) and abs(number) > _LARGEST:
                _fail(f"--{name} is {number}, expected a number between +-{_LARGEST:.2g}")
    return arguments


def note(message: str) -> None:
    """Tells the user something on one line of standard error."""
    print("note:", _one_line(message), file=sys.stderr)


def report(error: Exception | str) -> None:
    """Tells the user of an error on one line of standard error."""
    print("error:", _one_line(str(error)), file=sys.stderr)


def _fail(error: Exception | str) -> NoReturn:
    report(error)
    sys.exit(1)


def _one_line(message: str) -> str:
    """Removes line breaks from a message, and the middle of a very long one."""
    message = " ".join(message.split())
    if len(message) <= _LONGEST_LINE:
        return message
    return f"{message[: _LONGEST_LINE // 2]} [...] {message[-_LONGEST_LINE // 2 :]}"


def config_from_flags(config_class: Callable[..., Config]) -> Config:
    """Makes a configuration dataclass from the flags named like its fields."""
    values = {}
    for field in dataclasses.fields(cast(Any, config_class)):
        value = flags.FLAGS[field.name].value
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return config_class(**values)


def differences(config: Any, defaults: Any) -> dict[str, Any]:
    """The fields of a configuration that differ from another configuration, as values of flags."""
    names = (field.name for field in dataclasses.fields(defaults))
    values = {n: getattr(config, n) for n in names if getattr(config, n) != getattr(defaults, n)}
    return {n: list(value) if isinstance(value, tuple) else value for n, value in values.items()}


def describe_flags(values: Mapping[str, Any]) -> str:
    """Flags as written on a command line."""
    return ", ".join(
        f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in values.items()
    )


def parse_settings(assignments: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Parses ``name=value`` settings and adds the defaults of the others.

    Args:
        assignments: The texts. Entries of a tuple are joined with ``+``.
        defaults: A value of the right type for every name; None stands for a number.

    Raises:
        InputError: A setting does not exist, or its value has the wrong type.
    """
    settings = dict(defaults)
    for assignment in assignments:
        name, mark, value = assignment.partition("=")
        if not mark or name not in defaults:
            raise InputError(
                f"unknown setting {assignment!r}, expected NAME=VALUE with one of the names"
                f" {', '.join(defaults) or '(there are no settings)'}"
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
