"""Texts that edits of avatars are evaluated with, in words that no training and no tuning saw.

Each edit gives one slot of `avatars.attributes` one value and is worded the way strangers would
write it. Nothing here is made from `avatars.captions`, which the CLIP is trained on; a test checks
that they have no text in common.
"""

from collections.abc import Sequence
from typing import NamedTuple

from styleclip_jax.errors import InputError


class Edit(NamedTuple):
    """A change of one attribute, and how people may ask for it."""

    slot: str
    value: str
    wordings: tuple[str, ...]

    @property
    def name(self) -> str:
        """Such as ``glasses=sunglasses``."""
        return f"{self.slot}={self.value}"


EDITS = (
    Edit(
        "hair",
        "short",
        ("someone with a short haircut", "a person whose hair is cut short", "a short-haired guy"),
    ),
    Edit(
        "hair",
        "long",
        (
            "long straight hair down to the shoulders",
            "a person who wears their hair long",
            "someone with very long hair",
        ),
    ),
    Edit(
        "hair",
        "curly afro",
        ("someone with big curly hair", "a person with an afro hairstyle", "frizzy afro hair"),
    ),
    Edit(
        "hair",
        "bun",
        (
            "someone with their hair tied up in a bun",
            "a person with a hair bun on top",
            "hair in a bun",
        ),
    ),
    Edit(
        "hair",
        "dreadlocks",
        (
            "someone with dreads",
            "a person wearing their hair in dreadlocks",
            "a man who has dreads",
        ),
    ),
    Edit(
        "hair",
        "bald",
        ("someone who has gone bald", "a bald guy", "a person with a shaved head and no hair"),
    ),
    Edit(
        "hair_color",
        "blond",
        ("a blonde", "someone with golden blonde hair", "a fair-haired person"),
    ),
    Edit("hair_color", "red", ("a redhead", "someone with ginger hair", "flaming red hair")),
    Edit(
        "hair_color",
        "gray",
        ("someone with grey hair", "silver-grey hair", "a person whose hair has turned grey"),
    ),
    Edit(
        "hair_color",
        "blue",
        ("someone with blue hair", "bright blue hair", "a person who dyed their hair blue"),
    ),
    Edit(
        "headwear",
        "hat",
        ("someone in a hat", "a person with a hat on their head", "somebody who wears a hat"),
    ),
    Edit(
        "headwear",
        "winter hat",
        ("someone in a beanie", "a person with a woolly winter hat on", "a warm knitted hat"),
    ),
    Edit(
        "headwear",
        "turban",
        (
            "someone in a turban",
            "a man with a turban on his head",
            "a person whose head is wrapped in a turban",
        ),
    ),
    Edit(
        "headwear",
        "hijab",
        (
            "a woman in a hijab",
            "someone whose hair is covered by a headscarf",
            "a muslim woman with a hijab",
        ),
    ),
    Edit(
        "glasses",
        "glasses",
        ("someone bespectacled", "a person with reading glasses on", "a man who wears spectacles"),
    ),
    Edit(
        "glasses",
        "sunglasses",
        ("someone in shades", "a person with dark sunglasses on", "a cool guy wearing sunglasses"),
    ),
    Edit(
        "facial_hair",
        "none",
        ("a clean-shaven man", "someone without any facial hair", "a freshly shaved face"),
    ),
    Edit(
        "facial_hair",
        "beard",
        ("a bearded man", "someone with a full beard", "a man who let his beard grow"),
    ),
    Edit(
        "facial_hair",
        "moustache",
        ("a man with a mustache", "someone who has a moustache", "a mustached person"),
    ),
    Edit(
        "mouth",
        "smiling",
        ("someone smiling", "a happy person with a big smile", "a person who smiles at you"),
    ),
    Edit(
        "mouth",
        "serious",
        (
            "someone with a serious look on their face",
            "a person keeping a straight face",
            "a man who looks very serious",
        ),
    ),
    Edit(
        "mouth",
        "sad",
        ("someone who looks sad", "an unhappy person with a frown", "a woman frowning sadly"),
    ),
    Edit(
        "mouth",
        "open",
        (
            "someone screaming with their mouth wide open",
            "somebody shouting loudly",
            "an open mouth",
        ),
    ),
    Edit(
        "mouth",
        "tongue",
        ("someone sticking their tongue out", "a cheeky person showing their tongue", "tongue out"),
    ),
    Edit(
        "eyes",
        "closed",
        (
            "someone with their eyes shut",
            "a person keeping both eyes closed",
            "a sleeping person with closed eyes",
        ),
    ),
    Edit(
        "eyes",
        "surprised",
        (
            "someone with wide open eyes",
            "a person staring in surprise",
            "a man with big surprised eyes",
        ),
    ),
    Edit("eyes", "wink", ("someone winking at you", "a winking face", "a person who gives a wink")),
    Edit(
        "eyes",
        "hearts",
        (
            "someone with hearts in their eyes",
            "a person in love with heart-shaped eyes",
            "heart eyes",
        ),
    ),
    Edit(
        "skin",
        "pale",
        (
            "someone with very pale skin",
            "a pale-skinned person",
            "a person with a light complexion",
        ),
    ),
    Edit(
        "skin",
        "dark",
        ("someone with dark skin", "a dark-skinned man", "a person with a very dark complexion"),
    ),
    Edit(
        "clothes",
        "t-shirt",
        (
            "someone in a plain t-shirt",
            "a person with a tee shirt on",
            "a guy dressed in a simple t-shirt",
        ),
    ),
    Edit(
        "clothes",
        "hoodie",
        (
            "someone in a hoodie",
            "a person with a hooded sweatshirt on",
            "a teenager wearing a hoodie",
        ),
    ),
    Edit(
        "clothes",
        "blazer",
        (
            "someone dressed in a blazer",
            "a businessman in a suit jacket",
            "a person with a blazer over a shirt",
        ),
    ),
    Edit(
        "clothes",
        "overall",
        ("someone in dungarees", "a person dressed in overalls", "a worker wearing bib overalls"),
    ),
    Edit(
        "clothes_color",
        "red",
        ("someone dressed in red", "a person whose clothes are red", "a red outfit"),
    ),
    Edit(
        "clothes_color",
        "yellow",
        (
            "someone dressed in yellow",
            "a person in bright yellow clothes",
            "a woman wearing something yellow",
        ),
    ),
    Edit(
        "background",
        "blue",
        (
            "someone in front of a blue wall",
            "a person against a light blue background",
            "the background is blue",
        ),
    ),
    Edit(
        "background",
        "pink",
        (
            "someone in front of a pink wall",
            "a person with a pink background behind them",
            "the background is pink",
        ),
    ),
)


def select(names: Sequence[str]) -> tuple[Edit, ...]:
    """The edits with these names or wordings, in this order; all of them where none is given.

    Raises:
        InputError: There is no such edit.
    """
    found = {text: edit for edit in EDITS for text in (edit.name, *edit.wordings)}
    for name in names:
        if name not in found:
            raise InputError(
                f"there is no text {name!r}; give a wording, or one of"
                f" {', '.join(edit.name for edit in EDITS)}"
            )
    return tuple(found[name] for name in names) or EDITS
