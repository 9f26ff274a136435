"""Describes avatars in English, in many ways, and never states what a picture does not show.

Every value of every slot has adjectives ("a *bearded* person"), nouns ("a person with *a beard*")
and clauses ("a person *who is smiling*"). A colour belongs to something: it is told together with
its carrier ("long purple hair", "a red hat") or by a phrase of its own ("dressed in red").
Avataaars have no gender, and neither have the captions.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int8

from avatars.attributes import LABELS, SLOTS, observe

MAX_WORDS = 24


class Phrases(NamedTuple):
    """The ways to state one value of one slot."""

    adjectives: tuple[str, ...] = ()
    nouns: tuple[str, ...] = ()
    clauses: tuple[str, ...] = ()


class Statement(NamedTuple):
    """One phrase of a caption: its kind is a field of `Phrases`, and its slot the table's.

    A colour is told together with what carries it, so `facts` may name two slots.
    """

    slot: str
    facts: tuple[str, ...]
    kind: str
    text: str


_HAIR_COLORS = {
    "black": ("black",),
    "brown": ("brown",),
    "blond": ("blond", "blonde"),
    "red": ("red", "ginger"),
    "gray": ("gray", "grey"),
    "pink": ("pink",),
    "purple": ("purple", "violet"),
    "blue": ("blue",),
    "green": ("green",),
}
_CLOTHES_COLORS = {color: (color,) for color in SLOTS["clothes_color"]}
_BACKGROUND_COLORS = {
    "gray": ("gray", "grey"),
    "blue": ("blue", "light blue"),
    "green": ("green", "light green"),
    "yellow": ("yellow", "light yellow"),
    "pink": ("pink",),
    "purple": ("purple", "lilac"),
}
COLOR_WORDS = {"hair_color": _HAIR_COLORS, "clothes_color": _CLOTHES_COLORS}


def _fill(templates: Iterable[str], words: Iterable[str]) -> tuple[str, ...]:
    return tuple(template.format(word) for template in templates for word in words)


PHRASES: dict[str, dict[str, Phrases]] = {
    "hair": {
        "short": Phrases(("short-haired",), ("short hair", "a short haircut")),
        "long": Phrases(("long-haired",), ("long hair", "long straight hair")),
        "curly afro": Phrases(
            ("curly-haired",), ("curly hair", "an afro", "a curly afro", "big curly hair")
        ),
        "bun": Phrases((), ("a bun", "a hair bun", "hair in a bun", "hair tied in a bun")),
        "dreadlocks": Phrases(("dreadlocked",), ("dreadlocks", "dreads", "long dreadlocks")),
        "bald": Phrases(
            ("bald", "hairless"), ("a bald head", "no hair", "a shaved head"), ("without hair",)
        ),
    },
    "hair_color": {
        value: Phrases(_fill(["{}-haired"], words), _fill(["{} hair"], words))
        for value, words in _HAIR_COLORS.items()
    },
    "headwear": {
        "none": Phrases(("bareheaded",), ("no hat",), ("without a hat", "not wearing a hat")),
        "hat": Phrases((), ("a hat", "a big hat", "a wide-brimmed hat", "a sun hat")),
        "winter hat": Phrases(
            (),
            ("a winter hat", "a beanie", "a wool cap", "a knit cap", "a woolly hat"),
        ),
        "turban": Phrases(("turbaned",), ("a turban",)),
        "hijab": Phrases(("veiled",), ("a hijab", "a headscarf", "a veil")),
    },
    "glasses": {
        "none": Phrases((), ("no glasses",), ("without glasses", "not wearing glasses")),
        "glasses": Phrases(
            ("bespectacled",), ("glasses", "eyeglasses", "spectacles", "reading glasses")
        ),
        "sunglasses": Phrases((), ("sunglasses", "shades", "dark glasses", "black sunglasses")),
    },
    "facial_hair": {
        "none": Phrases(
            ("clean-shaven", "beardless"),
            ("no beard", "no facial hair"),
            ("without a beard", "without a moustache", "without facial hair"),
        ),
        "beard": Phrases(("bearded",), ("a beard", "a full beard", "a bushy beard")),
        "moustache": Phrases(
            ("moustached", "mustachioed"), ("a moustache", "a mustache", "a handlebar moustache")
        ),
    },
    "mouth": {
        "smiling": Phrases(
            ("smiling", "happy", "cheerful", "grinning"),
            ("a smile", "a big smile", "a grin", "a happy face"),
            ("who is smiling", "who looks happy", "looking happy"),
        ),
        "serious": Phrases(
            ("serious", "stern", "expressionless"),
            ("a serious face", "a neutral expression", "a straight face"),
            ("who looks serious", "looking serious"),
        ),
        "sad": Phrases(
            ("sad", "unhappy", "frowning", "angry", "grumpy"),
            ("a sad face", "a frown", "a sad expression"),
            ("who looks sad", "looking unhappy", "who is frowning"),
        ),
        "open": Phrases(
            ("screaming", "shouting", "open-mouthed"),
            ("an open mouth", "a wide open mouth"),
            ("who is screaming", "who is shouting"),
        ),
        "tongue": Phrases(
            ("cheeky",),
            ("the tongue out", "tongue out", "a tongue sticking out"),
            ("sticking out the tongue", "showing the tongue"),
        ),
    },
    "eyes": {
        "open": Phrases((), ("open eyes", "ordinary eyes"), ("who is awake",)),
        "closed": Phrases(
            ("sleeping", "sleepy"), ("closed eyes", "eyes closed", "shut eyes"), ("who is asleep",)
        ),
        "surprised": Phrases(
            ("surprised", "astonished", "wide-eyed"),
            ("surprised eyes", "wide eyes", "big round eyes"),
            ("who looks surprised",),
        ),
        "wink": Phrases(("winking",), ("a wink", "one eye closed"), ("who is winking",)),
        "hearts": Phrases(
            ("lovestruck",),
            ("heart eyes", "hearts for eyes", "heart-shaped eyes"),
            ("who is in love",),
        ),
    },
    "skin": {
        "pale": Phrases(
            ("pale", "light-skinned", "fair-skinned"), ("pale skin", "light skin", "fair skin")
        ),
        "tanned": Phrases(("tanned", "tan"), ("tanned skin", "tan skin", "olive skin")),
        "brown": Phrases(("brown-skinned",), ("brown skin",)),
        "dark": Phrases(("dark-skinned",), ("dark skin", "very dark skin")),
    },
    "clothes": {
        "t-shirt": Phrases((), ("a t-shirt", "a shirt", "a tee")),
        "hoodie": Phrases((), ("a hoodie", "a sweatshirt", "a hooded sweatshirt")),
        "blazer": Phrases((), ("a blazer", "a jacket", "a suit")),
        "overall": Phrases((), ("overalls", "an overall", "dungarees")),
    },
    "clothes_color": {
        value: Phrases((), _fill(["{} clothes"], words), _fill(["dressed in {}"], words))
        for value, words in _CLOTHES_COLORS.items()
    },
    "background": {
        value: Phrases(
            (),
            (),
            _fill(
                [
                    "on a {} background",
                    "against a {} background",
                    "in front of a {} background",
                    "in front of a {} wall",
                ],
                words,
            ),
        )
        for value, words in _BACKGROUND_COLORS.items()
    },
}

# What wears which colour, and how to say both in one phrase.
CARRIERS: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "hair_color": {
        "hair": {
            "short": ("short {} hair",),
            "long": ("long {} hair",),
            "curly afro": ("a {} afro", "curly {} hair"),
            "bun": ("a {} bun", "{} hair in a bun"),
            "dreadlocks": ("{} dreadlocks", "{} dreads"),
        },
        "facial_hair": {
            "beard": ("a {} beard",),
            "moustache": ("a {} moustache", "a {} mustache"),
        },
    },
    "clothes_color": {
        "clothes": {
            "t-shirt": ("a {} t-shirt", "a {} shirt"),
            "hoodie": ("a {} hoodie", "a {} sweatshirt"),
            "blazer": ("a {} blazer", "a {} jacket", "a {} suit"),
            "overall": ("{} overalls", "{} dungarees"),
        },
        "headwear": {
            "hat": ("a {} hat",),
            "winter hat": ("a {} beanie", "a {} winter hat", "a {} knit cap"),
            "turban": ("a {} turban",),
            "hijab": ("a {} hijab", "a {} headscarf"),
        },
    },
}

# Slots whose nouns can follow "wearing"; not so the absence of something.
_WORN = ("headwear", "glasses", "clothes", "clothes_color")
# Avatars have no gender or age; the words are there so that the text tower knows and ignores them.
_NOUNS = (
    *("person",) * 6,
    *("face", "avatar", "character", "cartoon character", "human"),
    *("man", "woman", "guy", "girl", "boy", "lady", "kid"),
)
_PRONOUNS = ("someone", "somebody")
_PICTURES = ("portrait", "cartoon", "drawing", "picture", "illustration", "image", "photo")
_COUNT_WEIGHTS = (0.28, 0.28, 0.2, 0.12, 0.07, 0.05)


def _pick(options: Sequence[str], generator: np.random.Generator) -> str:
    return options[int(generator.integers(len(options)))]


def _article(text: str) -> str:
    return f"an {text}" if text[0] in "aeiou" else f"a {text}"


def _join(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def _choose_slots(facts: dict[str, str], generator: np.random.Generator) -> list[str]:
    """Draws one to six slots in random order; nobody often mentions what is not there."""
    slots = list(generator.permutation([slot for slot in facts if facts[slot] != "none"]))
    absent = [slot for slot in facts if facts[slot] == "none"]
    if absent and generator.random() < 0.25:
        slots.insert(0, _pick(absent, generator))
    count = 1 + generator.choice(len(_COUNT_WEIGHTS), p=_COUNT_WEIGHTS)
    return list(generator.permutation(slots[:count]))


def _color_statement(
    slot: str, facts: dict[str, str], chosen: list[str], generator: np.random.Generator
) -> Statement | None:
    """States a colour together with its carrier; None where a phrase of its own is better."""
    templates = {
        carrier: by_value[facts[carrier]]
        for carrier, by_value in CARRIERS[slot].items()
        if facts.get(carrier) in by_value
    }
    told = [carrier for carrier in templates if carrier in chosen]
    # "Purple hair" would be wrong for a bald head with a purple beard.
    only_carrier = slot == "hair_color" and "hair" not in templates and bool(templates)
    if not told and not only_carrier:
        return None
    carrier = _pick(told or list(templates), generator)
    word = _pick(COLOR_WORDS[slot][facts[slot]], generator)
    text = _pick(templates[carrier], generator).format(word)
    return Statement(carrier, (carrier, slot), "nouns", text)


def _statements(facts: dict[str, str], generator: np.random.Generator) -> list[Statement]:
    chosen = _choose_slots(facts, generator)
    colored = {
        statement.slot: statement
        for slot in CARRIERS
        if slot in chosen and (statement := _color_statement(slot, facts, chosen, generator))
    }
    carried = {slot for slot, carriers in CARRIERS.items() if carriers.keys() & colored.keys()}
    statements = list(colored.values())
    for slot in chosen:
        if slot in colored or slot in carried:
            continue
        phrases = PHRASES[slot][facts[slot]]
        kind = _pick([kind for kind, texts in phrases._asdict().items() if texts], generator)
        statements.append(Statement(slot, (slot,), kind, _pick(getattr(phrases, kind), generator)))
    return [statements[i] for i in generator.permutation(len(statements))]


def _subject(adjectives: list[str], generator: np.random.Generator) -> str:
    if not adjectives and generator.random() < 0.1:
        return _pick(_PRONOUNS, generator)
    separator = _pick((" ", ", "), generator)
    subject = _article(" ".join([separator.join(adjectives), _pick(_NOUNS, generator)]).strip())
    if generator.random() < 0.25:
        return f"{_article(_pick(_PICTURES, generator))} of {subject}"
    return subject


def _sentence(statements: list[Statement], generator: np.random.Generator) -> str:
    texts: dict[str, list[str]] = {"adjectives": [], "nouns": [], "worn": [], "clauses": []}
    for slot, _, kind, text in statements:
        worn = kind == "nouns" and slot in _WORN and not text.startswith("no ")
        texts["worn" if worn and generator.random() < 0.6 else kind].append(text)
    parts = list(texts["clauses"])
    if texts["nouns"]:
        parts.append(f"{_pick(('with', 'with', 'who has'), generator)} {_join(texts['nouns'])}")
    if texts["worn"]:
        parts.append(f"{_pick(('wearing', 'wearing', 'in'), generator)} {_join(texts['worn'])}")
    parts = [parts[i] for i in generator.permutation(len(parts))]
    parts.sort(key=lambda part: part.endswith(("background", "wall")))
    return _pick((" ", " ", ", "), generator).join(
        [_subject(texts["adjectives"], generator), *parts]
    )


def describe(
    labels: Int8[np.ndarray, " slots"], generator: np.random.Generator
) -> tuple[str, frozenset[str]]:
    """Writes one caption of at most `MAX_WORDS` words in lower case.

    Args:
        labels: what can be seen of one picture, a row of `avatars.attributes.observe`; nothing is
            said of negative ones.
        generator: source of all choices.

    Returns:
        The caption, and the slots that it tells: it fits every picture with the same labels there.
    """
    facts = {
        slot: values[label]
        for (slot, values), label in zip(LABELS.items(), labels, strict=True)
        if label >= 0 and values[label] in SLOTS[slot]
    }
    statements = _statements(facts, generator)
    if generator.random() < 0.15:
        statements = statements[:2]
        text = ", ".join(statement.text.removeprefix("a ") for statement in statements)
    else:
        while len((text := _sentence(statements, generator)).split()) > MAX_WORDS:
            statements.pop()
    return text, frozenset(slot for statement in statements for slot in statement.facts)


def caption(labels: Int8[np.ndarray, " slots"], generator: np.random.Generator) -> str:
    """Writes the caption of :func:`describe` without its slots."""
    return describe(labels, generator)[0]


def captions(
    attributes: Int8[np.ndarray, "count slots"], generator: np.random.Generator
) -> list[str]:
    """Writes one caption for each picture, given its attributes."""
    return [caption(labels, generator) for labels in observe(attributes)]


def prompts(slot: str, value: str) -> list[str]:
    """Returns the canonical descriptions of one value, for zero-shot classification."""
    adjectives, nouns, clauses = PHRASES[slot][value]
    worn = nouns[:1] if slot in _WORN and value != "none" else ()
    return [
        *(f"a person with {noun}" for noun in nouns[:2]),
        *(f"a person wearing {noun}" for noun in worn),
        *(f"{_article(adjective)} person" for adjective in adjectives[:1]),
        *(f"a person {clause}" for clause in clauses[:2]),
    ]
