"""Held-out texts for the evaluation of avatar edits; no training and no tuning used these wordings.

Each edit gives one slot of `avatars.attributes` one value, in the words of users. The captions that
the CLIP is trained on (`avatars.captions`) contain none of the wordings; a test searches thousands
of captions for them.
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
        (
            "he just had his hair cut very short",
            "a guy fresh from the barber with a short cut",
            "someone whose hair is cropped close",
        ),
    ),
    Edit(
        "hair",
        "long",
        (
            "long straight hair down to the shoulders",
            "hair that falls past the shoulders",
            "she let her hair grow long",
        ),
    ),
    Edit(
        "hair",
        "curly afro",
        (
            "frizzy afro hair",
            "a huge round afro on their head",
            "someone rocking a big 70s afro",
        ),
    ),
    Edit(
        "hair",
        "bun",
        (
            "someone with their hair tied up in a bun",
            "a person with a hair bun on top",
            "she put her hair up in a bun",
        ),
    ),
    Edit(
        "hair",
        "dreadlocks",
        (
            "a person wearing their hair in dreadlocks",
            "his hair is all in dreadlocks",
            "a rasta with long dreads",
        ),
    ),
    Edit(
        "hair",
        "bald",
        (
            "a person with a shaved head and no hair",
            "a man who lost all of his hair",
            "nothing but a bald head up there",
        ),
    ),
    Edit(
        "hair_color",
        "blond",
        (
            "a person who bleached their hair blonde",
            "hair as yellow as straw",
            "a blonde haired surfer",
        ),
    ),
    Edit(
        "hair_color",
        "red",
        (
            "flaming red hair",
            "hair the colour of carrots",
            "somebody whose hair is a natural ginger red",
        ),
    ),
    Edit(
        "hair_color",
        "gray",
        (
            "someone with grey hair",
            "a person whose hair has turned grey",
            "hair that went grey with age",
        ),
    ),
    Edit(
        "hair_color",
        "blue",
        (
            "a punk with hair dyed bright blue",
            "hair as blue as the ocean",
            "she coloured her hair blue",
        ),
    ),
    Edit(
        "headwear",
        "hat",
        (
            "a gentleman who put his hat on",
            "there is a hat on top of the head",
            "his head is topped by a hat",
        ),
    ),
    Edit(
        "headwear",
        "winter hat",
        (
            "a person with a woolly winter hat on",
            "a warm knitted hat",
            "a person dressed for snow with a knit cap",
        ),
    ),
    Edit(
        "headwear",
        "turban",
        (
            "a sikh man and his turban",
            "there is a turban around the head",
            "a cloth turban wound around his head",
        ),
    ),
    Edit(
        "headwear",
        "hijab",
        (
            "someone whose hair is covered by a headscarf",
            "a muslim woman with a hijab",
            "a lady whose headscarf hides all her hair",
        ),
    ),
    Edit(
        "glasses",
        "glasses",
        (
            "a man who wears spectacles",
            "a nerd with eyeglasses on the nose",
            "someone who cannot see without glasses",
        ),
    ),
    Edit(
        "glasses",
        "sunglasses",
        (
            "a cool guy wearing sunglasses",
            "a celebrity hiding behind sunglasses",
            "someone at the beach with shades on",
        ),
    ),
    Edit(
        "facial_hair",
        "none",
        (
            "a man who has shaved off all his facial hair",
            "his chin is clean and shaved",
            "a smooth face with no beard on it",
        ),
    ),
    Edit(
        "facial_hair",
        "beard",
        (
            "a man who let his beard grow",
            "a lumberjack with a big beard",
            "he has been growing a beard for months",
        ),
    ),
    Edit(
        "facial_hair",
        "moustache",
        (
            "a hipster with a curled moustache",
            "there is a mustache under his nose",
            "an officer who wears a moustache",
        ),
    ),
    Edit(
        "mouth",
        "smiling",
        (
            "a happy person with a big smile",
            "a cheerful person who cannot stop smiling",
            "the face of somebody smiling happily",
        ),
    ),
    Edit(
        "mouth",
        "serious",
        (
            "someone with a serious look on their face",
            "a man who looks very serious",
            "a poker player who shows no emotion",
        ),
    ),
    Edit(
        "mouth",
        "sad",
        (
            "an unhappy person with a frown",
            "a woman frowning sadly",
            "a person about to cry with a sad mouth",
        ),
    ),
    Edit(
        "mouth",
        "open",
        (
            "someone screaming with their mouth wide open",
            "a man yelling at the top of his voice",
            "a fan screaming out loud at a concert",
        ),
    ),
    Edit(
        "mouth",
        "tongue",
        (
            "a cheeky person showing their tongue",
            "a kid who sticks his tongue out at me",
            "the tongue hangs out of the mouth",
        ),
    ),
    Edit(
        "eyes",
        "closed",
        (
            "a person keeping both eyes closed",
            "a sleeping person with closed eyes",
            "somebody fast asleep with closed eyes",
        ),
    ),
    Edit(
        "eyes",
        "surprised",
        (
            "a man with big surprised eyes",
            "eyes popping wide with surprise",
            "somebody who just got a big surprise with wide eyes",
        ),
    ),
    Edit(
        "eyes",
        "wink",
        (
            "he winks with one eye",
            "a flirty man winking at the camera",
            "one eye open and the other one winking",
        ),
    ),
    Edit(
        "eyes",
        "hearts",
        (
            "a person in love with heart-shaped eyes",
            "eyes shaped like two red hearts",
            "someone so in love that the eyes are hearts",
        ),
    ),
    Edit(
        "skin",
        "pale",
        (
            "somebody whose skin is as white as snow",
            "a very fair person with pale skin that burns in the sun",
            "a ghostly pale face",
        ),
    ),
    Edit(
        "skin",
        "dark",
        (
            "an african man with very dark skin",
            "a woman whose skin is deep dark brown",
            "a beautiful black woman with dark skin",
        ),
    ),
    Edit(
        "clothes",
        "t-shirt",
        (
            "someone in a plain t-shirt",
            "a guy dressed in a simple t-shirt",
            "a tourist in a t-shirt",
        ),
    ),
    Edit(
        "clothes",
        "hoodie",
        (
            "a skater boy in his favourite hoodie",
            "a rapper with a hoodie on",
            "he threw on a hoodie",
        ),
    ),
    Edit(
        "clothes",
        "blazer",
        (
            "a businessman in a suit jacket",
            "a person with a blazer over a shirt",
            "a lawyer in a smart blazer",
        ),
    ),
    Edit(
        "clothes",
        "overall",
        (
            "a worker wearing bib overalls",
            "a farmer in his dungarees",
            "a plumber with denim dungarees on",
        ),
    ),
    Edit(
        "clothes_color",
        "red",
        (
            "a red outfit",
            "a santa wearing all red clothes",
            "her top is bright red",
        ),
    ),
    Edit(
        "clothes_color",
        "yellow",
        (
            "a person in bright yellow clothes",
            "a woman wearing something yellow",
            "his shirt is yellow like a lemon",
        ),
    ),
    Edit(
        "background",
        "blue",
        (
            "a portrait with the blue sky behind",
            "behind the person everything is light blue",
            "the wall behind is painted blue",
        ),
    ),
    Edit(
        "background",
        "pink",
        (
            "a portrait against a wall painted pink",
            "everything behind the person is pink",
            "the room behind is all pink",
        ),
    ),
)


def select(names: Sequence[str], edits: tuple[Edit, ...] = EDITS) -> tuple[Edit, ...]:
    """The edits with these names or wordings, in this order; all of them if none are given.

    Raises:
        InputError: There is no such edit.
    """
    found = {text: edit for edit in edits for text in (edit.name, *edit.wordings)}
    for name in names:
        if name not in found:
            raise InputError(
                f"there is no text {name!r}, expected a wording or one of"
                f" {', '.join(edit.name for edit in edits)}"
            )
    return tuple(found[name] for name in names) or edits
