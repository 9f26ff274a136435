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
    "black": ("black", "jet black", "dark black"),
    "brown": ("brown", "chestnut"),
    "blond": ("blond", "blonde", "golden", "yellow", "fair"),
    "red": ("red", "ginger", "orange"),
    "gray": ("gray", "grey", "silver"),
    "pink": ("pink", "bright pink"),
    "purple": ("purple", "violet", "lilac"),
    "blue": ("blue", "bright blue"),
    "green": ("green", "bright green"),
}
_HAIR_ADJECTIVES = {
    "brown": ("brunette",),
    "blond": ("blond", "blonde"),
    "red": ("redheaded", "red-headed", "ginger"),
    "gray": ("gray-headed", "grey-headed"),
}
_CLOTHES_COLORS = {color: (color, f"bright {color}") for color in SLOTS["clothes_color"]} | {
    "black": ("black",),
    "white": ("white",),
}
_BACKGROUND_COLORS = {
    "gray": ("gray", "grey"),
    "blue": ("blue", "light blue"),
    "green": ("green", "light green"),
    "yellow": ("yellow", "light yellow"),
    "pink": ("pink", "light pink"),
    "purple": ("purple", "lilac", "light purple", "violet"),
}
COLOR_WORDS = {"hair_color": _HAIR_COLORS, "clothes_color": _CLOTHES_COLORS}


def tell(template: str, word: str) -> str:
    """Puts a word into a template, after the right article."""
    if word[0] in "aeiou":
        template = template.replace("a {}", "an {}")
    return template.format(word)


def _fill(templates: Iterable[str], words: Iterable[str]) -> tuple[str, ...]:
    return tuple(tell(template, word) for template in templates for word in words)


PHRASES: dict[str, dict[str, Phrases]] = {
    "hair": {
        "short": Phrases(
            ("short-haired",),
            (
                "short hair",
                "a short haircut",
                "a short hairstyle",
                "cropped hair",
                "a short cut",
                "hair cut short",
                "neat short hair",
                "very short hair",
            ),
        ),
        "long": Phrases(
            ("long-haired",),
            (
                "long hair",
                "long straight hair",
                "straight long hair",
                "very long hair",
                "shoulder-length hair",
                "long flowing hair",
                "hair down to the shoulders",
            ),
        ),
        "curly afro": Phrases(
            ("curly-haired", "frizzy-haired"),
            (
                "curly hair",
                "an afro",
                "a curly afro",
                "big curly hair",
                "afro hair",
                "a big afro",
                "frizzy hair",
                "an afro hairstyle",
                "big frizzy hair",
                "curls",
                "big curls",
            ),
        ),
        "bun": Phrases(
            (),
            (
                "a bun",
                "a hair bun",
                "hair in a bun",
                "hair tied in a bun",
                "a topknot",
                "a top knot",
                "hair up in a bun",
                "hair tied up",
                "hair pulled up in a bun",
            ),
            ("who wears a bun", "with the hair in a bun"),
        ),
        "dreadlocks": Phrases(
            ("dreadlocked",),
            ("dreadlocks", "dreads", "long dreadlocks", "rasta hair", "locs", "rasta dreadlocks"),
        ),
        "bald": Phrases(
            ("bald", "hairless", "bald-headed"),
            ("a bald head", "no hair", "a shaved head", "a bald scalp", "a hairless head"),
            ("without hair", "without any hair"),
        ),
    },
    "hair_color": {
        value: Phrases(
            _fill(["{}-haired"], words) + _HAIR_ADJECTIVES.get(value, ()),
            _fill(["{} hair", "{} colored hair", "hair dyed {}"], words),
            _fill(["whose hair is {}"], words),
        )
        for value, words in _HAIR_COLORS.items()
    },
    "headwear": {
        "none": Phrases(
            ("bareheaded", "hatless"),
            ("no hat", "no headwear"),
            ("without a hat", "not wearing a hat", "without headwear", "with nothing on the head"),
        ),
        "hat": Phrases(
            (),
            (
                "a hat",
                "a big hat",
                "a wide-brimmed hat",
                "a sun hat",
                "a brimmed hat",
                "a fedora",
                "a sunhat",
                "a large hat",
                "a cowboy hat",
                "a straw hat",
                "a hat with a wide brim",
            ),
            ("with a hat on", "who has a hat on"),
        ),
        "winter hat": Phrases(
            (),
            (
                "a winter hat",
                "a beanie",
                "a wool cap",
                "a knit cap",
                "a woolly hat",
                "a knit hat",
                "a knitted hat",
                "a woolen hat",
                "a bobble hat",
                "a ski hat",
                "a warm hat",
                "a knitted cap",
                "a winter cap",
                "a wool hat",
                "a woolen cap",
                "a beanie hat",
            ),
            ("with a beanie on", "who has a beanie on"),
        ),
        "turban": Phrases(
            ("turbaned",), ("a turban", "a head wrap", "a headwrap"), ("with a turban on",)
        ),
        "hijab": Phrases(
            ("veiled",),
            (
                "a hijab",
                "a headscarf",
                "a veil",
                "a head scarf",
                "a scarf around the head",
                "a muslim headscarf",
                "a scarf over the hair",
            ),
            ("who is veiled", "with a hijab on"),
        ),
    },
    "glasses": {
        "none": Phrases(
            (),
            ("no glasses", "no eyewear"),
            ("without glasses", "not wearing glasses", "without eyewear", "who has no glasses on"),
        ),
        "glasses": Phrases(
            ("bespectacled",),
            (
                "glasses",
                "eyeglasses",
                "spectacles",
                "reading glasses",
                "a pair of glasses",
                "specs",
                "prescription glasses",
                "clear glasses",
                "a pair of spectacles",
                "nerdy glasses",
            ),
            ("with glasses on", "who has glasses on"),
        ),
        "sunglasses": Phrases(
            (),
            (
                "sunglasses",
                "shades",
                "dark glasses",
                "black sunglasses",
                "a pair of sunglasses",
                "dark shades",
                "sunnies",
                "tinted glasses",
                "dark sunglasses",
                "cool sunglasses",
                "cool shades",
                "a pair of shades",
                "aviators",
                "black shades",
            ),
            ("with sunglasses on", "who has sunglasses on", "with shades on"),
        ),
    },
    "facial_hair": {
        "none": Phrases(
            ("clean-shaven", "beardless", "shaven", "smooth-shaven"),
            ("no beard", "no facial hair", "a clean-shaven face", "a shaved face"),
            ("without a beard", "without a moustache", "without facial hair"),
        ),
        "beard": Phrases(
            ("bearded",),
            (
                "a beard",
                "a full beard",
                "a bushy beard",
                "a thick beard",
                "a big beard",
                "a heavy beard",
                "a trimmed beard",
                "a dense beard",
            ),
            ("who has grown a beard", "who wears a beard"),
        ),
        "moustache": Phrases(
            ("moustached", "mustachioed", "mustached", "moustachioed"),
            (
                "a moustache",
                "a mustache",
                "a handlebar moustache",
                "a handlebar mustache",
                "a curly moustache",
                "a fancy moustache",
                "a thick mustache",
                "a big moustache",
            ),
            ("who has grown a moustache", "who wears a mustache"),
        ),
    },
    "mouth": {
        "smiling": Phrases(
            (
                "smiling",
                "happy",
                "cheerful",
                "grinning",
                "joyful",
                "friendly",
                "merry",
                "beaming",
                "smiley",
                "delighted",
                "glad",
            ),
            (
                "a smile",
                "a big smile",
                "a grin",
                "a happy face",
                "a wide smile",
                "a broad smile",
                "a happy expression",
                "a cheerful expression",
                "a friendly smile",
                "a smiling mouth",
                "a happy smile",
                "a smiling face",
                "a broad grin",
            ),
            (
                "who is smiling",
                "who looks happy",
                "looking happy",
                "who smiles",
                "who is happy",
                "who is grinning",
                "looking cheerful",
                "who looks cheerful",
                "smiling happily",
            ),
        ),
        "serious": Phrases(
            (
                "serious",
                "stern",
                "expressionless",
                "straight-faced",
                "unsmiling",
                "earnest",
                "solemn",
            ),
            (
                "a serious face",
                "a neutral expression",
                "a straight face",
                "a serious expression",
                "a blank expression",
                "a poker face",
                "a serious look",
                "a neutral face",
                "a stern face",
                "a serious mouth",
            ),
            (
                "who looks serious",
                "looking serious",
                "who is serious",
                "who looks stern",
                "who is not smiling",
            ),
        ),
        "sad": Phrases(
            (
                "sad",
                "unhappy",
                "frowning",
                "angry",
                "grumpy",
                "upset",
                "gloomy",
                "sorrowful",
                "miserable",
                "downcast",
                "sullen",
                "depressed",
            ),
            (
                "a sad face",
                "a frown",
                "a sad expression",
                "a sad mouth",
                "a sad look",
                "an unhappy face",
                "a downturned mouth",
                "an unhappy expression",
                "a grumpy face",
            ),
            (
                "who looks sad",
                "looking unhappy",
                "who is frowning",
                "who is sad",
                "who frowns",
                "looking sad",
                "who is unhappy",
                "who looks upset",
                "looking grumpy",
            ),
        ),
        "open": Phrases(
            ("screaming", "shouting", "open-mouthed", "yelling"),
            (
                "an open mouth",
                "a wide open mouth",
                "the mouth wide open",
                "a screaming mouth",
                "the mouth open",
                "a gaping mouth",
                "mouth open",
            ),
            (
                "who is screaming",
                "who is shouting",
                "who is yelling",
                "who screams",
                "whose mouth is open",
                "with mouth wide open",
            ),
        ),
        "tongue": Phrases(
            ("cheeky",),
            (
                "the tongue out",
                "tongue out",
                "a tongue sticking out",
                "a visible tongue",
                "the tongue hanging out",
                "a protruding tongue",
            ),
            (
                "sticking out the tongue",
                "showing the tongue",
                "sticking the tongue out",
                "who sticks out the tongue",
                "sticking out their tongue",
                "poking the tongue out",
                "who is sticking out their tongue",
                "sticking his tongue out",
                "showing a tongue",
            ),
        ),
    },
    "eyes": {
        "open": Phrases(
            (),
            ("open eyes", "ordinary eyes", "normal eyes", "both eyes open", "regular eyes"),
            ("who is awake",),
        ),
        "closed": Phrases(
            ("sleeping", "sleepy", "dozing", "napping"),
            (
                "closed eyes",
                "eyes closed",
                "shut eyes",
                "eyes shut",
                "both eyes closed",
                "the eyes closed",
                "both eyes shut",
                "closed eyelids",
            ),
            (
                "who is asleep",
                "who is sleeping",
                "whose eyes are closed",
                "who sleeps",
                "closing their eyes",
            ),
        ),
        "surprised": Phrases(
            ("surprised", "astonished", "wide-eyed", "amazed", "startled", "stunned", "shocked"),
            (
                "surprised eyes",
                "wide eyes",
                "big round eyes",
                "wide open eyes",
                "bulging eyes",
                "a surprised look",
                "eyes wide open",
                "a shocked look",
                "a surprised expression",
                "big surprised eyes",
                "round eyes",
            ),
            (
                "who looks surprised",
                "looking surprised",
                "who is surprised",
                "who is amazed",
                "who looks shocked",
                "looking astonished",
            ),
        ),
        "wink": Phrases(
            ("winking",),
            ("a wink", "one eye closed", "one closed eye", "one eye shut", "a winking eye"),
            ("who is winking", "who winks", "giving a wink", "winking with one eye"),
        ),
        "hearts": Phrases(
            ("lovestruck", "smitten", "infatuated", "enamored", "heart-eyed"),
            (
                "heart eyes",
                "hearts for eyes",
                "heart-shaped eyes",
                "hearts in the eyes",
                "hearts instead of eyes",
                "eyes like hearts",
                "hearts as eyes",
                "red heart eyes",
            ),
            ("who is in love", "who looks in love", "who has fallen in love"),
        ),
    },
    "skin": {
        "pale": Phrases(
            ("pale", "light-skinned", "fair-skinned", "pale-skinned", "white-skinned"),
            (
                "pale skin",
                "light skin",
                "fair skin",
                "a pale complexion",
                "a light complexion",
                "a fair complexion",
                "white skin",
                "very pale skin",
                "a pale face",
            ),
            ("whose skin is pale",),
        ),
        "tanned": Phrases(
            ("tanned", "tan", "olive-skinned", "suntanned"),
            (
                "tanned skin",
                "tan skin",
                "olive skin",
                "a tan",
                "a suntan",
                "a tanned complexion",
                "suntanned skin",
                "golden skin",
                "a tanned face",
            ),
            ("whose skin is tanned",),
        ),
        "brown": Phrases(
            ("brown-skinned",),
            ("brown skin", "a brown complexion", "medium brown skin", "a brown face"),
            ("whose skin is brown",),
        ),
        "dark": Phrases(
            ("dark-skinned", "black-skinned", "black"),
            (
                "dark skin",
                "very dark skin",
                "black skin",
                "dark brown skin",
                "a dark complexion",
                "a dark face",
                "ebony skin",
            ),
            ("whose skin is dark",),
        ),
    },
    "clothes": {
        "t-shirt": Phrases(
            (),
            (
                "a t-shirt",
                "a shirt",
                "a tee",
                "a tee shirt",
                "a tshirt",
                "a plain t-shirt",
                "a crew neck shirt",
                "a casual shirt",
            ),
        ),
        "hoodie": Phrases(
            (),
            (
                "a hoodie",
                "a sweatshirt",
                "a hooded sweatshirt",
                "a hooded sweater",
                "a hoody",
                "a sweater with a hood",
                "a hooded top",
                "a hooded pullover",
            ),
        ),
        "blazer": Phrases(
            (),
            (
                "a blazer",
                "a jacket",
                "a suit",
                "a suit jacket",
                "a formal jacket",
                "formal clothes",
                "business clothes",
                "a business suit",
                "formal wear",
                "an open jacket",
            ),
        ),
        "overall": Phrases(
            (),
            (
                "overalls",
                "an overall",
                "dungarees",
                "bib overalls",
                "a pair of overalls",
                "work overalls",
                "a pair of dungarees",
            ),
        ),
    },
    "clothes_color": {
        value: Phrases(
            (),
            _fill(["{} clothes", "{} clothing", "a {} outfit", "{} garments", "a {} top"], words),
            _fill(["dressed in {}", "clad in {}", "whose clothes are {}"], words),
        )
        for value, words in _CLOTHES_COLORS.items()
    },
    "background": {
        value: Phrases(
            (),
            _fill(["a {} background", "a {} backdrop"], words),
            _fill(
                [
                    "on a {} background",
                    "against a {} background",
                    "in front of a {} background",
                    "in front of a {} wall",
                    "before a {} background",
                    "on {} background",
                    "against a {} backdrop",
                    "against a {} wall",
                    "with a {} background",
                    "where the background is {}",
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
            "short": ("short {} hair", "{} short hair"),
            "long": ("long {} hair", "{} long hair"),
            "curly afro": ("a {} afro", "curly {} hair", "{} curls", "{} curly hair"),
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
            "t-shirt": ("a {} t-shirt", "a {} shirt", "a {} tee"),
            "hoodie": ("a {} hoodie", "a {} sweatshirt", "a {} hooded sweatshirt"),
            "blazer": ("a {} blazer", "a {} jacket", "a {} suit"),
            "overall": ("{} overalls", "{} dungarees"),
        },
        "headwear": {
            "hat": ("a {} hat",),
            "winter hat": ("a {} beanie", "a {} winter hat", "a {} knit cap", "a {} wool hat"),
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
    *("face", "avatar", "character", "cartoon character", "human", "human being", "individual"),
    *("man", "woman", "guy", "girl", "boy", "lady", "kid", "gentleman", "child", "dude"),
)
_PRONOUNS = ("someone", "somebody", "a person", "people", "one")
_PICTURES = ("portrait", "cartoon", "drawing", "picture", "illustration", "image", "photo")
_VIEWS = ("headshot", "close-up", "sketch", "selfie", "profile picture")
# Instructions, as people give them to an editor; what follows is told as above.
_PEOPLE = ("the person", "this person", "him", "her", "them", "the face", "the avatar")
_GIVING = ("give {} {}", "give {} {}", "{} with {}", "make {} have {}", "show {} with {}")
_ADDING = ("add {}", "put on {}", "with {}", "now with {}", "wearing {}", "put {} on")
_MAKING = ("make {} {}", "make {} look {}", "turn {} {}", "{} should be {}", "{} is {}")
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
    text = tell(_pick(templates[carrier], generator), word)
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
    if len(adjectives) < 2 and generator.random() < 0.15:
        return " ".join([_pick(_PRONOUNS, generator), *adjectives])
    separator = _pick((" ", ", "), generator)
    subject = _article(" ".join([separator.join(adjectives), _pick(_NOUNS, generator)]).strip())
    if generator.random() < 0.25:
        return f"{_article(_pick(_PICTURES + _VIEWS, generator))} of {subject}"
    return subject


def _sentence(statements: list[Statement], generator: np.random.Generator) -> str:
    texts: dict[str, list[str]] = {"adjectives": [], "nouns": [], "worn": [], "clauses": []}
    for slot, _, kind, text in statements:
        worn = kind == "nouns" and slot in _WORN and not text.startswith("no ")
        texts["worn" if worn and generator.random() < 0.6 else kind].append(text)
    parts = list(texts["clauses"])
    if texts["nouns"]:
        verb = _pick(("with", "with", "with", "who has", "having", "that has"), generator)
        parts.append(f"{verb} {_join(texts['nouns'])}")
    if texts["worn"]:
        verb = _pick(("wearing", "wearing", "in", "who wears", "who is wearing"), generator)
        parts.append(f"{verb} {_join(texts['worn'])}")
    parts = [parts[i] for i in generator.permutation(len(parts))]
    parts.sort(key=lambda part: part.endswith(("background", "wall")))
    return _pick((" ", " ", ", "), generator).join(
        [_subject(texts["adjectives"], generator), *parts]
    )


def _instruction(statement: Statement, generator: np.random.Generator) -> str:
    """What somebody might tell an editor: "give her a beard", "make him bald", "add glasses"."""
    person, text = _pick(_PEOPLE, generator), statement.text
    if statement.kind == "adjectives":
        return _pick(_MAKING, generator).format(person, text)
    if statement.kind == "clauses":
        return f"{person} {text}"
    if statement.slot in _WORN and not text.startswith("no ") and generator.random() < 0.5:
        return _pick(_ADDING, generator).format(text)
    return _pick(_GIVING, generator).format(person, text)


def neutral(generator: np.random.Generator) -> str:
    """Writes a caption that tells nothing, such as "a portrait of a woman": it fits every image."""
    return _subject([], generator)


def about(slot: str, value: str, generator: np.random.Generator) -> str:
    """Writes a caption that tells one value of one slot and nothing else."""
    phrases = PHRASES[slot][value]
    kind = _pick([kind for kind, texts in phrases._asdict().items() if texts], generator)
    statement = Statement(slot, (slot,), kind, _pick(getattr(phrases, kind), generator))
    if generator.random() < 0.2:
        return _instruction(statement, generator)
    return _sentence([statement], generator)


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
    if len(statements) == 1 and generator.random() < 0.2:
        text = _instruction(statements[0], generator)
    elif generator.random() < 0.12:
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
