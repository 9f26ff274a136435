import json

import pytest

from styleclip_jax import InputError
from styleclip_jax.runs.settings import expand


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "settings.json"
    flags = {"description": ["a hat", "a scarf"], "steps": 80, "strength": [-4.0]}
    path.write_text(json.dumps({"script": "optimize.py", "latents": "start.npy", "flags": flags}))
    return path


def test_settings_become_flags_and_the_latents_are_next_to_them(file):
    assert expand(["optimize.py", f"--settings={file}"], "optimize.py") == [
        "optimize.py",
        "--description=a hat",
        "--description=a scarf",
        "--steps=80",
        "--strength=-4.0",
        f"--latents={file.parent / 'start.npy'}",
        f"--settings={file}",
    ]


@pytest.mark.parametrize("given", [["--steps=5"], ["--steps", "5"], ["-steps=5"]])
def test_given_flags_prevail(file, given):
    argv = expand(["optimize.py", "--settings", str(file), *given], "optimize.py")
    assert "--steps=80" not in argv
    assert argv[-len(given) :] == given


def test_without_settings_nothing_changes():
    for argv in (["optimize.py", "--steps=5"], ["optimize.py"]):
        assert expand(argv, "optimize.py") == argv


def test_settings_of_another_script_are_refused_with_its_name(file):
    with pytest.raises(InputError, match=r"are for optimize.py, not for apply_mapper.py"):
        expand(["apply_mapper.py", f"--settings={file}"], "apply_mapper.py")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"script": "optimize.py", "latents": "../../etc/passwd", "flags": {}}',
        '{"script": "optimize.py", "latents": "start.npy", "flags": {"a b": 1}}',
        '{"script": "optimize.py", "latents": "start.npy", "flags": 7}',
    ],
)
def test_damaged_settings_print_one_line(file, content):
    file.write_text(content)
    with pytest.raises(InputError, match="is damaged"):
        expand(["optimize.py", f"--settings={file}"], "optimize.py")


def test_missing_settings_print_one_line(tmp_path):
    with pytest.raises(InputError):
        expand(["optimize.py", f"--settings={tmp_path / 'absent'}"], "optimize.py")
