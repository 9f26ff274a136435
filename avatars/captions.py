"""Writes captions of avatars in many wordings; they never state what an image does not show.

`phrases/LANGUAGE.toml` lists phrases for every value of every slot: adjectives ("a *bearded*
person"), people ("a *redhead*"), nouns ("a person with *a beard*"), things to wear ("a person
wearing *glasses*"), clauses ("a person *who is smiling*"), and complete sentences ("*take off the
hat*"). Phrases that are true of several values are listed as groups. If people usually mean one of
these values ("glasses" are not sunglasses), it is the group's `typical` value, and the phrase is
neither true nor false of the others. Lists start with common phrases, which are sampled more often;
the phrases of a `common` group come before those of the value.

In these files, "~" marks the place of adjectives in people, and of a color elsewhere. A color is
stated together with its carrier ("long *purple* hair", "a *red* hat") or by its own phrase
("dressed in *red*"). Letters after "~" are the ending of the grammatical case; " / " separates the
cases of people and things, and languages may lack the last ones. "<his>" and similar words are
pronouns. Avataaars have no gender, so captions use all pronouns.
"""

import dataclasses
import functools
import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence, Set
from importlib import resources
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int, Int8

from avatars.attributes import LABELS, NAMES, SLOTS, UNKNOWN, observe

T = TypeVar("T")

LANGUAGES = ("en", "uk")
MAX_WORDS = 22  # Maximum length of a caption, including punctuation marks.
KINDS = ("adjectives", "people", "nouns", "worn", "clauses", "sentences")
# Slots whose phrases can include a color.
CARRIERS = {"hair_color": ("hair", "facial_hair"), "clothes_color": ("clothes", "headwear")}

# Names in templates of the forms separated by " / ": nominative, instrumental, accusative and
# locative for things; nominative, genitive and accusative for people.
_THING = ("what", "with_what", "get_what", "in_what")
_PERSON = ("who", "of_whom", "whom")
_PRONOUN = ("he", "him", "his", "to_him")
# Endings of a soft stem, such as "синій", by those of a hard stem.
_SOFT = {"а": "я", "у": "ю", "е": "є", "ою": "ьою", "ої": "ьої", "ого": "ього", "ому": "ьому"}
_COUNT_WEIGHTS = (0.28, 0.28, 0.2, 0.12, 0.07, 0.05)


class Truth(NamedTuple):
    """The values of a slot that a phrase is true of, and those that it may be true of."""

    true: frozenset[str]
    possible: frozenset[str] = frozenset()


# The meaning of a text: a truth per slot; other slots may have any value.
Meaning = Mapping[str, Truth]


class Phrase(NamedTuple):
    """A way to state something about one slot."""

    text: str
    truth: Truth


class Statement(NamedTuple):
    """A phrase of a caption; a color with its carrier states two slots."""

    slot: str
    kind: str
    text: str
    meaning: Meaning


@dataclasses.dataclass(frozen=True)
class Language:
    """The contents of a language's file.

    Attributes:
        people: Nouns for a person that state no attribute.
        frames: Templates for a sentence about a person.
        conjunctions: Words before the last of several things.
        pronouns: Pronouns of the person, in the forms of _PRONOUN.
        connectives: Words between a person and a statement, by kind.
        instructions: Templates of instructions about one statement, by kind.
        words: Names of colors by slot and value.
        phrases: All phrases that state a value, by slot, value and kind.
    """

    people: list[str]
    frames: list[str]
    conjunctions: list[str]
    pronouns: list[str]
    connectives: dict[str, list[str]]
    instructions: dict[str, list[str]]
    words: dict[str, dict[str, list[str]]]
    phrases: dict[str, dict[str, dict[str, list[Phrase]]]]


@functools.cache
def load_language(language: str) -> Language:
    """Reads a language's file."""
    file = resources.files("avatars") / "phrases" / f"{language}.toml"
    contents = tomllib.loads(file.read_text(encoding="utf-8"))
    fields = {field.name for field in dataclasses.fields(Language)} - {"phrases"}
    phrases = {
        slot: {value: _phrases(contents, slot, value) for value in values}
        for slot, values in SLOTS.items()
    }
    return Language(**{name: contents[name] for name in fields}, phrases=phrases)


def _phrases(contents: dict[str, Any], slot: str, value: str) -> dict[str, list[Phrase]]:
    """All phrases that state a value, by kind, without empty kinds."""
    groups = [group for group in contents["groups"] if group["slot"] == slot]
    tables = [contents["colored"].get(slot, {}), contents.get(slot, {}).get(value, {})]
    only = frozenset({value})
    phrases = {}
    for kind in KINDS:
        own = [Phrase(text, Truth(only)) for table in tables for text in table.get(kind, ())]
        common, typical, shared = [], [], []
        for group in groups:
            values, texts = frozenset(group["values"]), group.get(kind, ())
            if group.get("typical") == value:
                found = [Phrase(text, Truth(only, values - only)) for text in texts]
                (common if group.get("common") else typical).extend(found)
            elif "typical" not in group and value in values:
                shared += [Phrase(text, Truth(values)) for text in texts]
        # In both lists, common phrases come first.
        turns = [x for pair in itertools.zip_longest(own, typical) for x in pair if x]
        found = common + turns + shared
        if found:
            phrases[kind] = found
    return phrases


def inflect(word: str, ending: str) -> str:
    """Puts a Ukrainian adjective into another form: "синій" with "ого" is "синього".

    Args:
        word: The masculine nominative.
        ending: The ending of a hard stem. Empty: the word does not change.
    """
    if not ending:
        return word
    if word.endswith("ій"):
        return word[:-2] + _SOFT.get(ending, ending.replace("и", "і", 1))
    return word[:-2] + ending


def fill(text: str, words: Sequence[str] = (), separator: str = " ") -> str:
    """Replaces "~" with words, or removes it."""
    if not words:
        return re.sub(r"~\w* ?", "", text).strip()
    return re.sub(
        r"~(\w*)", lambda place: separator.join(inflect(word, place[1]) for word in words), text
    )


def _forms(text: str, names: Sequence[str]) -> dict[str, str]:
    """The forms of a word by name; missing forms are the first one."""
    parts = text.split(" / ")
    return {name: parts[i] if i < len(parts) else parts[0] for i, name in enumerate(names)}


def _pick(options: Sequence[T], rng: np.random.Generator) -> T:
    """Picks one of several options, the first ones more often."""
    return options[int(len(options) * rng.random() ** 2)]


def _pick_phrase(
    phrases: Mapping[str, Sequence[Phrase]], rng: np.random.Generator
) -> tuple[str, Phrase]:
    """Picks a kind and one of its phrases."""
    # Halfway between equally frequent kinds and equally frequent phrases.
    weights = np.sqrt([len(found) for found in phrases.values()])
    kind = list(phrases)[rng.choice(len(phrases), p=weights / weights.sum())]
    return kind, _pick(phrases[kind], rng)


def _choose_slots(facts: dict[str, str], rng: np.random.Generator) -> list[str]:
    """Samples one to six slots in random order; people rarely mention absent things."""
    slots = list(rng.permutation([slot for slot in facts if facts[slot] != "none"]))
    absent = [slot for slot in facts if facts[slot] == "none"]
    if absent and rng.random() < 0.25:
        slots.insert(0, absent[rng.integers(len(absent))])
    count = 1 + rng.choice(len(_COUNT_WEIGHTS), p=_COUNT_WEIGHTS)
    return [str(slot) for slot in rng.permutation(slots[:count])]


def _color_statement(
    slot: str,
    facts: dict[str, str],
    chosen: list[str],
    language: Language,
    rng: np.random.Generator,
) -> Statement | None:
    """States a color together with its carrier; None if a phrase of its own is better."""
    carriers = {}
    for carrier in CARRIERS[slot]:
        phrases = language.phrases[carrier][facts[carrier]] if carrier in facts else {}
        colored = {
            kind: [phrase for phrase in phrases[kind] if "~" in phrase.text]
            for kind in ("nouns", "worn")
            if kind in phrases
        }
        if any(colored.values()):
            carriers[carrier] = {kind: found for kind, found in colored.items() if found}
    told = [carrier for carrier in carriers if carrier in chosen]
    # "Purple hair" would be wrong for a bald head with a purple beard.
    only_carrier = slot == "hair_color" and "hair" not in carriers and bool(carriers)
    if not told and not only_carrier:
        return None
    options = told or list(carriers)
    carrier = options[rng.integers(len(options))]
    kind, phrase = _pick_phrase(carriers[carrier], rng)
    text = fill(phrase.text, [_pick(language.words[slot][facts[slot]], rng)])
    meaning = {carrier: phrase.truth, slot: Truth(frozenset({facts[slot]}))}
    return Statement(carrier, kind, text, meaning)


def _statement(
    slot: str, value: str, language: Language, rng: np.random.Generator, but: Set[str] = frozenset()
) -> Statement:
    """States a value, with a phrase of any kind but those in `but`."""
    phrases = language.phrases[slot][value]
    kind, phrase = _pick_phrase({k: v for k, v in phrases.items() if k not in but}, rng)
    text = phrase.text
    if kind != "people":
        words = language.words.get(slot, {}).get(value, [])
        text = fill(text, [_pick(words, rng)] if words else [])
    return Statement(slot, kind, text, {slot: phrase.truth})


def _statements(
    facts: dict[str, str], language: Language, rng: np.random.Generator
) -> list[Statement]:
    chosen = _choose_slots(facts, rng)
    colored = {
        statement.slot: statement
        for slot in CARRIERS
        if slot in chosen and (statement := _color_statement(slot, facts, chosen, language, rng))
    }
    carried = {slot for slot in CARRIERS if colored.keys() & {*CARRIERS[slot]}}
    rest = [slot for slot in chosen if slot not in carried | colored.keys()]
    statements = list(colored.values())
    # Sentences stand alone, and a caption has one subject.
    but = {"sentences"} if len(statements) + len(rest) > 1 else set()
    for slot in rest:
        statements.append(_statement(slot, facts[slot], language, rng, but))
        if statements[-1].kind == "people":
            but.add("people")
    return [statements[i] for i in rng.permutation(len(statements))]


def _join(texts: Sequence[str], conjunction: str) -> str:
    return conjunction.join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def _things(
    statements: list[Statement], language: Language, rng: np.random.Generator
) -> dict[str, str]:
    """The forms of several things together."""
    # "No hat and glasses" would be ambiguous.
    texts = sorted((x.text for x in statements), key=lambda text: text.startswith("no "))
    conjunction = _pick(language.conjunctions, rng)
    every = [_forms(text, _THING) for text in texts]
    return {name: _join([x[name] for x in every], conjunction) for name in _THING}


def _sentence(statements: list[Statement], language: Language, rng: np.random.Generator) -> str:
    """A sentence about a person."""
    told: dict[str, list[Statement]] = {kind: [] for kind in KINDS}
    for statement in statements:
        # "With glasses", though more often "wearing glasses".
        with_it = statement.kind == "worn" and rng.random() < 0.3
        told["nouns" if with_it else statement.kind].append(statement)
    adjectives = [statement.text for statement in told["adjectives"]]
    parts = [statement.text for statement in told["clauses"] if statement.slot != "background"]
    parts += [
        _pick(language.connectives[kind], rng).format(**_things(told[kind], language, rng))
        for kind in ("nouns", "worn")
        if told[kind]
    ]
    if adjectives and "adjectives" in language.connectives and rng.random() < 0.15:
        conjunction = _pick(language.conjunctions, rng)
        parts.append(fill(_pick(language.connectives["adjectives"], rng), adjectives, conjunction))
        adjectives = []
    parts = [parts[i] for i in rng.permutation(len(parts))]
    parts += [statement.text for statement in told["clauses"] if statement.slot == "background"]
    people = [statement.text for statement in told["people"]] or language.people
    separator = (" ", ", ")[rng.integers(2)]
    person = _forms(fill(_pick(people, rng), adjectives, separator), _PERSON)
    between = (" ", " ", ", ")[rng.integers(3)]
    everything = {name: between.join([form, *parts]) for name, form in person.items()}
    frame = _pick(language.frames, rng) if rng.random() < 0.3 else "{who}"
    return frame.format(**everything)


def _instruction(statement: Statement, language: Language, rng: np.random.Generator) -> str:
    """An instruction to an editor: "give her a beard", "make him bald", "add glasses"."""
    template, text = _pick(language.instructions[statement.kind], rng), statement.text
    if statement.kind == "adjectives":
        return fill(template, [text])
    if statement.kind == "people":
        return template.format(**_forms(fill(text), _PERSON))
    return template.format(**_forms(text, _THING))


def _tell(statements: list[Statement], language: Language, rng: np.random.Generator) -> str:
    """Expresses statements as a sentence, an instruction, or a few words."""
    first = statements[0]
    if first.kind == "sentences":
        text = first.text
    elif len(statements) == 1 and rng.random() < 0.3:
        text = _instruction(first, language, rng)
    elif len(statements) < 3 and rng.random() < 0.2:
        texts = [fill(statement.text.split(" / ")[0]) for statement in statements]
        text = ", ".join(text.removeprefix("a ") for text in texts)
    else:
        text = _sentence(statements, language, rng)
    return _written(text, language, rng)


def _readable(text: str, pronouns: str) -> str:
    """Inserts pronouns and corrects commas, prepositions and articles."""
    cases = _forms(pronouns, _PRONOUN)
    text = re.sub(r"<(\w+)>", lambda place: cases[place[1]], text)
    text = re.sub(r"[ ,]*, *", ", ", text).strip(" ,")
    # More usual in Ukrainian.
    text = re.sub(r"\bз (?=[зсцчшщж])", "із ", re.sub(r"\bв (?=[вф])", "у ", text))
    return re.sub(r"\ba (?=[aeiou])", "an ", re.sub(r"\ban (?=[^aeiou])", "a ", text))


def _written(text: str, language: Language, rng: np.random.Generator) -> str:
    """Makes the text readable, with occasional careless spelling."""
    text = _readable(text, _pick(language.pronouns, rng))
    if rng.random() < 0.08:
        text = re.sub(r"\b(a|an|the) ", "", text)
    if rng.random() < 0.15:
        text = text.replace("-", " ")
    return text + "." if rng.random() < 0.08 else text


def choose_language(rng: np.random.Generator, ukrainian: float) -> str:
    """Draws the language of a text.

    Args:
        rng: Source of the choice.
        ukrainian: Share of Ukrainian texts; the others are English.
    """
    return "uk" if rng.random() < ukrainian else "en"


def neutral(rng: np.random.Generator, language: str = "en") -> str:
    """Writes a neutral caption, such as "a portrait of a woman", which fits every image."""
    spoken = load_language(language)
    return _written(_sentence([], spoken, rng), spoken, rng)


def about(
    slot: str, value: str, rng: np.random.Generator, language: str = "en"
) -> tuple[str, Meaning]:
    """Writes a caption that states one value of one slot, or a group of values that includes it."""
    spoken = load_language(language)
    statement = _statement(slot, value, spoken, rng)
    return _tell([statement], spoken, rng), statement.meaning


def describe(
    labels: Int8[np.ndarray, " slots"], rng: np.random.Generator, language: str = "en"
) -> tuple[str, Meaning]:
    """Writes one caption of at most `MAX_WORDS` words and punctuation marks in lower case.

    Args:
        labels: The visible attributes of one image, a row of `avatars.attributes.observe`; negative
            ones are not mentioned.
        rng: Source of all choices.
        language: One of LANGUAGES.

    Returns:
        The caption and its meaning.
    """
    facts = {
        slot: values[label]
        for (slot, values), label in zip(LABELS.items(), labels, strict=True)
        if label >= 0 and values[label] in SLOTS[slot]
    }
    spoken = load_language(language)
    statements = _statements(facts, spoken, rng)
    while _length(text := _tell(statements, spoken, rng)) > MAX_WORDS:
        statements.pop()
    return text, {slot: truth for x in statements for slot, truth in x.meaning.items()}


def _length(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def caption(
    labels: Int8[np.ndarray, " slots"], rng: np.random.Generator, language: str = "en"
) -> str:
    """Writes the caption of :func:`describe` without its meaning."""
    return describe(labels, rng, language)[0]


def captions(
    attributes: Int8[np.ndarray, "count slots"], rng: np.random.Generator, language: str = "en"
) -> list[str]:
    """Writes one caption per image, given its attributes."""
    return [caption(labels, rng, language) for labels in observe(attributes)]


def truths(meanings: Sequence[Meaning]) -> Float[np.ndarray, "texts slots labels"]:
    """Truth of texts for every label: 1 true, 0 false, NaN neither.

    Every slot has as many entries as the slot with most labels, and a last one for UNKNOWN, which
    is NaN if the text mentions the slot.
    """
    most = max(map(len, LABELS.values()))
    table = np.ones((len(meanings), len(NAMES), most + 1), np.float32)
    for rows, meaning in zip(table, meanings, strict=True):
        for slot, truth in meaning.items():
            row = rows[NAMES.index(slot)]
            row[:] = 0
            row[[LABELS[slot].index(value) for value in truth.true]] = 1
            row[[*(LABELS[slot].index(value) for value in truth.possible), UNKNOWN]] = np.nan
    return table


def fits(
    truths: Float[np.ndarray, "texts slots labels"], labels: Int[np.ndarray, "images slots"]
) -> Float[np.ndarray, "texts images"]:
    """Whether texts fit images: 1 if they do, 0 if not, NaN if it is unknown."""
    each = truths[:, np.arange(len(NAMES)), labels]
    return np.where((each == 0).any(-1), 0, each.prod(-1))


def prompts(slot: str, value: str) -> list[str]:
    """Returns the canonical English descriptions of one value, for zero-shot classification."""
    language = load_language("en")
    words = language.words.get(slot, {}).get(value, [""])
    texts = {
        kind: [fill(phrase.text, [word] if word else []) for phrase in phrases for word in words]
        for kind, phrases in language.phrases[slot][value].items()
    }
    worn, adjectives = texts.get("worn", []), texts.get("adjectives", [])
    found = [
        *(f"a person with {noun}" for noun in (worn or texts.get("nouns", []))[:2]),
        *(f"a person wearing {noun}" for noun in worn[:1]),
        *(f"a {adjective} person" for adjective in adjectives[:1]),
        *(f"a person {clause}" for clause in texts.get("clauses", [])[: 0 if adjectives else 2]),
    ]
    return [_readable(text, "they / them / their") for text in found]
