import functools
import itertools
import re

import numpy as np
import pytest

from avatars.attributes import LABELS, NAMES, SLOTS, UNKNOWN, index, observe, sample
from avatars.captions import (
    CARRIERS,
    KINDS,
    LANGUAGES,
    MAX_WORDS,
    Meaning,
    Truth,
    about,
    captions,
    describe,
    fill,
    fits,
    load_language,
    neutral,
    prompts,
    truths,
)

COUNT = 6000


def words(text: str) -> tuple[str, ...]:
    """The words of a text, and commas, without articles, hyphens and the period.

    Variants of a preposition are equal.
    """
    text = re.sub(r"[-.]", " ", text).strip(" ,").replace(",", " , ")
    text = re.sub(r"\bв ", "у ", re.sub(r"\bіз ", "з ", text))
    return tuple(re.sub(r"\b(a|an|the) ", " ", text).split())


@functools.cache
def endings_of_adjectives(language: str) -> set[str]:
    spoken = load_language(language)
    templates = [
        *spoken.people,
        *spoken.instructions["adjectives"],
        *(phrase.text for phrase in all_phrases(language, "people")),
    ]
    return {"", *itertools.chain(*(re.findall(r"~(\w+)", x) for x in templates))}


def spellings(text: str, language: str) -> set[tuple[str, ...]]:
    """A phrase in every case, with every pronoun and every ending of adjectives."""
    spoken, endings = load_language(language), {""}
    if language != "en" and text.endswith(("ий", "ій")):
        endings = endings_of_adjectives(language)
    found = set()
    for form in text.split(" / "):
        for ending, pronouns in itertools.product(endings, spoken.pronouns):
            parts = pronouns.split(" / ")
            cases = dict(itertools.zip_longest(("he", "him", "his", "to_him"), parts))
            spelling = re.sub(r"<(\w+)>", lambda x, cases=cases: cases[x[1]], form)
            found.add(fill("~" + ending, [spelling]) if ending else spelling)
    # Most phrases have no pronoun, so that their spellings are the same.
    return {words(spelling) for spelling in found}


def all_phrases(language, *kinds):
    for values in load_language(language).phrases.values():
        for by_kind in values.values():
            for kind in kinds:
                yield from by_kind.get(kind, ())


@functools.cache
def stated_facts(language: str) -> dict[tuple[str, ...], Meaning]:
    """Every phrase, and what it states."""
    facts: dict[tuple[str, ...], Meaning] = {}
    spoken = load_language(language)

    def add(text: str, meaning: Meaning, kind: str) -> None:
        for spelling in spellings(text, language):
            # Sentences stand alone.
            spelling = ("|", *spelling, "|") if kind == "sentences" else spelling
            assert facts.setdefault(spelling, meaning) == meaning, f"{text!r} states two things"

    for slot, value in every_value():
        for kind, phrases in spoken.phrases[slot][value].items():
            for phrase in phrases:
                colors = spoken.words.get(slot, {}).get(value, ())
                colors = () if kind == "people" or "~" not in phrase.text else colors
                for text in [fill(phrase.text, [word]) for word in colors] or [fill(phrase.text)]:
                    add(text, {slot: phrase.truth}, kind)
    for color_slot, carriers in CARRIERS.items():
        for color, names in spoken.words[color_slot].items():
            for carrier in carriers:
                for value, kind in itertools.product(SLOTS[carrier], ("nouns", "worn")):
                    for phrase in spoken.phrases[carrier][value].get(kind, ()):
                        meaning = {carrier: phrase.truth, color_slot: Truth(frozenset({color}))}
                        for name in names if "~" in phrase.text else ():
                            add(fill(phrase.text, [name]), meaning, kind)
    return facts


def every_value() -> list[tuple[str, str]]:
    return [(slot, value) for slot, values in SLOTS.items() for value in values]


def parse(text: str, language: str = "en") -> set[tuple[str, Truth]]:
    """Everything that a text states. Of overlapping phrases, the longest or first one counts."""
    facts, left, found = stated_facts(language), ["|", *words(text), "|"], set()
    for length in range(len(left), 0, -1):
        for start in range(len(left) - length + 1):
            if meaning := facts.get(tuple(left[start : start + length])):
                found |= {*meaning.items()}
                left[start : start + length] = [""] * length
    return found


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("slot", SLOTS)
def test_every_value_has_several_kinds_of_phrases_and_many_of_them(slot, language):
    fewest = {"en": 25, "uk": 8}[language]
    for value in SLOTS[slot]:
        phrases = load_language(language).phrases[slot][value]
        assert {*phrases} <= {*KINDS} and len(phrases) >= 3
        texts = [phrase.text for found in phrases.values() for phrase in found]
        assert len(texts) == len(set(texts)) >= fewest, (value, texts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_phrase_states_one_value_or_a_group(language):
    assert len(stated_facts(language)) > 1000
    for slot, value in every_value():
        for found in load_language(language).phrases[slot][value].values():
            for phrase in found:
                assert value in phrase.truth.true, phrase
                assert phrase.truth.true | phrase.truth.possible <= SLOTS[slot].keys()


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_state_only_what_the_image_shows(language):
    labels, rng = observe(sample(COUNT, seed=5)), np.random.default_rng(6)
    for row in labels:
        text, meaning = describe(row, rng, language)
        seen = {slot: LABELS[slot][label] for slot, label in zip(NAMES, row, strict=True)}
        assert meaning
        for slot, truth in meaning.items():
            assert seen[slot] in truth.true, f"{text!r} states {truth} of {slot}"
        for slot, truth in parse(text, language):
            assert slot in meaning, text
            assert seen[slot] in truth.true | truth.possible, f"{text!r} states {truth} of {slot}"


@pytest.mark.parametrize(
    ("text", "slot", "true", "possible"),
    [
        ("glasses", "glasses", {"glasses"}, {"sunglasses"}),
        ("shades", "glasses", {"sunglasses"}, {}),
        ("eyewear", "glasses", {"glasses", "sunglasses"}, {}),
        ("a hat", "headwear", {"hat"}, {"winter hat"}),
        ("a beanie", "headwear", {"winter hat"}, {}),
        ("headwear", "headwear", {"hat", "winter hat", "turban", "hijab"}, {}),
        ("bareheaded", "headwear", {"none"}, {}),
        ("a beard", "facial_hair", {"beard"}, {}),
        ("a moustache", "facial_hair", {"moustache"}, {"beard"}),
        ("facial hair", "facial_hair", {"beard", "moustache"}, {}),
        ("clean-shaven", "facial_hair", {"none"}, {}),
        ("long hair", "hair", {"long"}, {"dreadlocks"}),
        ("bald", "hair", {"bald"}, {}),
        ("purple hair", "hair_color", {"purple"}, {}),
        ("smiling", "mouth", {"smiling"}, {}),
        ("who is winking", "eyes", {"wink"}, {}),
    ],
)
def test_common_words_mean_what_people_mean_by_them(text, slot, true, possible):
    meaning = {slot: Truth(frozenset(true), frozenset(possible))}
    assert stated_facts("en")[words(text)] == meaning


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_hair_color_of_a_bald_person_is_stated_for_the_facial_hair(language):
    attributes, rng = sample(300, seed=5), np.random.default_rng(0)
    attributes[:, NAMES.index("hair")] = index("hair", "bald")
    meanings = [describe(row, rng, language)[1] for row in observe(attributes)]
    colored = [meaning for meaning in meanings if "hair_color" in meaning]
    assert colored and all("facial_hair" in meaning for meaning in colored)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_value_of_every_slot_is_stated_in_some_caption(language):
    texts = captions(sample(1500, seed=5), np.random.default_rng(6), language)
    stated = {(slot, truth) for text in texts for slot, truth in parse(text, language)}
    assert {(slot, Truth(frozenset({value}))) for slot, value in every_value()} <= stated


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_are_short_varied_and_readable(language):
    texts = captions(sample(COUNT, seed=5), np.random.default_rng(6), language)
    lengths = [len(text.split()) for text in texts]
    assert max(len(re.findall(r"\w+|[^\w\s]", text)) for text in texts) <= MAX_WORDS
    assert min(lengths) == 1
    assert len(set(texts)) > 0.9 * COUNT
    wrong = r"\ba [aeiou]|\ban [^aeiou]|  |^ | $| ,|,,|^,|,$|\band$|[{}~<>/]|[A-Z]"
    assert not [text for text in texts if re.search(wrong, text.replace("w/", "with"))]


def test_captions_are_reproducible_by_seed():
    attributes = sample(50, seed=1)
    first = captions(attributes, np.random.default_rng(2))
    assert first == captions(attributes, np.random.default_rng(2))
    assert first != captions(attributes, np.random.default_rng(3))


@pytest.mark.parametrize("slot", SLOTS)
def test_prompts_state_their_value_and_nothing_else(slot):
    for value in SLOTS[slot]:
        assert len(prompts(slot, value)) >= 2
        for prompt in prompts(slot, value):
            for stated, truth in parse(prompt):
                assert (stated, truth.true) == (slot, {value}), prompt


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("slot", SLOTS)
def test_texts_about_one_value_state_it_and_nothing_else(slot, language):
    rng = np.random.default_rng(0)
    for value in SLOTS[slot]:
        for _ in range(60):
            text, meaning = about(slot, value, rng, language)
            assert value in meaning[slot].true and len(meaning) == 1
            assert parse(text, language) == {*meaning.items()}, text


@pytest.mark.parametrize("language", LANGUAGES)
def test_neutral_texts_state_nothing(language):
    rng = np.random.default_rng(0)
    texts = {neutral(rng, language) for _ in range(200)}
    assert not any(parse(text, language) for text in texts)
    assert {"en": {"a person", "someone"}, "uk": {"людина", "хтось"}}[language] <= texts


def test_a_text_fits_true_labels_and_is_undecided_for_possible_ones():
    meaning = {"glasses": Truth(frozenset({"glasses"}), frozenset({"sunglasses"}))}
    labels = np.repeat(observe(sample(1, seed=0)), 4, axis=0)
    labels[:3, NAMES.index("glasses")] = [
        index("glasses", name) for name in ("none", "glasses", "sunglasses")
    ]
    labels[3, NAMES.index("glasses")] = UNKNOWN
    np.testing.assert_array_equal(fits(truths([meaning]), labels), [[0, 1, np.nan, np.nan]])
    np.testing.assert_array_equal(fits(truths([{}]), labels), [[1, 1, 1, 1]])
    hairy = Truth(frozenset({"short", "long"}))
    labels[:, NAMES.index("hair")] = index("hair", "bald")
    assert not fits(truths([meaning | {"hair": hairy}]), labels).any()
    labels[:, NAMES.index("hair")] = index("hair", "long")
    np.testing.assert_array_equal(
        fits(truths([meaning | {"hair": hairy}]), labels), [[0, 1, np.nan, np.nan]]
    )
