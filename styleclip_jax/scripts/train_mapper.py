r"""Trains a mapper: small networks that learn, for one text, how to edit any image in one pass.

Runs on all devices of this machine; on several machines, run the same command on each of them. To
resume an interrupted run, run the same command again. The mapper with the best validation loss is
kept in EXP_DIR/mapper, for apply_mapper.py.

Examples:
  python train_mapper.py --description="a person with a beard" --exp_dir=runs/beard
  python train_mapper.py --description="a person with purple hair" --exp_dir=runs/purple \
      --generator=checkpoints/ffhq --clip=checkpoints/vit-b-32 --arcface=checkpoints/arcface \
      --latents_train=train_faces.npy --latents_test=test_faces.npy --no_coarse_mapper
  python train_mapper.py --description="a person with a beard" --exp_dir=/shared/beard \
      --batch_size=64 --coordinator_address=10.0.0.1:1234 --num_processes=2 --process_id=0
"""

import contextlib
import functools
import operator
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, cast

import jax
import numpy as np
from absl import flags
from etils import epath
from flax import nnx
from PIL import Image
from tqdm import tqdm

from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import MAPPER, load_arcface, load_generator, save_model
from styleclip_jax.io.images import before_after_sheet
from styleclip_jax.io.latents import load_latents
from styleclip_jax.latents import sample_latents
from styleclip_jax.methods.mapper_diagnostics import (
    check_finite,
    describe_shares,
    training_warnings,
)
from styleclip_jax.methods.mapper_editing import apply_mapper
from styleclip_jax.methods.mapper_training import (
    AVATARS_MAPPER_CONFIG,
    MapperTrainConfig,
    batch_indices,
    init_mapper_state,
    make_mapper_evaluation,
    make_mapper_train_step,
)
from styleclip_jax.models import Generator, MapperConfig
from styleclip_jax.models.mapper import LEVELS, MAPPER_TYPES, Mapper
from styleclip_jax.runs import command_line, objective_flags
from styleclip_jax.runs import processes as distributed
from styleclip_jax.runs.experiment import Checkpoints, Measurements, Preemption, Progress, claim
from styleclip_jax.sharding import host_share, replicate

FLAGS = flags.FLAGS
DEFAULTS = MapperTrainConfig()

# Defaults for the small generator that ships with the package; flags on the command line prevail.
AVATARS = {
    "batch_size": 8,
    "max_steps": 1000,
    "val_interval": 200,
    "save_interval": 200,
    **command_line.differences(AVATARS_MAPPER_CONFIG, DEFAULTS),
}

SHEET_ROWS = 8

# Flags that a resumed run may change: they decide where it runs, not what it computes.
MACHINE_FLAGS = ("exp_dir", "coordinator_address", "num_processes", "process_id", "join_timeout")

flags.DEFINE_string(
    "description",
    None,
    "What the images should show, such as 'a person with a beard'.",
    required=True,
)
flags.DEFINE_string(
    "exp_dir",
    None,
    "Directory of this run, for its mapper, checkpoints, metrics and images. A run with the same"
    " flags in it is resumed. Several machines must share it.",
    required=True,
)

flags.DEFINE_string(
    "generator",
    None,
    "StyleGAN2 that synthesizes the images: a directory written by python -m ckpt_convert"
    " stylegan2. Default: the avatars that ship with the package, with these settings:"
    f" {command_line.describe_flags(AVATARS)}.",
)
objective_flags.define_flags(DEFAULTS)
flags.DEFINE_string(
    "arcface",
    None,
    "Face recognition network for the identity loss: a directory written by python -m ckpt_convert"
    " arcface. Default: no identity loss.",
)
flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "bfloat16"],
    "Precision of the networks: bfloat16 is faster on GPUs and TPUs, float32 is more exact.",
)

flags.DEFINE_string(
    "latents_train", None, "Latents to train on, .npy or .npz. Default: random images."
)
flags.DEFINE_string(
    "latents_test", None, "Latents to validate on, .npy or .npz. Default: other random images."
)
flags.DEFINE_integer(
    "train_dataset_size", 5000, "Number of random images to train on.", lower_bound=1
)
flags.DEFINE_integer(
    "test_dataset_size", 64, "Number of random images to validate on.", lower_bound=1
)
flags.DEFINE_float(
    "truncation",
    0.7,
    "Variety of the random images: 1 is the full variety, lower values give more typical images.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "seed",
    0,
    "Seed of the random images, their order, the mapper's initial weights and the random views.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)

flags.DEFINE_enum(
    "mapper_type",
    None,
    list(MAPPER_TYPES),
    "LevelsMapper has a network each for coarse, medium and fine layers, SingleMapper one for all,"
    " the StyleSpace mappers one per layer. Default: LevelsMapper, and with --space=stylespace"
    " WithoutToRGBStyleSpaceMapper.",
)
flags.DEFINE_enum(
    "space",
    "w_plus",
    ["w_plus", "stylespace"],
    "Latent space of the mapper: the latent of every layer, or the style channels.",
)
flags.DEFINE_bool("no_coarse_mapper", False, "Leave layers 0 to 3 (pose, shape) unchanged.")
flags.DEFINE_bool("no_medium_mapper", False, "Leave layers 4 to 7 (facial features) unchanged.")
flags.DEFINE_bool("no_fine_mapper", False, "Leave layers 8 and up (colors) unchanged.")

flags.DEFINE_integer(
    "batch_size", 2, "Images per step, over all devices of all machines.", lower_bound=1
)
flags.DEFINE_enum("optimizer", DEFAULTS.optimizer, ["ranger", "adam"], "Optimizer.")
flags.DEFINE_float("learning_rate", DEFAULTS.learning_rate, "Step size.")
flags.DEFINE_float("clip_lambda", DEFAULTS.clip_lambda, "Weight of the CLIP loss.")
flags.DEFINE_float(
    "id_lambda",
    DEFAULTS.id_lambda,
    "Weight of the identity loss: for realistic faces, with --arcface.",
)
flags.DEFINE_float(
    "latent_l2_lambda",
    DEFAULTS.latent_l2_lambda,
    "Weight of the latents' mean squared change: larger values preserve more of the image.",
)
flags.DEFINE_float(
    "strength", DEFAULTS.strength, "Factor of the mapper's output when it is added to the latents."
)

flags.DEFINE_integer("max_steps", 50000, "Number of steps.", lower_bound=1)
flags.DEFINE_float("stop_loss", None, "Stop early when the validation loss is below this.")
flags.DEFINE_integer(
    "patience",
    0,
    "Stop early after this number of validations without an improvement. 0: take all steps.",
    lower_bound=0,
)
flags.DEFINE_integer("log_interval", 50, "Steps between records of the losses.", lower_bound=1)
flags.DEFINE_integer("image_interval", 100, "Steps between images in TensorBoard.", lower_bound=1)
flags.DEFINE_integer("val_interval", 2000, "Steps between validations.", lower_bound=1)
flags.DEFINE_integer("save_interval", 2000, "Steps between checkpoints.", lower_bound=1)

flags.DEFINE_string(
    "coordinator_address",
    None,
    "Several machines: host:port of the first one. Not needed on TPU pods, SLURM and Open MPI.",
)
flags.DEFINE_integer(
    "num_processes", None, "Several machines: the number of processes.", lower_bound=1
)
flags.DEFINE_integer(
    "process_id", None, "Several machines: the number of this process, from 0.", lower_bound=0
)
flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for other processes.", lower_bound=1)


def main(_: Sequence[str]) -> None:
    """Trains a mapper and writes the best one to ``exp_dir``."""
    distributed.initialize(
        FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id, FLAGS.join_timeout
    )
    with distributed.together():
        choose_defaults()
        config = command_line.config_from_flags(MapperTrainConfig)
        generator = replicate(load_generator(FLAGS.generator, FLAGS.dtype))
        texts = replicate(objective_flags.read_clips())
        arcface = replicate(load_arcface(FLAGS.arcface, FLAGS.dtype)) if FLAGS.arcface else None
        # Other seeds than the other scripts use, so that these show images not trained on.
        seeds = map(int, np.random.SeedSequence(FLAGS.seed).generate_state(2))
        train_latents = read_latents("latents_train", "train_dataset_size", generator, next(seeds))
        test_latents = read_latents("latents_test", "test_dataset_size", generator, next(seeds))
        mapper = new_mapper(generator)
        training_batch(train_latents, step=1)  # Raises now, not later, if devices cannot share it.

    directory = epath.Path(FLAGS.exp_dir).expanduser()
    objective = (generator, texts.clips, texts.descriptions, config, arcface)
    references = {"neutral_features": texts.neutral, "keep_features": texts.keep}
    key = jax.random.key(FLAGS.seed)
    train_step = make_mapper_train_step(*objective, **references, key=key)
    evaluate = make_mapper_evaluation(*objective, **references)
    state = init_mapper_state(mapper, config)
    progress = Progress()

    with claim(directory, recorded_flags()), contextlib.closing(Checkpoints(directory)) as saved:
        resumed = saved.latest_step
        if resumed is not None:
            state, progress = saved.restore(resumed, state)
            say(f"resuming after step {resumed}")
        with distributed.together():
            measurements = Measurements(directory, resumed)
        with contextlib.closing(measurements):
            if resumed is None:
                progress.first = validate(evaluate, state.mapper, test_latents, step=0)
                measurements.scalars(0, "validation", progress.first)
                say(f"before the first step, {describe_shares(progress.first, config)}")
            preemption = Preemption()
            with progress_bar(resumed or 0) as bar:
                read = functools.partial(read_metrics, measurements, bar)
                unread = None
                for step in steps(resumed or 0, bar, progress):
                    batch = training_batch(train_latents, step)
                    state, metrics = train_step(state, batch)
                    # Reading the previous step does not stall the device: it has finished.
                    if unread:
                        read(*unread)
                    unread = step, metrics

                    preempted = preemption.reached(step)
                    draws = step % FLAGS.image_interval == 0
                    validates = step % FLAGS.val_interval == 0 or step == FLAGS.max_steps
                    saves = validates or preempted or step % FLAGS.save_interval == 0
                    if draws or saves:
                        read(*unread)
                        unread = None
                    if draws:
                        sheet = functools.partial(before_after, generator, state.mapper, batch)
                        measurements.picture(step, "train", sheet)
                    if validates:
                        losses = validate(evaluate, state.mapper, test_latents, step)
                        measurements.scalars(step, "validation", losses)
                        sheet = functools.partial(
                            before_after, generator, state.mapper, test_latents
                        )
                        measurements.picture(step, "validation", sheet)
                        say(f"step {step}, validation {describe_shares(losses, config)}")
                        for warning in training_warnings(progress.first, losses, train_latents):
                            say(f"warning: {warning}")
                        if progress.record(step, losses["loss"]):
                            export(state.mapper, directory / MAPPER)
                    if saves:
                        validation_loss = progress.loss if validates else None
                        saved.save(step, state, progress, validation_loss)
                    if preempted:
                        say(f"stopped by SIGTERM after step {step}; run the same command to resume")
                        sys.exit(128 + signal.SIGTERM)
    say(
        f"wrote {directory / MAPPER}, the mapper after step {progress.best_step} with validation"
        f" loss {progress.best_loss:.4f}"
    )


def choose_defaults() -> None:
    """Sets flags whose defaults depend on others; raises InputError if flags contradict."""
    if "://" in FLAGS.exp_dir:
        raise InputError(
            f"--exp_dir={FLAGS.exp_dir} is a URL, expected a directory; mount the file system"
        )
    if not FLAGS.generator:
        for name, value in AVATARS.items():
            FLAGS.set_default(name, value)
    elif not FLAGS.clip:
        say("note: the CLIP that ships with the package only knows avatars; give --clip too")
    objective_flags.check_flags()
    command_line.refuse_random_images("latents_train", "train_dataset_size")
    command_line.refuse_random_images("latents_test", "test_dataset_size")
    if FLAGS.latents_train and FLAGS.latents_test:
        command_line.refuse_random_images("latents_train", "truncation")
    FLAGS.set_default("test_dataset_size", max(FLAGS.test_dataset_size, FLAGS.batch_size))
    if not FLAGS.mapper_type:
        in_stylespace = FLAGS.space == "stylespace"
        FLAGS.mapper_type = "WithoutToRGBStyleSpaceMapper" if in_stylespace else "LevelsMapper"
    space = MAPPER_TYPES[FLAGS.mapper_type].space
    if space != FLAGS.space:
        raise InputError(f"--mapper_type={FLAGS.mapper_type} needs --space={space}")
    for level in LEVELS:
        if FLAGS[f"no_{level}_mapper"].value and FLAGS.mapper_type != "LevelsMapper":
            raise InputError(f"--no_{level}_mapper needs --mapper_type=LevelsMapper")
    if FLAGS.id_lambda and not FLAGS.arcface:
        if FLAGS["id_lambda"].present:
            raise InputError(
                f"--id_lambda={FLAGS.id_lambda} needs --arcface, the checkpoint of a face"
                " recognition network (python -m ckpt_convert arcface)"
            )
        say("note: no --arcface, so no identity loss: --id_lambda=0")
        FLAGS.id_lambda = 0.0


def read_latents(file_flag: str, size_flag: str, generator: Generator, seed: int) -> Any:
    """Latents of a file or of random images, in the host's memory and in the mapper's space."""
    path, size = FLAGS[file_flag].value, cast(int, FLAGS[size_flag].value)
    if path:
        latents = load_latents(path, generator)
    else:
        latents = sample_latents(generator, size, seed, FLAGS.truncation)
    if FLAGS.space == "stylespace" and not isinstance(latents, tuple):
        latents = jax.jit(Generator.styles)(generator, latents)
    if FLAGS.space == "w_plus" and isinstance(latents, tuple):
        raise InputError(f"{path} contains StyleSpace arrays; use --space=stylespace")
    size = len(jax.tree.leaves(latents)[0])
    if size < FLAGS.batch_size:
        name = f"--{file_flag}={path} has" if path else f"--{size_flag} is"
        raise InputError(f"{name} {size}, fewer than one batch (--batch_size={FLAGS.batch_size})")
    return jax.device_get(latents)


def new_mapper(generator: Generator) -> Mapper:
    """The mapper to train."""
    config = MapperConfig(
        w_dim=generator.config.w_dim,
        num_layers=generator.config.num_layers,
        style_dims=generator.config.style_dims,
        coarse=not FLAGS.no_coarse_mapper,
        medium=not FLAGS.no_medium_mapper,
        fine=not FLAGS.no_fine_mapper,
    )
    return MAPPER_TYPES[FLAGS.mapper_type](config, rngs=nnx.Rngs(FLAGS.seed))


def recorded_flags() -> dict[str, Any]:
    """Flags that decide the result."""
    values = command_line.script_flags(__name__)
    return {name: value for name, value in values.items() if name not in MACHINE_FLAGS}


def progress_bar(first: int) -> tqdm:
    """A progress bar, on one host's terminal."""
    return tqdm(
        total=FLAGS.max_steps,
        initial=first,
        desc=FLAGS.description,
        unit="step",
        disable=None if jax.process_index() == 0 else True,
    )


def steps(first: int, bar: tqdm, progress: Progress) -> Iterator[int]:
    """The numbers of the steps to take, until the training is finished."""
    for step in range(first + 1, FLAGS.max_steps + 1):
        if progress.finished(FLAGS.stop_loss, FLAGS.patience):
            break
        yield step
        bar.update()


def read_metrics(
    measurements: Measurements, bar: tqdm, step: int, metrics: Mapping[str, Any]
) -> None:
    """Waits for the metrics of a step, then checks, shows and records them."""
    metrics = as_floats(metrics)
    check_finite(step, metrics)
    losses = {name: value for name, value in metrics.items() if not name.endswith("norm")}
    bar.set_postfix(losses, refresh=False)
    if step % FLAGS.log_interval == 0:
        measurements.scalars(step, "train", metrics)


def training_batch(latents: Any, step: int) -> Any:
    """This host's part of the batch of a step."""
    size = len(jax.tree.leaves(latents)[0])
    indices = host_share(batch_indices(FLAGS.seed, step - 1, size, FLAGS.batch_size))
    return jax.tree.map(operator.itemgetter(indices), latents)


def validate(evaluate: Callable, mapper: Mapper, latents: Any, step: int) -> dict[str, float]:
    """Mean losses over the validation latents that fill whole batches."""
    size = len(jax.tree.leaves(latents)[0]) // FLAGS.batch_size * FLAGS.batch_size
    batches = np.arange(size).reshape(-1, FLAGS.batch_size)
    results = []
    for indices in map(host_share, batches):
        batch = jax.tree.map(operator.itemgetter(indices), latents)
        results.append(evaluate(mapper, batch))
    losses = as_floats(jax.tree.map(lambda *values: np.mean(values), *jax.device_get(results)))
    check_finite(step, losses)
    return losses


def before_after(generator: Generator, mapper: Mapper, latents: Any) -> Image.Image:
    """A sheet of the first images, before and after.

    They are synthesized a few at a time, so that one compiled program serves all sheets of a run.
    """
    few = min(SHEET_ROWS, FLAGS.batch_size // jax.process_count())
    rows = min(SHEET_ROWS, len(jax.tree.leaves(latents)[0])) // few * few

    def images(strength: float) -> np.ndarray:
        parts = []
        for i in range(0, rows, few):
            part = jax.tree.map(operator.itemgetter(slice(i, i + few)), latents)
            parts.append(apply_mapper(generator, mapper, part, strength)[0])
        return np.concatenate(parts)

    return before_after_sheet(images(0.0), images(FLAGS.strength), FLAGS.description)


def export(mapper: Mapper, path: epath.Path) -> None:
    """Writes the mapper and replaces an older one."""
    if jax.process_index() == 0:
        unfinished, older = (path.with_name(f"{path.name}.{x}") for x in ("unfinished", "older"))
        for left_over in (unfinished, older):
            left_over.rmtree(missing_ok=True)
        save_model(unfinished, mapper)
        if path.exists():
            path.rename(older)
        unfinished.rename(path)
        older.rmtree(missing_ok=True)


def as_floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as Python numbers."""
    return {name: float(value) for name, value in jax.device_get(metrics).items()}


def say(message: str) -> None:
    """Prints a line, on one host."""
    if jax.process_index() == 0:
        tqdm.write(message, file=sys.stderr)


def start() -> NoReturn:
    """Runs the script; the command ``styleclip-train-mapper``."""
    command_line.run(main)


if __name__ == "__main__":
    start()
