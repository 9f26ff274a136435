"""Flags of the objective, shared by optimize.py and train_mapper.py."""

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args, no_type_check

import jax
from absl import flags
from jaxtyping import Array, Float

from styleclip_jax.avatars import AVATARS_NEUTRAL
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import load_clip
from styleclip_jax.io.templates import IMAGENET_TEMPLATES
from styleclip_jax.io.text import Tokenizer, encode_texts, load_tokenizer
from styleclip_jax.methods.objective import AreaPreprocess, Guidance
from styleclip_jax.models import CLIP
from styleclip_jax.runs import command_line
from styleclip_jax.views import VIEWS

FLAGS = flags.FLAGS
NEUTRAL = "a face"

# --help lists the flags with those of the script that calls define_flags.
flags.disclaim_key_flags()


class Texts(NamedTuple):
    """CLIPs and their features of texts; one entry per CLIP.

    Attributes:
        clips: The CLIPs of ``--clip``.
        descriptions: Features of what the images should show, (texts, E).
        neutral: Features of ``--neutral``, (1, E), or None.
        keep: Features of ``--keep``, (K, E), or None.
    """

    clips: tuple[CLIP, ...]
    descriptions: tuple[Float[Array, "texts _"], ...]
    neutral: tuple[Float[Array, "1 _"], ...] | None
    keep: tuple[Float[Array, "anchors _"], ...] | None


# absl finds the calling script in the stack, where a run-time type checker would be in between.
@no_type_check
def define_flags(defaults: Any) -> None:
    """Defines the flags.

    Args:
        defaults: An ``OptimizeConfig`` or a ``MapperTrainConfig``.
    """
    flags.DEFINE_multi_string(
        "clip",
        None,
        "CLIP that scores how well image and text match: a directory written by python -m"
        " ckpt_convert clip. Repeat the flag to use the mean loss of several CLIPs. Default: a CLIP"
        " that only knows avatars.",
    )
    flags.DEFINE_enum(
        "preprocess",
        defaults.preprocess,
        get_args(AreaPreprocess),
        "Preprocessing for CLIP: styleclip only resizes, as the official StyleCLIP does; clip also"
        " normalizes as in CLIP's training.",
    )
    flags.DEFINE_enum(
        "guidance",
        defaults.guidance,
        get_args(Guidance),
        "similarity: maximize the similarity of image and text, as the official StyleCLIP does."
        " This also removes what the text does not mention. direction: change the image in the"
        " direction from --neutral to the text and in nothing else.",
    )
    flags.DEFINE_string(
        "neutral",
        None,
        "With --guidance=direction: a text for what all images show before and after the edit."
        f" Default: {NEUTRAL!r}, for the avatars {AVATARS_NEUTRAL!r}.",
    )
    flags.DEFINE_float(
        "orthogonal_lambda",
        defaults.orthogonal_lambda,
        "With --guidance=direction: weight of all other changes in CLIP's features. Larger values"
        " preserve more of the image, smaller values make the edit more likely to succeed.",
    )
    flags.DEFINE_multi_string(
        "keep",
        None,
        "A text that must fit the image as well after the edit as before, such as 'a person with a"
        " hat'. Repeat the flag for several.",
    )
    flags.DEFINE_float("keep_lambda", defaults.keep_lambda, "Weight of the texts of --keep.")
    flags.DEFINE_integer(
        "views",
        defaults.views,
        "Number of random views of every image that CLIP sees in every step. They prevent changes"
        " that only CLIP sees, and take longer. 0: the image itself.",
    )
    flags.DEFINE_list(
        "view_kinds",
        list(defaults.view_kinds),
        f"Kinds of random views, separated by commas: {', '.join(VIEWS)}.",
    )
    flags.DEFINE_bool(
        "templates",
        False,
        f"Average the features of every text over {len(IMAGENET_TEMPLATES)} sentences such as 'a"
        " photo of a ...'. For general CLIPs.",
    )


def check_flags() -> None:
    """Sets the default of ``--neutral``; raises InputError if flags contradict each other."""
    for name, needed, given in (
        ("neutral", "--guidance=direction", FLAGS.guidance == "direction"),
        ("orthogonal_lambda", "--guidance=direction", FLAGS.guidance == "direction"),
        ("keep_lambda", "--keep", FLAGS.keep),
        ("view_kinds", "--views", FLAGS.views),
    ):
        if FLAGS[name].present and not given:
            raise InputError(f"--{name} has no effect without {needed}; remove it or add {needed}")
    if FLAGS.guidance == "direction":
        FLAGS.set_default("neutral", NEUTRAL if FLAGS.generator else AVATARS_NEUTRAL)


def chosen_templates() -> tuple[str, ...]:
    """The sentences of ``--templates``, or by default those for the CLIP of ``--clip``."""
    wanted = bool(FLAGS.clip) if FLAGS.templates is None else FLAGS.templates
    return tuple(IMAGENET_TEMPLATES) if wanted else ()


def read_clips() -> Texts:
    """Loads the CLIPs and encodes the texts of ``--description``, ``--neutral`` and ``--keep``."""
    templates = chosen_templates()
    paths = FLAGS.clip or [None]
    clips = tuple(load_clip(path, FLAGS.dtype) for path in paths)
    tokenizers = tuple(load_tokenizer(path) for path in paths)

    def encode(texts: str | Sequence[str] | None) -> Any:
        if not texts:
            return None
        texts = [texts] if isinstance(texts, str) else texts
        return tuple(
            encode_texts(clip, tokenizer, texts, templates)
            for clip, tokenizer in zip(clips, tokenizers, strict=True)
        )

    neutral = FLAGS.neutral if FLAGS.guidance == "direction" else None
    descriptions = FLAGS.description
    descriptions = [descriptions] if isinstance(descriptions, str) else descriptions
    given = [*descriptions, *(FLAGS.keep or ()), *([neutral] if neutral else ())]
    for path, tokenizer in zip(paths, tokenizers, strict=True):
        note_unknown_words(path, tokenizer, given)
    return Texts(clips, encode(FLAGS.description), encode(neutral), encode(FLAGS.keep))


def note_unknown_words(path: str | None, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Notes the words of texts that the CLIP of ``path`` was not trained on."""
    name = path or "the CLIP of the avatars"
    unknown = tokenizer.unknown_words(texts)
    if unknown and jax.process_index() == 0:
        command_line.note(
            f"{name} was not trained on these words: {', '.join(unknown)}; the images may not show"
            " what they mean"
        )
