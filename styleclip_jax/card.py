"""Prints a mapper's model card: its text, strength, generator and training.

python -m styleclip_jax.card sunglasses
python -m styleclip_jax.card runs/beard
"""

import sys

from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import load_mapper
from styleclip_jax.models.card import MapperCard


def describe(card: MapperCard) -> str:
    """Formats a card, one line per known entry."""
    lines = {
        "text": card.text,
        "strength": card.strength,
        "generator": card.generator,
        "date": card.date,
        **{f"setting {name}": value for name, value in card.settings.items()},
        **{f"version {name}": value for name, value in card.versions.items()},
    }
    known = {name: value for name, value in lines.items() if value is not None}
    width = max(map(len, known))
    return "\n".join(f"{name:{width}}  {value}" for name, value in known.items())


def main(arguments: list[str]) -> int:
    """Prints the card of a mapper; returns the exit code."""
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print((__doc__ or "").strip(), file=sys.stderr if len(arguments) != 1 else sys.stdout)
        return int(len(arguments) != 1)
    try:
        mapper = load_mapper(arguments[0])
    except InputError as error:
        print("error:", error, file=sys.stderr)
        return 1
    print(f"{type(mapper).__name__}\n{describe(mapper.config.card)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
