r"""Serves a page for editing faces with text.

Examples:
  python app.py
  python app.py --port=8080 --mappers_dir=runs
  python app.py --generator=checkpoints/ffhq --clip=checkpoints/vit-b-32 --host=0.0.0.0
"""

import gc
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import flags

from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import AVATARS, pretrained_mappers
from styleclip_jax.runs import command_line, network_flags

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen on; 0.0.0.0 accepts connections from other machines."
)
flags.DEFINE_integer("port", 7860, "Port to listen on.", lower_bound=1, upper_bound=65535)
network_flags.define_generator()
network_flags.define_clip("CLIP that scores the images")
flags.DEFINE_string(
    "encoder",
    None,
    "Encoder for uploaded photos: a directory written by python -m ckpt_convert e4e. Default: the"
    " avatars' encoder; with --generator, uploads need this flag.",
)
flags.DEFINE_string(
    "directions",
    None,
    "Directions for instant edits: a directory written by make_directions.py. Default: the avatars'"
    " directions; with --generator or --clip, instant edits need this flag or a mapper for any"
    " text.",
)
flags.DEFINE_string(
    "mappers_dir", None, "Directory of runs of train_mapper.py; the page offers their mappers."
)
flags.DEFINE_bool(
    "warmup",
    True,
    "Compile all programs at startup, in the background, rather than at their first use.",
)
flags.DEFINE_integer("max_waiting", 64, "Maximum number of waiting requests.", lower_bound=1)
flags.DEFINE_integer("max_steps", 300, "Maximum number of steps of an optimization.", lower_bound=1)
flags.DEFINE_float("max_seconds", 120, "Time limit of an optimization in seconds.", lower_bound=1)
flags.DEFINE_string(
    "auth_file",
    None,
    "Allow only the users in this file, written by python -m styleclip_jax.app.passwords.",
)
flags.DEFINE_string(
    "root_path", None, "Path of the page behind a proxy, such as /faces. Default: /."
)
flags.DEFINE_float(
    "grace_seconds",
    30,
    "Number of seconds that running edits have to finish after SIGTERM.",
    lower_bound=0,
)


def main(_: Sequence[str]) -> None:
    """Loads the models and serves the page."""
    # Imports and compilations allocate so many objects that garbage collection takes a seventh of
    # the startup.
    gc.disable()
    with tempfile.TemporaryDirectory(prefix="styleclip-app-") as directory:
        # Gradio reads these variables when it is imported.
        os.environ |= {"GRADIO_TEMP_DIR": directory, "GRADIO_ANALYTICS_ENABLED": "False"}
        try:
            from styleclip_jax.app import engine, passwords, server
            from styleclip_jax.app.running import RunningEdits
        except ModuleNotFoundError as error:
            raise InputError(
                f"{error.name} is not installed, but the page needs it; run"
                " pip install 'styleclip-jax[app]'"
            ) from None
        options: dict[str, Any] = {"root_path": FLAGS.root_path}
        if FLAGS.auth_file:
            options["auth"] = passwords.password_check(FLAGS.auth_file)
        limits = engine.Limits(steps=FLAGS.max_steps, seconds=FLAGS.max_seconds)
        models = engine.Engine(
            FLAGS.generator,
            FLAGS.clip,
            find_mappers(),
            find_encoder(),
            FLAGS.directions,
            limits,
        )
        if FLAGS.encoder:
            # So that an invalid encoder is reported now rather than with the first upload.
            models.load_encoder()
        engines = [models, *map(models.on, jax.local_devices()[1:])]
        running = RunningEdits(engines)
        app = server.make_app(models, running, FLAGS.max_waiting, **options)
        if FLAGS.warmup:
            for each in engines:
                each.warm_up()
        gc.freeze()
        gc.enable()
        print(f"the page is at http://{FLAGS.host}:{FLAGS.port}", flush=True)
        try:
            server.serve(app, running, FLAGS.host, FLAGS.port, FLAGS.grace_seconds)
        finally:
            # The process waits for the threads; daemons would abort it during a compilation.
            for each in engines:
                each.closing.set()


def find_mappers() -> dict[str, str]:
    """Returns the mappers of the package, for the avatars only, and those of ``--mappers_dir``."""
    found = {} if FLAGS.generator else {name: name for name in pretrained_mappers()}
    if FLAGS.clip:
        # This mapper works only with the avatars' CLIP.
        found.pop("any_text", None)
    if FLAGS.mappers_dir:
        directory = Path(FLAGS.mappers_dir)
        if not directory.is_dir():
            raise InputError(
                f"--mappers_dir={directory} is not a directory, expected one with runs of"
                " train_mapper.py"
            )
        found |= {path.name: str(path) for path in sorted(directory.iterdir()) if path.is_dir()}
    return found


def find_encoder() -> str | None:
    """Returns ``--encoder``, or the avatars' encoder by default."""
    avatars = AVATARS / "encoder"
    if FLAGS.encoder or FLAGS.generator or not avatars.exists():
        return FLAGS.encoder
    return str(avatars)


def start() -> NoReturn:
    """Runs the script; the entry point of ``styleclip-app``."""
    command_line.run(main)


if __name__ == "__main__":
    start()
