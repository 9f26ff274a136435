import re

import numpy as np
import pytest

from avatars.attributes import LABELS, NAMES, SLOTS, observe, sample
from avatars.captions import (
    CARRIERS,
    COLOR_WORDS,
    MAX_WORDS,
    PHRASES,
    about,
    captions,
    neutral,
    prompts,
    tell,
)

COUNT = 6000


def stated_facts() -> dict[str, set[tuple[str, str]]]:
    """Every phrase of the tables and the (slot, value) pairs that it states."""
    facts: dict[str, set[tuple[str, str]]] = {}
    for slot, values in PHRASES.items():
        for value, phrases in values.items():
            for text in (*phrases.adjectives, *phrases.nouns, *phrases.clauses):
                assert text not in facts, f"{text!r} would state two things"
                facts[text] = {(slot, value)}
    for color_slot, carriers in CARRIERS.items():
        for carrier, values in carriers.items():
            for value, templates in values.items():
                for color, words in COLOR_WORDS[color_slot].items():
                    for text in (tell(t, word) for t in templates for word in words):
                        assert text not in facts, f"{text!r} would state two things"
                        facts[text] = {(carrier, value), (color_slot, color)}
    return facts


def parse(text: str, facts: dict[str, set[tuple[str, str]]]) -> set[tuple[str, str]]:
    """Everything that a caption states, reading the longest phrase first."""
    words = text.replace(",", "").split()
    shortened = {text.removeprefix("a "): stated for text, stated in facts.items()}
    known = shortened | facts
    found, position = set(), 0
    while position < len(words):
        for end in range(len(words), position, -1):
            if (phrase := " ".join(words[position:end])) in known:
                found |= known[phrase]
                position = end
                break
        else:
            position += 1
    return found


@pytest.fixture(scope="module")
def described() -> tuple[np.ndarray, list[str]]:
    attributes = sample(COUNT, seed=5)
    return observe(attributes), captions(attributes, np.random.default_rng(6))


def test_captions_state_only_what_the_picture_shows(described):
    labels, texts = described
    facts = stated_facts()
    for row, text in zip(labels, texts, strict=True):
        seen = {(slot, LABELS[slot][label]) for slot, label in zip(NAMES, row, strict=True)}
        stated = parse(text, facts)
        assert stated, text
        assert stated <= seen, f"{text!r} states {stated - seen}"


@pytest.mark.parametrize(
    ("pattern", "slot", "values"),
    [
        (r"sunglasses|shades|dark glasses", "glasses", {"sunglasses"}),
        (
            r"(?<!no )(?<!without )(?<!dark )(?<!tinted )(?<!wearing )(?<!has no )\bglasses",
            "glasses",
            {"glasses"},
        ),
        (r"(?<!no )(?<!without a )(beard\b|bearded)", "facial_hair", {"beard"}),
        (r"beanie|winter hat|knit cap|wool", "headwear", {"winter hat"}),
        (r"(?<!un)(?<!not )smil|happy\b(?<!unhappy)|grin", "mouth", {"smiling"}),
        (r"bald\b|hairless", "hair", {"bald"}),
        (r"purple(-haired| hair)|violet(-haired| hair)", "hair_color", {"purple"}),
        (r"red (hoodie|t-shirt|suit|overalls|hat|hijab)", "clothes_color", {"red"}),
    ],
)
def test_common_words_mean_what_people_mean_by_them(described, pattern, slot, values):
    labels, texts = described
    found = [
        LABELS[slot][row[NAMES.index(slot)]]
        for row, text in zip(labels, texts, strict=True)
        if re.search(pattern, text)
    ]
    assert found
    assert set(found) <= values


def test_hair_color_of_a_beard_is_not_told_as_hair(described):
    labels, texts = described
    bald = labels[:, NAMES.index("hair")] == LABELS["hair"].index("bald")
    told = [text for text, is_bald in zip(texts, bald, strict=True) if is_bald]
    assert not any(
        re.search(r"-haired|(?<!no )(?<!without )(?<!any )(?<!facial )\bhair\b", t) for t in told
    )


def test_every_value_of_every_slot_is_stated_in_some_caption(described):
    facts = stated_facts()
    stated = set().union(*(parse(text, facts) for text in described[1]))
    assert stated == {(slot, value) for slot, values in SLOTS.items() for value in values}


def test_captions_are_short_varied_and_readable(described):
    texts = described[1]
    lengths = [len(text.split()) for text in texts]
    assert max(lengths) <= MAX_WORDS
    assert min(lengths) == 1
    assert len(set(texts)) > 0.9 * COUNT
    assert not any(re.search(r"\ba [aeiou]|\ban [^aeiou]|  |^ | $| ,|and$|[{}]", t) for t in texts)


def test_captions_repeat_with_the_same_generator_seed_only():
    attributes = sample(50, seed=1)
    first = captions(attributes, np.random.default_rng(2))
    assert first == captions(attributes, np.random.default_rng(2))
    assert first != captions(attributes, np.random.default_rng(3))


@pytest.mark.parametrize("slot", SLOTS)
def test_prompts_state_their_value_and_nothing_else(slot):
    facts = stated_facts()
    for value in SLOTS[slot]:
        assert len(prompts(slot, value)) >= 2
        for prompt in prompts(slot, value):
            assert parse(prompt, facts) == {(slot, value)}, prompt


@pytest.mark.parametrize("slot", SLOTS)
def test_texts_about_one_value_state_it_and_nothing_else(slot):
    facts, rng = stated_facts(), np.random.default_rng(0)
    for value in SLOTS[slot]:
        texts = [about(slot, value, rng) for _ in range(60)]
        assert all(parse(text, facts) == {(slot, value)} for text in texts), texts
        assert any(text.startswith(("give", "make", "add", "put", "show")) for text in texts)


def test_neutral_texts_state_nothing():
    facts, rng = stated_facts(), np.random.default_rng(0)
    texts = {neutral(rng) for _ in range(200)}
    assert not any(parse(text, facts) for text in texts)
    assert {"a person", "someone"} <= texts
