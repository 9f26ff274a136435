import errno
import sys
import threading
from pathlib import Path

import pytest

from styleclip_jax.errors import InputError
from styleclip_jax.runs.results import new_run_directory, run_directory


def test_run_directories_are_new_and_note_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["optimize.py", "--description=a hat"])
    names = [new_run_directory(tmp_path / "results").name for _ in range(3)]
    assert names == ["results", "results-2", "results-3"]
    command = (tmp_path / "results-3" / "command.txt").read_text()
    assert command == "python optimize.py '--description=a hat'\n"


def test_an_empty_directory_is_used_and_a_file_is_not_touched(tmp_path):
    (tmp_path / "empty").mkdir()
    assert new_run_directory(tmp_path / "empty") == tmp_path / "empty"
    (tmp_path / "taken").write_text("mine")
    assert new_run_directory(tmp_path / "taken") == tmp_path / "taken-2"
    assert (tmp_path / "taken").read_text() == "mine"


def test_runs_that_start_together_get_different_directories(tmp_path):
    directories, barrier = [], threading.Barrier(8)

    def start():
        barrier.wait()
        directories.append(new_run_directory(tmp_path / "results"))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(directories)) == 8


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to .*file/results"):
        new_run_directory(tmp_path / "file" / "results")
    with pytest.raises(InputError, match="cannot be written to /proc/results"):
        new_run_directory("/proc/results")


def test_a_url_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="gs://bucket/x is a URL"):
        new_run_directory("gs://bucket/x")
    assert not list(tmp_path.iterdir())


def test_a_failed_run_leaves_no_files(tmp_path):
    with pytest.raises(RuntimeError), run_directory(tmp_path / "results") as directory:
        (directory / "half.png").write_text("")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_failed_run_removes_only_the_parents_that_it_created(tmp_path):
    (tmp_path / "mine").mkdir()
    for path in ("mine/a/b", "mine"):
        with pytest.raises(RuntimeError), run_directory(tmp_path / path):
            raise RuntimeError
        assert [str(x.relative_to(tmp_path)) for x in tmp_path.rglob("*")] == ["mine"]


def test_results_of_unknown_users_and_in_cycles_of_links_are_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "link")
    for path in ("~no-such-user/results", tmp_path / "link" / "results"):
        with pytest.raises(InputError), run_directory(path):
            raise AssertionError("there is no such directory")


def test_a_directory_that_cannot_be_written_to_is_removed(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match="No space left"):
        new_run_directory(tmp_path / "a" / "results")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="No space left"):
        new_run_directory(tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()
