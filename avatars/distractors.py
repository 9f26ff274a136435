"""Adds words to captions that describe no attribute, such as "at the harbor".

Users write about more than attributes: "a pirate with a beard", "hair as red as a fox". In a text
tower that was trained on captions only, every unknown word moves the features; one that is trained
with random English words in random places learns to ignore them.
"""

import re
from collections.abc import Set

import numpy as np
from wonderwords import RandomWord

# Share of captions that get such words, and the probability of every further addition.
SHARE, MORE = 0.5, 0.35

_PEOPLE = re.compile(
    r"\b(?:person|man|woman|guy|girl|boy|lady|kid|face|character|avatar|gentleman|human|friend)\b"
)
_BEFORE = ("a {adjective} {noun}, ", "the {noun}: ", "{adjective} ", "{adjective} {noun}: ")
_AFTER = (
    "at the {noun}", "near a {noun}", "like a {noun}", "from the {noun}", "for a {noun}",
    "of the {noun}", "as {adjective} as a {noun}", "that {verb}s", "who can {verb}", "{verb}s",
    "who cannot {verb}", "who likes to {verb} the {noun}", "to {verb} a {noun}", "and {verb}",
    ", {adjective}", ", {noun}", "after the {noun}", "by a {adjective} {noun}", "{adjective}ly",
)  # fmt: skip


class Distractors:
    """Words that do not occur in captions, and patterns to add them.

    Args:
        known: The words of captions, in lower case. These words, longer words that start with one
            of them, and their beginnings are not added, because they may state an attribute.
    """

    def __init__(self, known: Set[str]):
        words = RandomWord()
        beginnings = {word[:i] for word in known for i in range(1, len(word) + 1)}
        long = {word for word in known if len(word) > 3}
        self._words = {
            kind: [
                word
                for word in map(str.lower, words.filter(include_categories=[kind]))
                if word.isalpha()
                and word not in beginnings
                and not any(word[:i] in long for i in range(4, len(word)))
            ]
            for kind in ("adjective", "noun", "verb")
        }

    def add(self, text: str, rng: np.random.Generator) -> str:
        """Adds words to a share of the texts; the others do not change."""
        if rng.random() >= SHARE:
            return text
        text = self._add_some(text, rng)
        while rng.random() < MORE:
            text = self._add_some(text, rng)
        return re.sub(r"\ba (?=[aeiou])", "an ", text)

    def _add_some(self, text: str, rng: np.random.Generator) -> str:
        """Adds words before, after or inside the text, or replaces the person."""
        words = {kind: found[rng.integers(len(found))] for kind, found in self._words.items()}
        where = rng.random()
        if where < 0.3 and (person := _PEOPLE.search(text)):
            other = words["noun"] if rng.random() < 0.5 else f"{words['adjective']} {person[0]}"
            return text[: person.start()] + other + text[person.end() :]
        if where < 0.45:
            return _BEFORE[rng.integers(len(_BEFORE))].format(**words) + text
        if where < 0.85:
            after = _AFTER[rng.integers(len(_AFTER))].format(**words)
            return text + after if after.startswith(",") else f"{text} {after}"
        parts = text.split(" ")
        parts.insert(rng.integers(len(parts) + 1), words[("adjective", "noun")[rng.integers(2)]])
        return " ".join(parts)
