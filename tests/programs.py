"""Compiled programs of other processes, as XLA writes them."""

import re
from pathlib import Path

from styleclip_jax.methods.mapper_training import pmapped_train_step

_COLLECTIVES = (
    r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+|ragged\S*|send|recv)"
    r"(-start)?\("
)


def dump_programs(directory: Path, name: str = "_fun") -> str:
    """Flags with which XLA writes the programs of jitted or, by default, pmapped functions."""
    return (
        f"--xla_dump_to={directory} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_({name})$"
    )


def read_programs(directory: Path) -> list[str]:
    """The optimized programs; processes that share a directory may overwrite each other's."""
    return [file.read_text() for file in directory.glob("*after_optimizations.txt")]


def read_train_steps(directory: Path) -> list[str]:
    """The training steps; XLA gives all pmapped programs one name."""
    return [
        program for program in read_programs(directory) if pmapped_train_step.__name__ in program
    ]


def collectives(program: str) -> list[str]:
    """The messages that the devices of a program exchange."""
    return [match[1] for match in re.finditer(_COLLECTIVES, program)]
