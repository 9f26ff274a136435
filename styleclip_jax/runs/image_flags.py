"""The images that a script edits: photos, latents in a file, or random images."""

from typing import no_type_check

from absl import flags

from styleclip_jax.io.latents import load_latents
from styleclip_jax.latents import Latents, sample_latents
from styleclip_jax.models import Generator
from styleclip_jax.runs import command_line, photos

FLAGS = flags.FLAGS
RANDOM_IMAGES = ("num_images", "seed", "truncation")

# --help lists the flags with those of the script that calls define_flags.
flags.disclaim_key_flags()


# absl finds the calling script in the stack, where a run-time type checker would be in between.
@no_type_check
def define_flags(seeds: str = "the random images") -> None:
    """Defines the flags.

    Args:
        seeds: What ``--seed`` is for.
    """
    photos.define_flags()
    photos.define_edit_flags()
    flags.DEFINE_string(
        "latents",
        None,
        "Latents of the images to edit: a .npy (W+) or .npz (StyleSpace) file written by python -m"
        " ckpt_convert latents or by an earlier run. Default: random images.",
    )
    flags.DEFINE_integer("num_images", 4, "Number of random images to edit.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, f"Seed of {seeds}.", lower_bound=0, upper_bound=2**32 - 1)
    flags.DEFINE_float(
        "truncation",
        0.7,
        "Variety of the random images: 1 is the full variety, lower values give more typical"
        " images.",
        lower_bound=0,
    )


def check_flags(random_images: tuple[str, ...] = RANDOM_IMAGES) -> None:
    """Sets the defaults of photos; raises InputError if flags contradict each other.

    Args:
        random_images: Flags that have no effect unless the images are random.
    """
    photos.check_flags()
    for name in ("image", "inversion", "latents"):
        command_line.refuse_random_images(name, *random_images)


def read_latents(generator: Generator, inverted: Latents | None) -> Latents:
    """The latents of the images.

    Args:
        generator: Their generator.
        inverted: Those of photos, from :func:`photos.photos_to_edit`.
    """
    if inverted is not None:
        return inverted
    if FLAGS.latents:
        return load_latents(FLAGS.latents, generator)
    return sample_latents(generator, FLAGS.num_images, FLAGS.seed, FLAGS.truncation)
