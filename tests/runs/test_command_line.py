import os
import subprocess
import sys

import jax
import pytest
from absl import flags

from styleclip_jax.errors import InputError
from styleclip_jax.runs import command_line

SCRIPT = """
import atexit
import gc
import os
import signal
import time

import jax
from absl import flags
from styleclip_jax.runs import command_line
from styleclip_jax.errors import InputError

WAYS = ["no", "input", "float", "os", "ctrl-c", "kill", "device", "bug"]
WAYS += ["memory", "device memory", "cpu memory", "long", "swallowed", "twice", "no device"]
WAYS += ["closed loop"]
flags.DEFINE_enum("fail", "no", WAYS, "How to end.")
flags.DEFINE_string("text", None, "A text.", required=True)
flags.DEFINE_string("path", None, "A file.")
flags.DEFINE_float("rate", 1.0, "A number.")
flags.DEFINE_multi_float("rates", [1.0], "Numbers.")

def main(_):
    if flags.FLAGS.fail == "input":
        raise InputError("the input\\nis bad")
    if flags.FLAGS.fail == "long":
        raise InputError(f"shorten {'word ' * 6000!r}, please")
    if flags.FLAGS.fail == "swallowed":
        # As in JAX's callback, whose exceptions Python reports but does not raise.
        callback = lambda *_: os.kill(os.getpid(), signal.SIGINT)
        gc.callbacks.append(callback)
        gc.collect()
        gc.callbacks.remove(callback)
        time.sleep(20)
    if flags.FLAGS.fail == "twice":
        atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0.2)))
        os.kill(os.getpid(), signal.SIGINT)
    if flags.FLAGS.fail == "closed loop":
        for message in ("Event loop is closed", "something else"):
            def complain(*_):
                raise RuntimeError(message)
            gc.callbacks.append(complain)
            gc.collect()
            gc.callbacks.remove(complain)
    if flags.FLAGS.fail == "no device":
        command_line.check_devices()
    if flags.FLAGS.fail == "float":
        raise FloatingPointError("the loss is not finite at step 7")
    if flags.FLAGS.fail == "os":
        open("/nowhere/at/all")
    if flags.FLAGS.fail == "ctrl-c":
        raise KeyboardInterrupt
    if flags.FLAGS.fail == "kill":
        os.kill(os.getpid(), signal.SIGTERM)
    if flags.FLAGS.fail == "memory":
        raise MemoryError
    if flags.FLAGS.fail == "device memory":
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: cannot allocate 9 bytes.")
    if flags.FLAGS.fail == "cpu memory":
        raise jax.errors.JaxRuntimeError("INTERNAL: Out of memory allocating 9 bytes.")
    if flags.FLAGS.fail == "device":
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")
    if flags.FLAGS.fail == "bug":
        raise TypeError("a bug")

if __name__ == "__main__":
    command_line.run(main)
"""


@pytest.fixture
def run(run_script, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    return lambda *arguments: run_script(str(tmp_path / "script.py"), "--text=a", *arguments)


def test_success_is_silent_with_code_zero(run):
    assert run() == (0, "", "")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--fail=input", "error: the input is bad\n"),
        ("--fail=float", "error: the loss is not finite at step 7\n"),
        ("--fail=os", "error: [Errno 2] No such file or directory: '/nowhere/at/all'\n"),
        ("--fail=ctrl-c", "error: interrupted\n"),
        ("--fail=kill", "error: interrupted\n"),
        ("--fail=memory", "error: out of memory; use fewer images or a smaller batch\n"),
        ("--fail=device memory", "error: out of memory"),
        ("--fail=cpu memory", "error: out of memory"),
        ("--fail=perhaps", "error: flag --fail=perhaps: value should be one of <no|input|"),
        ("--path=", "error: --path is empty; give it a value or remove it\n"),
        ("--rate=nan", "error: --rate is nan, expected a finite number\n"),
        ("--rate=-inf", "error: --rate is -inf, expected a finite number\n"),
        ("--rate=1e300", "error: --rate is 1e+300, expected a number between +-3.4e+38\n"),
        ("--rates=1e300", "error: --rates is 1e+300, expected a number between +-3.4e+38\n"),
        (
            "--fial=no",
            "error: Unknown command line flag 'fial'. Did you mean: fail ?; --help lists all"
            " flags\n",
        ),
        ("no", "error: unexpected argument 'no', expected --name=value"),
    ],
)
def test_failures_are_one_line_with_code_one(run, flag, message):
    outcome = run(flag)
    assert outcome.code == 1
    assert outcome.err.startswith(message) and outcome.err.count("\n") == 1


def test_a_missing_flag_is_one_line_with_code_one(run_script, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    expected = "error: --text is missing; add --text=VALUE, with quotes around words\n"
    assert run_script(str(tmp_path / "script.py")) == (1, "", expected)
    assert run_script(str(tmp_path / "script.py"), "a text") == (1, "", expected)


def test_a_flagfile_that_is_not_text_is_refused(run, tmp_path):
    (tmp_path / "flags").write_bytes(b"--fail=no\n\x96\xff")
    outcome = run(f"--flagfile={tmp_path / 'flags'}")
    expected = "error: a --flagfile is not a text file; expected one --name=value per line\n"
    assert outcome == (1, "", expected)
    assert run(f"--flagfile={tmp_path / 'nowhere'}").err.count("\n") == 1


def test_bugs_are_not_hidden(run):
    with pytest.raises(TypeError, match="a bug"):
        run("--fail=bug")
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        run("--fail=device")


@pytest.fixture
def run_process(tmp_path):
    """Runs the script in a process of its own."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(way: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, tmp_path / "script.py", f"--fail={way}", "--text=a"],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.getcwd(), "HOME": str(tmp_path)} | environment,
        )

    return run


def test_a_separate_process_fails_the_same_way(run_process):
    done = run_process("input")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the input is bad\n"


@pytest.mark.parametrize("way", ["swallowed", "twice"])
def test_an_interruption_is_neither_lost_nor_shown_twice(run_process, way):
    done = run_process(way)
    assert (done.returncode, done.stderr) == (1, "error: interrupted\n")


def test_threads_do_not_complain_about_an_event_loop_that_an_error_has_closed(run_process):
    done = run_process("closed loop")
    assert done.returncode == 0
    assert "RuntimeError: something else" in done.stderr and "Event loop" not in done.stderr


def test_a_platform_without_devices_is_named(run_process):
    done = run_process("no device", JAX_PLATFORMS="cuda")
    assert done.returncode == 1
    assert done.stderr.startswith("error: JAX finds no device")
    assert "JAX_PLATFORMS=cuda" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_middle_of_a_very_long_line_is_left_out(run):
    outcome = run("--fail=long")
    assert outcome.err.startswith("error: shorten 'word word")
    assert outcome.err.endswith("word ', please\n") and len(outcome.err) < 1100


@pytest.mark.parametrize("script", ["optimize", "train_mapper", "apply_mapper", "invert"])
def test_an_interruption_during_imports_is_one_line(tmp_path, script):
    (tmp_path / "jax.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, f"{script}.py", "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (1, "error: interrupted\n")


def test_a_configuration_takes_the_flags_of_its_fields_names():
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Config:
        colour: str = "red"
        count: int = 1

    try:
        flags.DEFINE_string("colour", "blue", "")
        flags.DEFINE_integer("count", 3, "")
        flags.FLAGS(["test", "--count=4"])
        assert command_line.config_from_flags(Config) == Config("blue", 4)
    finally:
        del flags.FLAGS.colour, flags.FLAGS.count
        flags.FLAGS.unparse_flags()


def test_the_flags_of_a_script_are_those_of_its_module_whatever_started_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/launcher"])
    try:
        flags.DEFINE_string("colour", "blue", "")
        flags.FLAGS(["launcher", "--colour=red"])
        assert command_line.script_flags(__name__) == {"colour": "red"}
        assert "colour" not in command_line.script_flags(command_line.__name__)
    finally:
        del flags.FLAGS.colour
        flags.FLAGS.unparse_flags()


def test_settings_have_the_types_of_their_defaults():
    defaults = {"steps": 3, "rate": 0.5, "kinds": ("a",), "stop": None, "space": "w_plus"}
    parse = command_line.parse_settings
    assert parse([], defaults) == defaults
    assert parse(["steps=4", "kinds=b+c", "stop=2.5", "space=s"], defaults) == {
        "steps": 4,
        "rate": 0.5,
        "kinds": ("b", "c"),
        "stop": 2.5,
        "space": "s",
    }
    assert type(parse(["rate=2"], defaults)["rate"]) is float


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("steps", "unknown setting 'steps'.*steps, stop"),
        ("speed=1", "unknown setting 'speed=1'.*steps, stop"),
        ("steps=0.5", "steps is '0.5', expected a value such as 3"),
        ("stop=high", "stop is 'high', expected a number"),
    ],
)
def test_settings_that_do_not_exist_or_have_another_type_are_refused(assignment, words):
    with pytest.raises(InputError, match=words):
        command_line.parse_settings([assignment], {"steps": 3, "stop": None})
