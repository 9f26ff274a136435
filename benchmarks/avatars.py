"""Times one edit with the models that ship, a new text and a new image every time.

Run it with nothing else running: python benchmarks/avatars.py

Every time is from the text and W+ latents to the edited image, on the device, after compilation;
every edit tokenizes and encodes its text. The first row is a synthesis alone; the last column is
relative to it.
"""

import itertools
from collections.abc import Callable
from functools import partial

import jax
from speed import median_seconds

import styleclip_jax as sc
from styleclip_jax.avatars import AVATARS_DIRECTIONS
from styleclip_jax.models import DeltaMapper

# Combined, so that every text is new.
WHO = ("a person", "somebody", "someone", "a woman", "a man", "a face")
WHAT = ("with sunglasses", "with purple hair", "with a beard", "in a hoodie", "with a hat")


def main() -> None:
    """Prints a table."""
    generator, clip, tokenizer = sc.load_generator(), sc.load_clip(), sc.load_tokenizer()
    directions, any_text = sc.load_directions(), sc.load_mapper("any_text")
    assert isinstance(any_text, DeltaMapper)
    sunglasses = sc.load_mapper("sunglasses")
    synthesize = jax.jit(lambda generator, latents: generator(latents))

    threshold = AVATARS_DIRECTIONS.threshold
    assert threshold is not None

    def direction(text: str) -> jax.Array:
        return sc.text_direction(clip, tokenizer, text, sc.AVATARS_NEUTRAL)

    def edit_along(text: str, latents: jax.Array, automatic: bool) -> object:
        models, dt = (generator, directions), direction(text)
        strength = 4.0
        if automatic:
            strength = sc.best_strengths(*models, clip, latents, dt, threshold)
        return sc.edit_with_direction(*models, latents, dt, strength, threshold).images

    def edit_by_any(text: str, latents: jax.Array, automatic: bool) -> object:
        arguments = (generator, any_text, clip, latents, direction(text))
        return sc.edit_with_delta_mapper(*arguments, None if automatic else 1.0).images

    methods: dict[str, Callable[[str, jax.Array], object]] = {
        "synthesis alone": lambda _, latents: synthesize(generator, latents),
        "directions": partial(edit_along, automatic=False),
        "directions, the best of six strengths": partial(edit_along, automatic=True),
        "mapper for any text": partial(edit_by_any, automatic=False),
        "mapper for any text, the best of seven strengths": partial(edit_by_any, automatic=True),
        "mapper of one text": lambda _, latents: sc.apply_mapper(
            generator, sunglasses, latents, 0.1
        ),
    }
    texts = [f"{who} {what}" for who, what in itertools.product(WHO, WHAT)]
    latents = sc.sample_latents(generator, len(texts), seed=0)
    print(f"One image on {jax.devices()[0].device_kind}, median of {len(texts)} edits.\n")
    print("| method | ms | synthesis |\n| --- | --- | --- |")
    alone = None
    for name, method in methods.items():
        # Lazy; the first edit is not timed.
        edits = map(method, ["a person with a smile", *texts], [latents[:1], *latents[:, None]])
        seconds = median_seconds(partial(next, edits), len(texts))
        alone = alone or seconds
        print(f"| {name} | {1000 * seconds:.1f} | {seconds / alone:.1f} |", flush=True)


if __name__ == "__main__":
    main()
