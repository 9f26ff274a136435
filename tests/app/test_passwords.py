import pytest

from styleclip_jax import InputError
from styleclip_jax.app import passwords


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "users"
    for name in ("olena", "tom"):
        monkeypatch.setattr(passwords.getpass, "getpass", lambda _, name=name: f"secret of {name}")
        passwords.main([str(path), name])
    return path


def test_only_matching_names_and_passwords_are_accepted(file):
    check = passwords.password_check(file)
    assert check("olena", "secret of olena")
    assert check("tom", "secret of tom")
    assert not check("tom", "secret of olena")
    assert not check("nobody", "")
    assert not check("nobody", "secret of tom")


def test_the_file_has_no_passwords_and_only_its_owner_can_read_it(file):
    assert "secret" not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


def test_an_invalid_line_is_named(file):
    with file.open("a") as lines:
        lines.write("\nplain:password\n")
    with pytest.raises(InputError, match=r"line 4 .* is invalid, expected NAME:SALT"):
        passwords.password_check(file)


def test_a_missing_or_empty_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        passwords.password_check(tmp_path / "absent")
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="has no users"):
        passwords.password_check(tmp_path / "empty")
