"""Flags of the networks that most scripts have."""

from typing import no_type_check

from absl import flags

# --help lists the flags with those of the script that calls define_flags.
flags.disclaim_key_flags()


# absl finds the calling script in the stack, where a run-time type checker would be in between.
@no_type_check
def define_flags(settings: str = "") -> None:
    """Defines the flags.

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
    flags.DEFINE_enum(
        "dtype",
        "float32",
        ["float32", "bfloat16"],
        "Precision of the networks: bfloat16 is faster on GPUs and TPUs, float32 is more exact.",
    )
