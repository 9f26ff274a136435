"""Converts official PyTorch weights to checkpoint directories; needs no PyTorch.

Examples:
  python -m ckpt_convert stylegan2 ffhq checkpoints/ffhq
  python -m ckpt_convert clip ViT-B/32 checkpoints/vit-b-32
  python -m ckpt_convert stylegan2 stylegan2-ffhq-config-f.pt checkpoints/ffhq
  python -m ckpt_convert stylegan2 https://example.org/cats.pkl checkpoints/cats
  python -m ckpt_convert clip ViT-B-32.pt checkpoints/clip --tokenizer bpe_simple_vocab_16e6.txt.gz
  python -m ckpt_convert clip clip-vit-base-patch32/ checkpoints/clip
  python -m ckpt_convert arcface model_ir_se50.pth checkpoints/arcface
  python -m ckpt_convert e4e e4e_ffhq_encode.pt checkpoints/e4e
  python -m ckpt_convert stylegan2 e4e_ffhq_encode.pt checkpoints/ffhq
  python -m ckpt_convert lpips vgg16-397923af.pth checkpoints/lpips --linear vgg.pth
  python -m ckpt_convert mapper afro.pt checkpoints/afro
  python -m ckpt_convert latents train_faces.pt train_faces.npy
  python -m ckpt_convert directions fs3.npy checkpoints/ffhq-directions

{known}

The format of a file is detected from its content, not its name: PyTorch's zip and legacy formats,
TorchScript archives, safetensors, NVIDIA's pickles, .npy, Hugging Face directories. Code in a file
is never executed.
"""

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import jax
from absl import logging
from etils import epath

from ckpt_convert import (
    arcface,
    clip,
    directions,
    e4e,
    formats,
    latents,
    lpips,
    mapper,
    sources,
    stylegan2,
)
from ckpt_convert.tables import Conversion
from ckpt_convert.tokenizers import has_tokenizer, read_tokenizer
from styleclip_jax.errors import InputError, is_out_of_memory
from styleclip_jax.io.checkpoints import load_generator, save_model, to_path

MODELS = {
    "stylegan2": (
        stylegan2.convert,
        "a generator: rosinality's .pt, NVIDIA's .pkl or an encoder's .pt",
    ),
    "clip": (clip.convert, "a CLIP with a vision transformer: OpenAI's .pt or Hugging Face's"),
    "arcface": (arcface.convert, "the face recognition network model_ir_se50.pth"),
    "e4e": (e4e.convert, "an encoder of photos: the .pt of e4e or of ReStyle with e4e"),
    "lpips": (lpips.convert, "the perceptual distance: torchvision's vgg16, or a complete LPIPS"),
    "mapper": (mapper.convert, "a latent mapper of the official StyleCLIP or DeltaEdit code"),
}


class Parser(argparse.ArgumentParser):
    """Reports errors like the rest of the program."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError instead of printing the usage."""
        raise InputError(f"{message}; see {self.prog} --help")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(
        prog="python -m ckpt_convert",
        description=(__doc__ or "").format(known=_describe_known()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    helps = {name: text for name, (_, text) in MODELS.items()}
    helps["directions"] = "directions of the official StyleCLIP code, fs3.npy"
    helps["latents"] = "latents: a tensor to .npy, a list of StyleSpace tensors to .npz"
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=f"Converts {text}.")
        names = ", ".join(sources.known_names(name))
        command.add_argument(
            "source",
            metavar="SOURCE",
            help="a file, a Hugging Face directory, an https:// address"
            + (f" or one of the names {names}" if names else ""),
        )
        command.add_argument("destination", metavar="DESTINATION", help="must not exist")
        command.add_argument(
            "--cache",
            metavar="DIRECTORY",
            default=sources.CACHE,
            help="directory for downloads, except Hugging Face's; default: %(default)s",
        )
    commands.choices["clip"].add_argument(
        "--tokenizer",
        metavar="PATH",
        help="a Hugging Face directory, or OpenAI's bpe_simple_vocab_16e6.txt.gz as a file or an "
        "https:// address; default: the tokenizer of SOURCE, if it is a known name or a directory "
        "with a tokenizer",
    )
    commands.choices["lpips"].add_argument(
        "--linear",
        metavar="PATH",
        help="weights/v0.1/vgg.pth of the package lpips, if SOURCE is torchvision's vgg16",
    )
    commands.choices["directions"].add_argument(
        "--generator",
        metavar="PATH",
        help="checkpoint directory of the generator that the directions are for; required unless "
        "it has the widths of the official generators of 1024 pixels",
    )
    commands.choices["directions"].add_argument(
        "--scales",
        metavar="PATH",
        help="S_mean_std of the official code; default: scales are measured on --generator",
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
    path = sources.find(options.command, options.source, options.cache)
    # Before the conversion, so that a missing tokenizer is reported early.
    tokenizer = _find_tokenizer(options, path) if options.command == "clip" else None
    source = formats.read(path)
    if options.command == "lpips" and options.linear:
        linear = formats.read(sources.find(options.command, options.linear, options.cache))
        source = source._replace(tensors=source.tensors | linear.tensors)
    if options.command == "latents":
        latents.save(destination, latents.convert(source))
    else:
        conversion = _convert_model(options, source)
        if options.command == "clip":
            conversion = _with_tokenizer(conversion, tokenizer)
        _save(destination, conversion)
        for note in conversion.notes:
            print(f"note: {note}")
    print(f"wrote {destination}")


def _convert_model(options: argparse.Namespace, source: formats.SourceFile) -> Conversion:
    if options.command != "directions":
        return MODELS[options.command][0](source)
    scales = options.scales and formats.read(
        sources.find("directions", options.scales, options.cache)
    )
    return directions.convert(
        source, scales, options.generator and load_generator(options.generator)
    )


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
    """Delays Ctrl-C and SIGTERM, because Orbax's threads keep writing when their caller stops."""
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


def _find_tokenizer(options: argparse.Namespace, source: Path) -> Path | None:
    if options.tokenizer:
        return sources.find(options.command, options.tokenizer, options.cache)
    if vocabulary := sources.default_tokenizer(options.command, options.source):
        return sources.fetch(vocabulary, options.cache)
    return source if has_tokenizer(source) else None


def _with_tokenizer(conversion: Conversion, tokenizer: Path | None) -> Conversion:
    if not tokenizer:
        note = "no tokenizer was found; convert again with --tokenizer to use this CLIP with texts"
        return conversion._replace(notes=(note,))
    vocab_size = conversion.model.config.vocab_size
    return conversion._replace(tokenizer_files=read_tokenizer(tokenizer, vocab_size))


def _describe_known() -> str:
    lines = [f"  {name}: {', '.join(sources.known_names(name))}" for name in MODELS]
    return "\n".join(["Known names (downloaded):", *(x for x in lines if x[-2:] != ": ")])


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    # Orbax logs errors with the stack of every thread, and raises them as well.
    logging.set_verbosity(logging.FATAL)
    # Like Ctrl-C, so that a conversion removes its unfinished results.
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
        return _fail("out of memory; use a machine with more memory")
    return 0


def _fail(error: Exception | str) -> int:
    # Names in a file may contain control characters.
    message = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    print("error:", message, file=sys.stderr)
    return 1


def start() -> NoReturn:
    """Runs the command ``styleclip-convert``."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    start()
