"""Flags of the networks that several scripts have."""

from typing import no_type_check

from absl import flags

# --help lists the flags with those of the script that calls define_flags.
flags.disclaim_key_flags()


# absl finds the calling script in the stack, where a run-time type checker would be in between.
@no_type_check
def define_flags(settings: str = "") -> None:
    """Defines --generator and --dtype.

    Args:
        settings: See :func:`define_generator`.
    """
    define_generator(settings)
    flags.DEFINE_enum(
        "dtype",
        "float32",
        ["float32", "bfloat16"],
        "Precision of the networks: bfloat16 is faster on GPUs and TPUs, float32 is more exact.",
    )


@no_type_check
def define_generator(settings: str = "") -> None:
    """Defines --generator.

    Args:
        settings: Other defaults that go with the default generator.
    """
    flags.DEFINE_string(
        "generator",
        None,
        "StyleGAN2 that synthesizes the images: a directory written by python -m ckpt_convert"
        " stylegan2. Default: the avatars that ship with the package"
        f"{f', with these settings: {settings}' if settings else ''}.",
    )


@no_type_check
def define_clip(purpose: str) -> None:
    """Defines --clip for one CLIP; :mod:`objective_flags` has the flag for several.

    Args:
        purpose: What it is for, the beginning of the help.
    """
    flags.DEFINE_string(
        "clip",
        None,
        f"{purpose}: a directory written by python -m ckpt_convert clip. Default: a CLIP that only"
        " knows avatars.",
    )


@no_type_check
def define_arcface(purpose: str, default: str = "none") -> None:
    """Defines --arcface.

    Args:
        purpose: What it is for.
        default: What happens without it.
    """
    flags.DEFINE_string(
        "arcface",
        None,
        f"Face recognition network {purpose}: a directory written by python -m ckpt_convert"
        f" arcface. Default: {default}.",
    )
