import string

import pytest

from styleclip_jax.app import strings
from styleclip_jax.app.strings import EXAMPLES, keys, preferred_language, say


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("uk-UA,uk;q=0.9,en;q=0.8", "uk"),
        ("en-GB,en;q=0.9,uk;q=0.5", "en"),
        ("de-DE,de;q=0.9,uk;q=0.7,en;q=0.3", "uk"),
        ("fr", "en"),
        ("", "en"),
        ("uk;q=invalid", "uk"),
        ("*", "en"),
    ],
)
def test_the_browser_chooses_the_language(header, language):
    assert preferred_language(header) == language


def test_both_languages_have_the_same_fields():
    for key in keys():
        english, ukrainian = (
            {name for _, name, _, _ in string.Formatter().parse(text) if name}
            for text in strings._TABLE[key]
        )
        assert english == ukrainian, key


def test_every_text_is_translated():
    for key in keys():
        english, _ = strings._TABLE[key]
        values = {name: 1 for _, name, _, _ in string.Formatter().parse(english) if name}
        said = [say(language, key, **values) for language in ("en", "uk")]
        assert said[0] != said[1], key
    assert all(english != ukrainian for english, ukrainian in EXAMPLES)
