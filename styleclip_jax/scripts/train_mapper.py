r"""Trains a mapper: small networks that learn to edit any image in one forward pass.

A mapper learns the edit of one text, --description. With --mapper_type=DeltaMapper, it learns from
pairs of images, without texts, and afterwards applies any text.

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
  python train_mapper.py --mapper_type=DeltaMapper --exp_dir=runs/any_text
  python train_mapper.py --mapper_type=DeltaMapper --exp_dir=runs/any_text \
      --generator=checkpoints/ffhq --clip=checkpoints/vit-b-32 --train_dataset_size=200000
"""

import contextlib
import functools
import operator
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, cast, get_args

import jax
import numpy as np
from absl import flags
from etils import epath
from flax import nnx
from jaxtyping import Int
from PIL import Image
from tqdm import tqdm

from styleclip_jax.avatars import (
    AVATARS_DELTA_CONFIG,
    AVATARS_DELTA_RUN,
    AVATARS_MAPPER_CONFIG,
    AVATARS_MAPPER_RUN,
)
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import (
    MAPPER,
    load_arcface,
    load_clip,
    load_generator,
    save_model,
)
from styleclip_jax.io.files import expand_user
from styleclip_jax.io.images import before_after_sheet, sheet
from styleclip_jax.io.latents import load_latents
from styleclip_jax.latents import sample_latents, to_styles
from styleclip_jax.methods.delta_editing import apply_delta_mapper
from styleclip_jax.methods.delta_training import (
    DeltaTrainConfig,
    Pairs,
    SeenStyles,
    choose_partners,
    make_delta_evaluation,
    make_delta_train_step,
    make_pairs,
    pair_directions,
    see_styles,
)
from styleclip_jax.methods.linear_start import latent_directions, sample_features
from styleclip_jax.methods.mapper_editing import apply_mapper
from styleclip_jax.methods.mapper_training import (
    MapperTrainConfig,
    OptimizerName,
    batch_indices,
    init_mapper_state,
    make_mapper_evaluation,
    make_mapper_train_step,
    mapper_card,
    start_along,
)
from styleclip_jax.models import CLIP, DeltaMapper, DeltaMapperConfig, Generator, MapperConfig
from styleclip_jax.models.card import MapperCard
from styleclip_jax.models.mapper import LEVELS, MAPPER_TYPES, Mapper
from styleclip_jax.runs import command_line, network_flags, objective_flags, process_flags
from styleclip_jax.runs import processes as distributed
from styleclip_jax.runs.experiment import Checkpoints, Measurements, Preemption, Progress, claim
from styleclip_jax.runs.mapper_diagnostics import (
    check_finite,
    delta_training_warnings,
    describe_shares,
    training_warnings,
)
from styleclip_jax.runs.results import check_local
from styleclip_jax.sharding import host_share, replicate

FLAGS = flags.FLAGS
DEFAULTS = MapperTrainConfig()
DELTA_DEFAULTS = DeltaTrainConfig()

# Defaults without --generator; flags on the command line prevail.
AVATARS = AVATARS_MAPPER_RUN | command_line.differences(AVATARS_MAPPER_CONFIG, DEFAULTS)

# Official defaults of a mapper for any text.
DELTA = {"optimizer": "adam", "learning_rate": 0.5, "batch_size": 64, "space": "stylespace"}
DELTA_AVATARS = AVATARS_DELTA_RUN | command_line.differences(AVATARS_DELTA_CONFIG, DELTA_DEFAULTS)
TYPES = MAPPER_TYPES | {DeltaMapper.__name__: DeltaMapper}
# Flags that only affect mappers for one text, and flags that only affect mappers for any text.
TEXT_FLAGS = (
    *("description", "arcface", "id_lambda", "clip_lambda", "latent_l2_lambda", "strength"),
    *("guidance", "neutral", "orthogonal_lambda", "keep", "keep_lambda", "views", "view_kinds"),
    *("templates", "start_samples"),
)
PAIR_FLAGS = (
    *("rgb", "width", "pair_redraw", "pair_reach", "l2_lambda", "cosine_lambda", "direction_noise"),
)

SHEET_ROWS = 8

# Flags that a resumed run may change, because they do not affect results.
MACHINE_FLAGS = ("exp_dir", *process_flags.NAMES)

flags.DEFINE_string(
    "description",
    None,
    "What the images should show, such as 'a person with a beard'. Required for all mappers except"
    " DeltaMapper.",
)
flags.DEFINE_string(
    "exp_dir",
    None,
    "Directory of this run, for its mapper, checkpoints, metrics and images. A run with the same"
    " flags in it is resumed. Several machines must share it. Required.",
    required=True,
)

network_flags.define_flags(command_line.describe_flags(AVATARS))
objective_flags.define_flags(DEFAULTS)
network_flags.define_arcface("for the identity loss", "no identity loss")

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
    list(TYPES),
    "LevelsMapper has one network each for coarse, medium and fine layers, SingleMapper one for all"
    " layers, the StyleSpace mappers one per layer. DeltaMapper (DeltaEdit) is for any text and has"
    f" other defaults: {command_line.describe_flags(DELTA)}, and for the avatars"
    f" {command_line.describe_flags(DELTA_AVATARS)}. Default: LevelsMapper, or"
    " WithoutToRGBStyleSpaceMapper with --space=stylespace.",
)
flags.DEFINE_bool(
    "rgb",
    False,
    "With DeltaMapper: also change the styles of ToRGB layers, which set colors.",
)
flags.DEFINE_integer(
    "width",
    None,
    "With DeltaMapper: features of the hidden layers. Default: as many as the output.",
    lower_bound=1,
)
flags.DEFINE_float(
    "pair_redraw",
    1.0,
    "With DeltaMapper: probability that an entry of a random z differs from that of the previous"
    " image. 1: images are independent; smaller values, for example 0.1: neighboring images differ"
    " in a few attributes.",
    lower_bound=0.001,
    upper_bound=1,
)
flags.DEFINE_integer(
    "pair_reach",
    0,
    "With DeltaMapper: an image's partners are this number of images before and after it. 0: all"
    " images.",
    lower_bound=0,
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
flags.DEFINE_enum("optimizer", "ranger", get_args(OptimizerName), "Optimizer.")
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
    "l2_lambda",
    DELTA_DEFAULTS.l2_lambda,
    "With DeltaMapper: weight of the mean squared error of the predicted change of styles.",
)
flags.DEFINE_float(
    "cosine_lambda",
    DELTA_DEFAULTS.cosine_lambda,
    "With DeltaMapper: weight of 1 - cosine of the predicted and the true change.",
)
flags.DEFINE_float(
    "direction_noise",
    DELTA_DEFAULTS.direction_noise,
    "With DeltaMapper: length of random vectors added to the directions of image pairs, which makes"
    " the mapper robust to the difference between image and text directions.",
)
flags.DEFINE_float(
    "strength", DEFAULTS.strength, "Factor of the mapper's output when it is added to the latents."
)

flags.DEFINE_integer(
    "start_samples",
    0,
    "Start along the text's direction in W, estimated on this number of random images. 0: start"
    " with random weights, like the official code.",
    lower_bound=0,
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

process_flags.define_flags()


class Training(NamedTuple):
    """The parts of a training that depend on the type of the mapper.

    Attributes:
        config: The settings.
        mapper: The mapper with random weights.
        start: Returns the initial mapper.
        step: Takes a training step with a batch.
        evaluate: Computes the losses of a mapper on a batch.
        batch: Returns this host's part of a step's batch.
        test: The validation data, in host memory.
        sheet: Synthesizes a sheet of a few examples.
        warnings: Returns warnings from the first and the current losses.
    """

    config: MapperTrainConfig | DeltaTrainConfig
    mapper: Mapper | DeltaMapper
    start: Callable[[Any], Any]
    step: Callable
    evaluate: Callable
    batch: Callable[[int], Any]
    test: Any
    sheet: Callable[[Any, Any], Image.Image]
    warnings: Callable[[Mapping[str, float], Mapping[str, float]], list[str]]


def main(_: Sequence[str]) -> None:
    """Trains a mapper and writes the best one to ``exp_dir``."""
    process_flags.join()
    with distributed.together():
        choose_defaults()
        directory = epath.Path(expand_user(FLAGS.exp_dir))
    training = pair_training() if FLAGS.mapper_type == "DeltaMapper" else text_training()
    config, test = training.config, training.test
    state = init_mapper_state(training.mapper, config)
    progress = Progress()

    with claim(directory, recorded_flags()), contextlib.closing(Checkpoints(directory)) as saved:
        resumed = saved.latest_step
        if resumed is not None:
            state, progress = saved.restore(resumed, state)
            say(f"resuming after step {resumed}")
            missing = progress.best_step > 0 and not (directory / MAPPER).exists()
            if distributed.from_first(int(missing)):
                export(saved.restore(progress.best_step, state)[0].mapper, directory / MAPPER)
        with distributed.together():
            measurements = Measurements(directory, resumed)
        with contextlib.closing(measurements):
            if resumed is None:
                state = init_mapper_state(training.start(training.mapper), config)
                progress.first = validate(training.evaluate, state.mapper, test, step=0)
                measurements.scalars(0, "validation", progress.first)
                say(f"before the first step, {describe_shares(progress.first, config)}")
            preemption = Preemption()
            with progress_bar(resumed or 0) as bar:
                read = functools.partial(read_metrics, measurements, bar)
                unread = None
                for step in steps(resumed or 0, bar, progress):
                    batch = training.batch(step)
                    state, metrics = training.step(state, batch)
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
                        sheet = functools.partial(training.sheet, state.mapper, batch)
                        measurements.image(step, "train", sheet)
                    if validates:
                        losses = validate(training.evaluate, state.mapper, test, step)
                        measurements.scalars(step, "validation", losses)
                        sheet = functools.partial(training.sheet, state.mapper, test)
                        measurements.image(step, "validation", sheet)
                        say(f"step {step}, validation {describe_shares(losses, config)}")
                        for warning in training.warnings(progress.first, losses):
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


def text_training() -> Training:
    """Reads networks and latents, and prepares the training of a mapper of one text."""
    with distributed.together():
        config = command_line.config_from_flags(MapperTrainConfig)
        generator = replicate(load_generator(FLAGS.generator, FLAGS.dtype))
        texts = replicate(objective_flags.read_clips())
        arcface = replicate(load_arcface(FLAGS.arcface, FLAGS.dtype)) if FLAGS.arcface else None
        train_latents, test_latents = map(
            functools.partial(in_space, generator), read_latents(generator)
        )
        mapper = new_mapper(generator, config)
        rows_of_step(train_latents, step=1)  # Checks the batch size early.
    objective = (generator, texts.clips, texts.descriptions, config, arcface)
    references: Any = {"neutral_features": texts.neutral, "keep_features": texts.keep}
    evaluate = make_mapper_evaluation(*objective, **references)
    key = jax.random.key(FLAGS.seed)

    def batch(step: int) -> Any:
        return take(train_latents, host_share(rows_of_step(train_latents, step)))

    def start(mapper: Mapper) -> Mapper:
        if not FLAGS.start_samples:
            return mapper
        samples = sample_features(
            generator,
            texts.clips,
            FLAGS.start_samples,
            truncation=FLAGS.truncation,
            preprocess=config.preprocess,
        )
        direction = latent_directions(samples, texts.descriptions, texts.neutral)[0]
        # More than an epoch would repeat images.
        count = min(8, size_of(train_latents) // FLAGS.batch_size)
        batches = [batch(step) for step in range(1, count + 1)]
        return start_along(mapper, generator, direction, config, evaluate, batches)

    return Training(
        config=config,
        mapper=mapper,
        start=start,
        step=make_mapper_train_step(*objective, **references, key=key),
        evaluate=evaluate,
        batch=batch,
        test=test_latents,
        sheet=functools.partial(before_after, generator),
        warnings=functools.partial(training_warnings, latents=train_latents),
    )


def pair_training() -> Training:
    """Reads networks and latents, and prepares the training of a mapper for any text."""
    with distributed.together():
        config = command_line.config_from_flags(DeltaTrainConfig)
        generator = replicate(load_generator(FLAGS.generator, FLAGS.dtype))
        clip = replicate(load_clip(FLAGS.clip[0] if FLAGS.clip else None, FLAGS.dtype))
        latents = read_latents(generator)
        mapper = DeltaMapper(
            DeltaMapperConfig(
                generator.config.style_dims,
                clip.config.embed_dim,
                FLAGS.rgb,
                FLAGS.preprocess,
                FLAGS.width,
                card=card(generator, config),
            ),
            rngs=nnx.Rngs(FLAGS.seed),
        )
        rows_of_step(latents[0], step=1)  # Checks the batch size early.
    train, test = (see(generator, clip, each) for each in latents)

    def pairs(images: SeenStyles, rows: np.ndarray, step: int) -> Pairs:
        partners = choose_partners(rows, len(images.features), FLAGS.pair_reach, FLAGS.seed, step)
        return make_pairs(images, rows, partners)

    def batch(step: int) -> Pairs:
        return jax.tree.map(
            operator.itemgetter(host_share(np.arange(FLAGS.batch_size))),
            pairs(train, rows_of_step(train, step), step),
        )

    return Training(
        config=config,
        mapper=mapper,
        start=lambda mapper: mapper,
        step=make_delta_train_step(config, key=jax.random.key(FLAGS.seed)),
        evaluate=make_delta_evaluation(config),
        batch=batch,
        test=pairs(test, np.arange(len(test.features)), 0),
        sheet=functools.partial(pair_sheet, generator),
        warnings=lambda _, losses: delta_training_warnings(losses),
    )


def see(generator: Generator, clip: CLIP, latents: Any) -> SeenStyles:
    """Computes styles and CLIP features of images, with a progress bar."""
    size = len(jax.tree.leaves(latents)[0])
    with progress_bar(0, size, "encoding images", "image") as bar:
        return see_styles(generator, clip, latents, FLAGS.batch_size, FLAGS.preprocess, bar.update)


def choose_defaults() -> None:
    """Sets defaults that depend on other flags; raises InputError for contradictions."""
    check_local(f"--exp_dir={FLAGS.exp_dir}")
    if not FLAGS.generator:
        for name, value in AVATARS.items():
            FLAGS.set_default(name, value)
    elif not FLAGS.clip:
        say("note: the CLIP that ships with the package only knows avatars; give --clip too")
    choose_type_and_space()
    objective_flags.check_flags()
    command_line.refuse_random_images("latents_train", "train_dataset_size")
    command_line.refuse_random_images("latents_test", "test_dataset_size")
    if FLAGS.latents_train and FLAGS.latents_test:
        command_line.refuse_random_images("latents_train", "truncation")
    FLAGS.set_default("test_dataset_size", max(FLAGS.test_dataset_size, FLAGS.batch_size))
    for level in LEVELS:
        if FLAGS[f"no_{level}_mapper"].value and FLAGS.mapper_type != "LevelsMapper":
            raise InputError(f"--no_{level}_mapper needs --mapper_type=LevelsMapper")
    if FLAGS.id_lambda and not FLAGS.arcface:
        if FLAGS["id_lambda"].present:
            raise InputError(
                f"--id_lambda={FLAGS.id_lambda} needs --arcface, the checkpoint of a face"
                " recognition network (python -m ckpt_convert arcface)"
            )
        if FLAGS.mapper_type != "DeltaMapper":
            say("note: no --arcface, so no identity loss: --id_lambda=0")
        FLAGS.id_lambda = 0.0


def choose_type_and_space() -> None:
    """Sets the type of the mapper and the defaults that depend on it, and checks its flags."""
    if not FLAGS.mapper_type:
        in_stylespace = FLAGS.space == "stylespace"
        FLAGS.mapper_type = "WithoutToRGBStyleSpaceMapper" if in_stylespace else "LevelsMapper"
    for_any_text = FLAGS.mapper_type == "DeltaMapper"
    unused = [
        f"--{name}" for name in (TEXT_FLAGS if for_any_text else PAIR_FLAGS) if FLAGS[name].present
    ]
    if unused:
        raise InputError(
            f"{', '.join(unused)} has no effect with --mapper_type={FLAGS.mapper_type}, which"
            f" learns from {'pairs of images' if for_any_text else 'a text'}; remove it"
        )
    if for_any_text:
        if len(FLAGS.clip or ()) > 1:
            raise InputError("--mapper_type=DeltaMapper learns from one CLIP; give one --clip")
        if FLAGS.latents_train and FLAGS.pair_redraw < 1:
            command_line.refuse_random_images("latents_train", "pair_redraw")
        for name, value in (DELTA if FLAGS.generator else DELTA | DELTA_AVATARS).items():
            FLAGS.set_default(name, value)
    elif not FLAGS.description:
        raise InputError(
            "--description is missing; add --description=VALUE, with quotes around words"
        )
    space = TYPES[FLAGS.mapper_type].space
    if space != FLAGS.space:
        raise InputError(f"--mapper_type={FLAGS.mapper_type} needs --space={space}")


def read_latents(generator: Generator) -> tuple[Any, Any]:
    """Latents for training and validation, from files or random."""
    # Not the seed itself, so that the other scripts sample other images with this seed.
    seeds = map(int, np.random.SeedSequence(FLAGS.seed).generate_state(2))
    found = []
    for name, seed in zip(("train", "test"), seeds, strict=True):
        path, size = FLAGS[f"latents_{name}"].value, FLAGS[f"{name}_dataset_size"].value
        if path:
            latents = load_latents(path, generator)
        else:
            latents = sample_latents(
                generator, cast(int, size), seed, FLAGS.truncation, FLAGS.pair_redraw
            )
        size = len(jax.tree.leaves(latents)[0])
        if size < FLAGS.batch_size:
            given = f"--latents_{name}={path} has" if path else f"--{name}_dataset_size is"
            raise InputError(
                f"{given} {size}, fewer than one batch (--batch_size={FLAGS.batch_size})"
            )
        if FLAGS.space == "w_plus" and isinstance(latents, tuple):
            raise InputError(f"{path} has StyleSpace arrays, which need --space=stylespace")
        found.append(latents)
    return found[0], found[1]


def in_space(generator: Generator, latents: Any) -> Any:
    """Latents in the space of ``--space``, in host memory."""
    if FLAGS.space == "stylespace":
        latents = jax.jit(to_styles)(generator, latents)
    return jax.device_get(latents)


def card(generator: Generator, config: MapperTrainConfig | DeltaTrainConfig) -> MapperCard:
    """The card of the mapper to train."""
    settings = {name: FLAGS[name].value for name in ("max_steps", "batch_size", "seed")}
    return mapper_card(FLAGS.description, config, generator, **settings)


def new_mapper(generator: Generator, config: MapperTrainConfig) -> Mapper:
    """The initial mapper."""
    architecture = MapperConfig(
        w_dim=generator.config.w_dim,
        num_layers=generator.config.num_layers,
        style_dims=generator.config.style_dims,
        coarse=not FLAGS.no_coarse_mapper,
        medium=not FLAGS.no_medium_mapper,
        fine=not FLAGS.no_fine_mapper,
        card=card(generator, config),
    )
    return MAPPER_TYPES[FLAGS.mapper_type](architecture, rngs=nnx.Rngs(FLAGS.seed))


def recorded_flags() -> dict[str, Any]:
    """Flags that determine the result."""
    values = command_line.script_flags(__name__)
    return {name: value for name, value in values.items() if name not in MACHINE_FLAGS}


def progress_bar(
    first: int, total: int | None = None, title: str | None = None, unit: str = "step"
) -> tqdm:
    """A progress bar on the first host's terminal, by default of the training steps."""
    return tqdm(
        total=total or FLAGS.max_steps,
        initial=first,
        desc=title or FLAGS.description or FLAGS.mapper_type,
        unit=unit,
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
    """Waits for the metrics of a step and checks, shows and records them."""
    metrics = as_floats(metrics)
    check_finite(step, metrics)
    losses = {name: value for name, value in metrics.items() if not name.endswith("norm")}
    bar.set_postfix(losses, refresh=False)
    if step % FLAGS.log_interval == 0:
        measurements.scalars(step, "train", metrics)


def rows_of_step(data: Any, step: int) -> Int[np.ndarray, " batch"]:
    """Rows of the training data in the global batch of a step."""
    rows = batch_indices(FLAGS.seed, step - 1, size_of(data), FLAGS.batch_size)
    host_share(rows)
    return rows


def take(data: Any, rows: Int[np.ndarray, " rows"] | slice) -> Any:
    """Rows of latents or pairs."""
    return jax.tree.map(operator.itemgetter(rows), data)


def size_of(data: Any) -> int:
    """Number of latents or pairs."""
    return len(jax.tree.leaves(data)[0])


def validate(evaluate: Callable, mapper: Any, data: Any, step: int) -> dict[str, float]:
    """Mean losses over the whole batches of the validation data."""
    size = size_of(data) // FLAGS.batch_size * FLAGS.batch_size
    batches = np.arange(size).reshape(-1, FLAGS.batch_size)
    results = [evaluate(mapper, take(data, rows)) for rows in map(host_share, batches)]
    losses = as_floats(jax.tree.map(lambda *values: np.mean(values), *jax.device_get(results)))
    check_finite(step, losses)
    return losses


def before_after(generator: Generator, mapper: Mapper, latents: Any) -> Image.Image:
    """A sheet of the first images, before and after."""
    before, after = (
        synthesize_rows(lambda part, s=s: apply_mapper(generator, mapper, part, s)[0], latents)
        for s in (0.0, FLAGS.strength)
    )
    return before_after_sheet(before, after, FLAGS.description)


def pair_sheet(generator: Generator, mapper: DeltaMapper, pairs: Pairs) -> Image.Image:
    """A sheet of the first pairs: the source image, its edit, and the target image."""

    def edit(part: Pairs, strength: float, *, of_target: bool = False) -> Any:
        source = part.target if of_target else part.source
        direction = pair_directions(part)
        return apply_delta_mapper(
            generator, mapper, source.styles, source.features, direction, strength
        ).images

    columns = {
        "before": functools.partial(edit, strength=0.0),
        "edited": functools.partial(edit, strength=1.0),
        "target": functools.partial(edit, strength=0.0, of_target=True),
    }
    return sheet([synthesize_rows(f, pairs) for f in columns.values()], [*columns])


def synthesize_rows(synthesize: Callable[[Any], Any], data: Any) -> np.ndarray:
    """Synthesizes the first rows in small batches of one size, which share a compiled program."""
    few = min(SHEET_ROWS, FLAGS.batch_size // jax.process_count())
    rows = min(SHEET_ROWS, size_of(data)) // few * few
    parts = [synthesize(take(data, slice(i, i + few))) for i in range(0, rows, few)]
    return np.concatenate(parts)


def export(mapper: Mapper | DeltaMapper, path: epath.Path) -> None:
    """Writes the mapper, replacing an older one."""
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
    """Prints a line on the first host."""
    if jax.process_index() == 0:
        tqdm.write(message, file=sys.stderr)


def start() -> NoReturn:
    """Runs the script; the command ``styleclip-train-mapper``."""
    command_line.run(main)


if __name__ == "__main__":
    start()
