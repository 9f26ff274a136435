import warnings

import jax
import pytest

from styleclip_jax.runs.compilation_cache import enable_compilation_cache


@pytest.fixture
def changes(monkeypatch):
    """Records changes of JAX's options without making them."""
    changes = {}
    monkeypatch.setattr(jax.config, "update", changes.__setitem__)
    monkeypatch.setenv("HOME", "/home/somebody")
    return changes


def test_compiled_programs_are_kept_below_the_users_home(changes, monkeypatch):
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", None)
    enable_compilation_cache()
    assert changes == {"jax_compilation_cache_dir": "/home/somebody/.cache/styleclip_jax"}


def test_a_cache_that_jax_already_has_stays(changes, monkeypatch):
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", "/cache")
    enable_compilation_cache()
    assert not changes


@pytest.mark.usefixtures("changes")
def test_a_cache_that_cannot_be_written_is_not_mentioned():
    enable_compilation_cache()
    warnings.warn("Error writing persistent compilation cache entry for 'jit_f'", stacklevel=1)
    with pytest.raises(UserWarning):
        warnings.warn("another one", stacklevel=1)
