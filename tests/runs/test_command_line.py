import errno
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import jax
import pytest
from absl import flags

from styleclip_jax.errors import InputError
from styleclip_jax.runs import command_line

SCRIPT = """
import os
import signal

import jax
from absl import flags
from styleclip_jax.runs import command_line
from styleclip_jax.errors import InputError

WAYS = ["no", "input", "float", "os", "ctrl-c", "kill", "device", "bug"]
WAYS += ["memory", "device memory", "cpu memory"]
flags.DEFINE_enum("fail", "no", WAYS, "How to end.")
flags.DEFINE_string("text", None, "A text.", required=True)
flags.DEFINE_string("path", None, "A file.")
flags.DEFINE_float("rate", 1.0, "A number.")

def main(_):
    if flags.FLAGS.fail == "input":
        raise InputError("the input\\nis bad")
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
        ("--fail=memory", "error: there is not enough memory; take fewer images at a time\n"),
        ("--fail=device memory", "error: there is not enough memory"),
        ("--fail=cpu memory", "error: there is not enough memory"),
        ("--fail=perhaps", "error: flag --fail=perhaps: value should be one of <no|input|"),
        ("--path=", "error: --path is empty; give it a value, or leave it out\n"),
        ("--rate=nan", "error: --rate is nan, expected a finite number\n"),
        ("--rate=-inf", "error: --rate is -inf, expected a finite number\n"),
        (
            "--fial=no",
            "error: Unknown command line flag 'fial'. Did you mean: fail ?; --help explains all"
            " flags\n",
        ),
        ("no", "error: unexpected argument 'no'; a flag is written --name=value"),
    ],
)
def test_failures_are_one_line_with_code_one(run, flag, message):
    outcome = run(flag)
    assert outcome.code == 1
    assert outcome.err.startswith(message) and outcome.err.count("\n") == 1


def test_a_missing_flag_is_one_line_with_code_one(run_script, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    expected = "error: --text is missing; write --text=VALUE, several words in quotes\n"
    assert run_script(str(tmp_path / "script.py")) == (1, "", expected)
    assert run_script(str(tmp_path / "script.py"), "a text") == (1, "", expected)


def test_bugs_are_not_hidden(run):
    with pytest.raises(TypeError, match="a bug"):
        run("--fail=bug")
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        run("--fail=device")


def test_a_process_of_its_own_fails_likewise(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", "--fail=input", "--text=a"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd(), "HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the input is bad\n"


def test_compiled_programs_are_kept_where_the_user_says(monkeypatch):
    set_options = {}
    monkeypatch.setattr(jax.config, "update", set_options.__setitem__)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    command_line.keep_compiled_programs()
    assert not set_options
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("HOME", "/home/somebody")
    command_line.keep_compiled_programs()
    cache = set_options["jax_compilation_cache_dir"]
    assert cache == "/home/somebody/.cache/styleclip_jax"


def test_a_cache_that_cannot_be_written_is_not_mentioned(monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    command_line.keep_compiled_programs()
    warnings.warn("Error writing persistent compilation cache entry for 'jit_f'", stacklevel=1)
    with pytest.raises(UserWarning):
        warnings.warn("another one", stacklevel=1)


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


def test_run_directories_are_new_and_note_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["optimize.py", "--description=a hat"])
    names = [command_line.new_run_directory(tmp_path / "results").name for _ in range(3)]
    assert names == ["results", "results-2", "results-3"]
    command = (tmp_path / "results-3" / "command.txt").read_text()
    assert command == "python optimize.py '--description=a hat'\n"


def test_an_empty_directory_is_used_and_a_file_is_not_touched(tmp_path):
    (tmp_path / "empty").mkdir()
    assert command_line.new_run_directory(tmp_path / "empty") == tmp_path / "empty"
    (tmp_path / "taken").write_text("mine")
    assert command_line.new_run_directory(tmp_path / "taken") == tmp_path / "taken-2"
    assert (tmp_path / "taken").read_text() == "mine"


def test_runs_that_start_together_get_different_directories(tmp_path):
    directories, barrier = [], threading.Barrier(8)

    def start():
        barrier.wait()
        directories.append(command_line.new_run_directory(tmp_path / "results"))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(directories)) == 8


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to .*file/results"):
        command_line.new_run_directory(tmp_path / "file" / "results")
    with pytest.raises(InputError, match="cannot be written to /proc/results"):
        command_line.new_run_directory("/proc/results")


def test_a_failed_run_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), command_line.run_directory(tmp_path / "results") as directory:
        (directory / "half.png").write_text("")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_failed_run_leaves_no_parents_behind_and_takes_none_away(tmp_path):
    (tmp_path / "mine").mkdir()
    for path in ("mine/a/b", "mine"):
        with pytest.raises(RuntimeError), command_line.run_directory(tmp_path / path):
            raise RuntimeError
        assert [str(x.relative_to(tmp_path)) for x in tmp_path.rglob("*")] == ["mine"]


def test_results_of_a_user_that_does_not_exist_or_in_a_circle_of_links_are_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "link")
    for path in ("~no-such-user/results", tmp_path / "link" / "results"):
        with pytest.raises(InputError), command_line.run_directory(path):
            raise AssertionError("there is no such directory")


def test_a_directory_in_which_nothing_can_be_written_is_not_left_behind(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match="No space left"):
        command_line.new_run_directory(tmp_path / "a" / "results")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="No space left"):
        command_line.new_run_directory(tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()


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
        ("steps", "no setting 'steps'.*steps, stop"),
        ("speed=1", "no setting 'speed=1'.*steps, stop"),
        ("steps=0.5", "steps is '0.5', expected a value such as 3"),
        ("stop=high", "stop is 'high', expected a number"),
    ],
)
def test_settings_that_do_not_exist_or_have_another_type_are_refused(assignment, words):
    with pytest.raises(InputError, match=words):
        command_line.parse_settings([assignment], {"steps": 3, "stop": None})
