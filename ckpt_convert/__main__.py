"""Converts official PyTorch weights to checkpoint directories; needs no PyTorch.

Examples:
  python -m ckpt_convert stylegan2 stylegan2-ffhq-config-f.pt checkpoints/ffhq
  python -m ckpt_convert stylegan2 ffhq.pkl checkpoints/ffhq
  python -m ckpt_convert clip ViT-B-32.pt checkpoints/clip --tokenizer bpe_simple_vocab_16e6.txt.gz
  python -m ckpt_convert clip clip-vit-base-patch32/ checkpoints/clip
  python -m ckpt_convert arcface model_ir_se50.pth checkpoints/arcface
  python -m ckpt_convert mapper afro.pt checkpoints/afro
  python -m ckpt_convert latents train_faces.pt train_faces.npy

The format of a file is told from its content, not its name: PyTorch's zip and legacy formats,
TorchScript archives, safetensors, NVIDIA's pickles, Hugging Face directories. No code that a file
may contain is ever run.
"""

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

import jax
from absl import logging
from etils import epath

from ckpt_convert import arcface, clip, formats, latents, mapper, stylegan2
from ckpt_convert.mapping import Conversion
from ckpt_convert.tokenizers import has_tokenizer, read_tokenizer
from styleclip_jax.errors import InputError, is_out_of_memory
from styleclip_jax.io.checkpoints import save_model, to_path
from styleclip_jax.io.files import expand_user

MODELS = {
    "stylegan2": (stylegan2.convert, "a generator: rosinality's .pt or NVIDIA's .pkl"),
    "clip": (clip.convert, "a CLIP with a vision transformer: OpenAI's .pt or Hugging Face's"),
    "arcface": (arcface.convert, "the face recognition network model_ir_se50.pth"),
    "mapper": (mapper.convert, "a latent mapper of the official StyleCLIP code"),
}


class Parser(argparse.ArgumentParser):
    """Fails as the rest of the program does."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage."""
        raise InputError(f"{message}; see {self.prog} --help")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(
        prog="python -m ckpt_convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    helps = {name: text for name, (_, text) in MODELS.items()}
    helps["latents"] = "latents: a tensor to .npy, a list of StyleSpace tensors to .npz"
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=f"Converts {text}.")
        command.add_argument("source", metavar="SOURCE", help="file or Hugging Face directory")
        command.add_argument("destination", metavar="DESTINATION", help="must not exist")
    commands.choices["clip"].add_argument(
        "--tokenizer",
        metavar="PATH",
        help="a Hugging Face directory, or OpenAI's bpe_simple_vocab_16e6.txt.gz; where SOURCE is "
        "a directory with a tokenizer, that one is the default",
    )
    return parser.parse_args(arguments)


def convert(options: argparse.Namespace) -> None:
    """Runs one conversion and prints what was written.

    Raises:
        InputError: The source cannot be converted, or the destination exists or cannot be written.
    """
    destination = to_path(options.destination)
    if destination.exists():
        raise InputError(f"{destination} already exists; choose another name or remove it first")
    source = formats.read(expand_user(options.source))
    if options.command == "latents":
        latents.save(destination, latents.convert(source))
    else:
        conversion = MODELS[options.command][0](source)
        if options.command == "clip":
            conversion = _with_tokenizer(conversion, options)
        _save(destination, conversion)
        for note in conversion.notes:
            print(f"note: {note}")
    print(f"wrote {destination}")


def _save(destination: epath.Path, conversion: Conversion) -> None:
    try:
        with _uninterrupted():
            save_model(destination, conversion.model, conversion.tokenizer_files)
    except InputError:
        raise
    except BaseException:
        if destination.exists():
            destination.rmtree()
        raise


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM wait: Orbax's threads go on writing when their caller stops."""
    received: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [
        signal.signal(number, lambda number, _: received.append(number)) for number in signals
    ]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


def _with_tokenizer(conversion: Conversion, options: argparse.Namespace) -> Conversion:
    path = expand_user(options.tokenizer or options.source)
    if not options.tokenizer and not has_tokenizer(path):
        note = "there is no tokenizer; convert again with --tokenizer to use this CLIP with texts"
        return conversion._replace(notes=(note,))
    vocab_size = conversion.model.config.vocab_size
    return conversion._replace(tokenizer_files=read_tokenizer(path, vocab_size))


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    # What Orbax logs, with the stack of every thread, it also raises.
    logging.set_verbosity(logging.FATAL)
    # As Ctrl-C, so that what a conversion has begun is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        convert(parse_arguments(arguments))
    except (InputError, OSError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        return _fail("interrupted")
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail("there is not enough memory")
    return 0


def _fail(error: Exception | str) -> int:
    # Names in a file may have control characters.
    message = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    print("error:", message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
