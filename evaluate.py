r"""Edits the same faces with the same texts by several methods, and measures the edits.

The table on standard output has a row per text and a summary per method. Results go to a new
directory: metrics.json with every wording of every text, a sheet of images per method and, for
avatars, the labels that a classifier predicts.

Examples:
  python evaluate.py --wordings=1
  python evaluate.py --method=optimization --method=optimization,steps=60,learning_rate=1 \
      --method=stylespace --method=swap --texts=eyes=wink
  python evaluate.py --method=mapper --texts=glasses=sunglasses --mapper=sunglasses \
      --texts=mouth=smiling --mapper=runs/smile
  python evaluate.py --generator=checkpoints/ffhq --clip=checkpoints/vit-b-32 \
      --judge_clip=checkpoints/vit-l-14 --description="a face with sunglasses"
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jaxtyping import Array, Float, Int

from avatars import classifier as attribute_classifier
from avatars.attributes import implied
from avatars.scores import edit_score, kept_by_slot, read_labels
from avatars.texts import EDITS, Edit, select
from avatars.texts_uk import UKRAINIAN_EDITS
from styleclip_jax.avatars import AVATARS_CONFIG, AVATARS_DIRECTIONS, AVATARS_NEUTRAL
from styleclip_jax.errors import InputError
from styleclip_jax.faces import face_descriptor
from styleclip_jax.io.checkpoints import (
    load_arcface,
    load_clip,
    load_directions,
    load_generator,
    load_mapper,
)
from styleclip_jax.io.images import sheet, to_pil, write_image
from styleclip_jax.io.latents import load_latents
from styleclip_jax.io.templates import IMAGENET_TEMPLATES
from styleclip_jax.io.text import Tokenizer, encode_texts, load_tokenizer
from styleclip_jax.latents import Latents, sample_latents, synthesize
from styleclip_jax.losses import id_loss
from styleclip_jax.measures import CLIPMeasure, pixel_change, summary
from styleclip_jax.methods.delta_editing import edit_with_delta_mapper
from styleclip_jax.methods.directions import (
    DirectionDefaults,
    automatic_threshold,
    best_strengths,
    check_fingerprints,
    edit_with_direction,
    text_direction,
)
from styleclip_jax.methods.linear_start import (
    SampleFeatures,
    latent_directions,
    sample_features,
)
from styleclip_jax.methods.mapper_editing import apply_mapper
from styleclip_jax.methods.optimization import OptimizeConfig, edit_latents
from styleclip_jax.methods.relevance import with_scales
from styleclip_jax.models import CLIP, ArcFace, DeltaMapper, Generator
from styleclip_jax.runs import command_line, network_flags
from styleclip_jax.runs.objective_flags import NEUTRAL
from styleclip_jax.runs.results import run_directory, write_metrics
from styleclip_jax.runs.table import Column, print_headings, print_row

FLAGS = flags.FLAGS

LABELS_FILE = "labels.npz"
SHEET_ROWS = 8
METHODS = ("optimization", "stylespace", "mapper", "delta", "directions", "swap")
# Attributes that edits of faces tend to change unintentionally.
FACE_ANCHORS = (
    "a face with long hair",
    "a face with dark hair",
    "a face with glasses",
    "a face with a beard",
    "a face with a smile",
    "a face with makeup",
    "a face of an old person",
    "a face of a woman",
    "a face with pale skin",
    "a face with a hat",
)
# Columns of the table, and the flags that they need.
COLUMNS = (
    ("classifier", "before", Column("before", ".1%")),
    ("classifier", "target", Column("target", ".1%")),
    ("classifier", "others", Column("others", ".1%")),
    ("classifier", "whole", Column("whole", ".1%")),
    (None, "clip_gain", Column("gain", "+.3f")),
    (None, "clip_drift_over_gain", Column("drift", ".2f")),
    ("judge_clip", "judge_clip_gain", Column("judge gain", "+.3f")),
    ("judge_clip", "judge_clip_drift_over_gain", Column("judge drift", ".2f")),
    ("arcface", "identity", Column("identity", ".3f")),
    ("face_descriptors", "face_distance", Column("face dist.", ".3f")),
    (None, "pixels", Column("pixels", ".1%")),
    (None, "seconds", Column("s/image", ".3f")),
)

flags.DEFINE_multi_string(
    "method",
    ["optimization"],
    f"Method: {', '.join(METHODS)}; repeat the flag to compare several. stylespace is"
    " optimization in StyleSpace; delta is a mapper for any text; directions edits like"
    " directions.py; swap writes the requested attribute into the latents of the avatars, an upper"
    " bound for their generator. Settings follow after commas, as in"
    " optimization,guidance=direction,views=4.",
)
flags.DEFINE_string(
    "results_dir",
    "results",
    "New directory for the results. If it exists, results-2, results-3 and so on is used.",
)

flags.DEFINE_multi_string(
    "texts",
    [],
    "Edits of avatars to evaluate, by slot=value or by one of their wordings; repeat the flag for"
    " several. Default: all of avatars/texts.py.",
)
flags.DEFINE_multi_string(
    "description",
    [],
    "Any text to evaluate; repeat the flag for several. Without --texts, only these are used.",
)
flags.DEFINE_enum("language", "en", ["en", "uk"], "Language of the wordings of --texts.")
flags.DEFINE_integer("wordings", None, "Number of wordings per edit. Default: all.", lower_bound=1)
flags.DEFINE_string(
    "neutral",
    None,
    "A text that describes all faces, for guidance=direction. Default: that of optimize.py.",
)
flags.DEFINE_multi_string(
    "keep",
    [],
    "A text whose similarity optimizations preserve; repeat the flag for several.",
)
flags.DEFINE_multi_string(
    "anchor",
    [],
    "A text about something that should not change, to measure drift; repeat the flag for several."
    " Default: for --texts, texts about other attributes; for --description, texts about faces.",
)

network_flags.define_flags()
flags.DEFINE_multi_string(
    "clip",
    [],
    "Checkpoint directory of the CLIP that guides edits; repeat the flag for the mean loss of"
    " several, of which the first also measures. Default: the CLIP of the avatars.",
)
flags.DEFINE_bool("templates", False, "Average text features over templates, as in optimize.py.")
flags.DEFINE_string(
    "judge_clip", None, "Checkpoint directory of another CLIP, which measures but does not guide."
)
network_flags.define_arcface("that measures the identity")
flags.DEFINE_bool(
    "face_descriptors",
    False,
    "Measure the distance between dlib's descriptors of the faces before and after, which no loss"
    " uses. Below 0.6 they usually show the same person. For real faces; needs the extra photos.",
)
flags.DEFINE_string(
    "classifier",
    None,
    "Attribute classifier of the avatars, trained by avatars.classifier. Default: for the avatars'"
    " own generator, the one in avatars/.",
)
flags.DEFINE_multi_string(
    "mapper",
    [],
    "For --method=mapper: a mapper for every text, in the order of --texts and --description.",
)
flags.DEFINE_string(
    "delta_mapper",
    "any_text",
    "For --method=delta: a mapper for any text, trained by train_mapper.py"
    " --mapper_type=DeltaMapper, or the name of one that ships with the package.",
)
flags.DEFINE_string(
    "directions",
    None,
    "For --method=directions: a directory written by make_directions.py. Default: the avatars'"
    " directions.",
)

flags.DEFINE_string("latents", None, "Latents of the faces, .npy. Default: random faces.")
flags.DEFINE_integer("faces", 64, "Number of random faces.", lower_bound=2)
flags.DEFINE_integer(
    "seed", 1_000_000, "Seed of the random faces.", lower_bound=0, upper_bound=2**32 - 1
)
flags.DEFINE_float("truncation", 0.7, "Variety of the random faces.", lower_bound=0)
flags.DEFINE_integer("batch_size", 16, "Number of faces edited at a time.", lower_bound=1)
flags.DEFINE_string(
    "compare",
    None,
    "Results directory of an evaluation of the same texts, faces and methods, for example with"
    " another number of threads: count the images with the same predicted labels.",
)


class Task(NamedTuple):
    """An edit to evaluate: a change of avatars in several wordings, or any text."""

    name: str
    wordings: tuple[str, ...]
    edit: Edit | None
    mapper: str | None


class Models(NamedTuple):
    """The networks used by methods."""

    generator: Generator
    clips: tuple[tuple[CLIP, Tokenizer], ...]
    arcface: ArcFace | None


class Method(NamedTuple):
    """A method to edit images.

    Attributes:
        name: The value of the flag.
        settings: All its settings.
        edit: Maps latents, a task and one of its wordings to images.
        reads_text: Whether the result depends on the wording.
    """

    name: str
    settings: dict[str, Any]
    edit: Callable[[Latents, Task, str], Float[Array, "batch height height 3"]]
    reads_text: bool


def main(_: Sequence[str]) -> None:
    """Edits with every method, measures the edits and writes the results."""
    if not FLAGS.generator:
        FLAGS.set_default("classifier", str(attribute_classifier.TRAINED))
    tasks = make_tasks()
    check_flags(tasks)
    models = Models(
        load_generator(FLAGS.generator, FLAGS.dtype),
        tuple(read_clip(path) for path in FLAGS.clip or [None]),
        load_arcface(FLAGS.arcface, FLAGS.dtype) if FLAGS.arcface else None,
    )
    methods = [make_method(name, models) for name in FLAGS.method]
    if FLAGS.latents:
        latents = load_latents(FLAGS.latents, models.generator)
    else:
        latents = sample_latents(models.generator, FLAGS.faces, FLAGS.seed, FLAGS.truncation)
    batches = batches_of(latents)
    images = edit_all(lambda x: jax.jit(synthesize)(models.generator, x), batches)
    measure = Measure(models, images, tasks)
    columns = {name: column for flag, name, column in COLUMNS if not flag or FLAGS[flag].value}
    names = [label_name(m, text) for m in methods for t in tasks for text in wordings(m, t)]
    earlier = load_labels(FLAGS.compare, names, len(images)) if FLAGS.compare else {}

    with run_directory(FLAGS.results_dir) as directory:
        results, labels = {}, {}
        for method in methods:
            print_headings(method.name, columns)
            figures, rows = {}, [images[:SHEET_ROWS]]
            # Compiles the program, which is not timed.
            method.edit(batches[0], tasks[0], tasks[0].wordings[0])
            for task in tasks:
                figures[task.name] = {}
                for text in wordings(method, task):
                    begun = time.perf_counter()
                    edited = edit_all(method.edit, batches, task, text)
                    seconds = (time.perf_counter() - begun) / len(edited)
                    row, labels[label_name(method, text)] = measure(edited, task, text)
                    figures[task.name][text] = row | {"seconds": seconds}
                    if text == task.wordings[0]:
                        rows.append(edited[:SHEET_ROWS])
                print_row(task.name, summary({task.name: figures[task.name]})["mean"], columns)
            results[method.name] = {"settings": method.settings} | summary(figures)
            write_image(
                directory / f"{len(results)}-{method.name.partition(',')[0]}.jpg",
                sheet(rows, ["before", *(task.wordings[0] for task in tasks)]),
            )
        print_headings("mean of all texts", columns)
        for name, result in results.items():
            print_row(name, result["mean"], columns)
        metrics: dict[str, Any] = {"methods": results}
        if FLAGS.classifier:
            np.savez_compressed(directory / LABELS_FILE, before=measure.labels, **labels)
        if FLAGS.compare:
            same = np.concatenate([(labels[name] == earlier[name]).all(-1) for name in names])
            metrics["same_labels"] = float(same.mean())
            print(f"\nsame labels as in {FLAGS.compare}: {same.mean():.2%} of the images")
        write_metrics(directory / "metrics.json", metrics, command_line.script_flags(__name__))
    print(f"\nwrote {directory}")


def read_clip(path: str | None) -> tuple[CLIP, Tokenizer]:
    """Loads a CLIP and its tokenizer."""
    return load_clip(path, FLAGS.dtype), load_tokenizer(path)


def wordings(method: Method, task: Task) -> tuple[str, ...]:
    """The wordings to evaluate: only the first if the method does not depend on them."""
    return task.wordings if method.reads_text else task.wordings[:1]


def label_name(method: Method, text: str) -> str:
    """The name of an array in the file of labels."""
    return f"{method.name}: {text}"


def make_tasks() -> list[Task]:
    """The tasks given by the flags, each with its mapper if there are any."""
    written = {"en": EDITS, "uk": UKRAINIAN_EDITS}[FLAGS.language]
    edits = select(FLAGS.texts, written) if FLAGS.texts or not FLAGS.description else ()
    tasks = [(edit.name, edit.wordings[: FLAGS.wordings], edit) for edit in edits]
    tasks += [(text, (text,), None) for text in FLAGS.description]
    mappers = FLAGS.mapper or [None] * len(tasks)
    if len(mappers) != len(tasks):
        raise InputError(
            f"there are {len(mappers)} mappers, expected {len(tasks)}; give one --mapper for every"
            " --texts and --description"
        )
    return [Task(*task, mapper) for task, mapper in zip(tasks, mappers, strict=True)]


def check_flags(tasks: Sequence[Task]) -> None:
    """Raises InputError if flags contradict each other."""
    command_line.refuse_random_images("latents", "faces", "seed", "truncation")
    for what, names in {
        "--method": FLAGS.method,
        "text": [text for task in tasks for text in task.wordings],
    }.items():
        if twice := [name for name in set(names) if names.count(name) > 1]:
            raise InputError(f"the {what} {twice[0]!r} is given twice; remove one")
    if FLAGS.compare and not FLAGS.classifier:
        raise InputError("--compare has no effect without --classifier; add --classifier")
    if FLAGS.generator and not FLAGS.classifier and not FLAGS.description:
        raise InputError(
            "--description is missing; add it, or --classifier to evaluate --texts on avatars"
        )


def for_avatars() -> bool:
    """Whether the models are for avatars."""
    return bool(FLAGS.classifier or not FLAGS.generator)


def make_method(name: str, models: Models) -> Method:
    """Makes the method ``--method=NAME``.

    Raises:
        InputError: The method or a setting does not exist, or a required flag is missing.
    """
    kind, *assignments = name.split(",")
    make = {
        "optimization": make_optimization,
        "stylespace": make_optimization,
        "mapper": make_mapper,
        "delta": make_delta,
        "directions": make_directions,
        "swap": make_swap,
    }
    if kind not in make:
        raise InputError(f"there is no method {kind!r}, expected one of {', '.join(make)}")
    settings = command_line.parse_settings(assignments, default_settings(kind))
    return Method(name, settings, make[kind](models, settings), kind not in ("mapper", "swap"))


def default_settings(kind: str) -> dict[str, Any]:
    """Default settings of a method."""
    if kind == "mapper":
        return {"strength": 0.1}
    if kind == "directions":
        defaults = AVATARS_DIRECTIONS if for_avatars() else DirectionDefaults()
        return defaults._asdict()
    if kind == "delta":
        return {"strength": None if for_avatars() else 1.0}
    if kind == "swap":
        return {}
    settings = dataclasses.asdict(AVATARS_CONFIG if for_avatars() else OptimizeConfig())
    del settings["mode"]
    return settings | ({"space": "stylespace"} if kind == "stylespace" else {})


def make_optimization(models: Models, settings: Mapping[str, Any]) -> Callable:
    """Latent optimization."""
    config = OptimizeConfig(**settings)
    if config.id_lambda and models.arcface is None:
        raise InputError(f"id_lambda={config.id_lambda} needs --arcface")
    clips = [clip for clip, _ in models.clips]
    templates = IMAGENET_TEMPLATES if FLAGS.templates else ()
    neutral = FLAGS.neutral or (AVATARS_NEUTRAL if for_avatars() else NEUTRAL)

    @functools.cache
    def encode(*texts: str) -> tuple[Array, ...]:
        return tuple(encode_texts(*clip, texts, templates) for clip in models.clips)

    @functools.cache
    def samples() -> SampleFeatures:
        guide = {"resolution": config.guide_resolution, "preprocess": config.preprocess}
        return sample_features(models.generator, clips, config.start_samples, **guide)

    @functools.cache
    def direction(text: str) -> Array | None:
        if not config.start_samples:
            return None
        unnamed = encode(neutral) if config.guidance == "direction" else None
        return latent_directions(samples(), encode(text), unnamed)

    def edit(latents: Latents, task: Task, text: str) -> Array:
        return edit_latents(
            models.generator,
            clips,
            latents,
            encode(text),
            config,
            models.arcface,
            neutral_features=encode(neutral),
            keep_features=encode(*FLAGS.keep) if FLAGS.keep else None,
            directions=direction(text),
            key=jax.random.key(FLAGS.seed),
        ).images

    return edit


def make_mapper(models: Models, settings: Mapping[str, Any]) -> Callable:
    """Mappers, one per task."""
    if not FLAGS.mapper:
        raise InputError("--method=mapper needs mappers; give one --mapper for every text")
    mappers = {path: load_mapper(path) for path in FLAGS.mapper}

    def edit(latents: Latents, task: Task, text: str) -> Array:
        mapper = mappers[task.mapper]
        return apply_mapper(models.generator, mapper, latents, settings["strength"])[0]

    return edit


def make_delta(models: Models, settings: Mapping[str, Any]) -> Callable:
    """A mapper for any text."""
    mapper = load_mapper(FLAGS.delta_mapper)
    if not isinstance(mapper, DeltaMapper):
        raise InputError(
            f"--delta_mapper={FLAGS.delta_mapper} is a mapper for one text, expected one for any"
            " text, trained with --mapper_type=DeltaMapper"
        )
    clip, tokenizer = models.clips[0]
    templates = IMAGENET_TEMPLATES if FLAGS.templates else ()
    neutral = FLAGS.neutral or (AVATARS_NEUTRAL if for_avatars() else NEUTRAL)

    def edit(latents: Latents, task: Task, text: str) -> Array:
        dt = text_direction(clip, tokenizer, text, neutral, templates)
        return edit_with_delta_mapper(
            models.generator, mapper, clip, latents, dt, settings["strength"]
        ).images

    return edit


def make_directions(models: Models, settings: Mapping[str, Any]) -> Callable:
    """Edits along directions."""
    directions = load_directions(FLAGS.directions)
    clip, tokenizer = models.clips[0]
    check_fingerprints(directions, models.generator, clip)
    if directions.scales is None:
        directions = with_scales(directions, models.generator)
    templates = IMAGENET_TEMPLATES if FLAGS.templates else ()
    neutral = FLAGS.neutral or (AVATARS_NEUTRAL if for_avatars() else NEUTRAL)

    def edit(latents: Latents, task: Task, text: str) -> Array:
        dt = text_direction(clip, tokenizer, text, neutral, templates)
        threshold = settings["threshold"]
        if threshold is None:
            threshold = automatic_threshold(directions, dt, settings["min_channels"])
        strength = settings["strength"]
        if strength is None:
            strength = best_strengths(models.generator, directions, clip, latents, dt, threshold)
        return edit_with_direction(
            models.generator, directions, latents, dt, strength, threshold
        ).images

    return edit


def make_swap(models: Models, settings: Mapping[str, Any]) -> Callable:
    """The requested attribute, written into the latents of the avatars."""
    # Needs the packages of the avatars' training.
    from avatars.swap import swap

    if not FLAGS.classifier or FLAGS.description or FLAGS.latents:
        raise InputError(
            "--method=swap only supports random avatars; add --classifier, and remove --description"
            " and --latents"
        )

    def edit(latents: Any, task: Task, text: str) -> Array:
        assert task.edit is not None
        swapped = swap(latents, task.edit.slot, task.edit.value, FLAGS.truncation)
        return jax.jit(synthesize)(models.generator, swapped)

    return edit


def batches_of(latents: Latents) -> list[Latents]:
    """Splits latents into batches of one size, so that one compiled program serves all."""
    count = len(jax.tree.leaves(latents)[0])
    size = max(n for n in range(1, min(FLAGS.batch_size, count) + 1) if count % n == 0)
    return [jax.tree.map(lambda x, i=i: x[i : i + size], latents) for i in range(0, count, size)]


def edit_all(
    edit: Callable[..., Array], batches: Sequence[Latents], *arguments: Any
) -> Float[np.ndarray, "faces height height 3"]:
    """Edits all batches."""
    return np.concatenate([np.asarray(edit(batch, *arguments)) for batch in batches])


class Measure:
    """Compares edited images with the images before.

    Args:
        models: Their CLIP and ArcFace are also used to measure.
        images: The images before the edits.
        tasks: The edits.
    """

    def __init__(self, models: Models, images: Float[np.ndarray, "faces height height 3"], tasks):
        self._before, self._arcface = images, models.arcface
        self._anchors = {task.name: anchors_of(task) for task in tasks}
        texts = sorted(
            {text for task in tasks for text in task.wordings + self._anchors[task.name]}
        )
        clips = {"clip": models.clips[0]}
        if FLAGS.judge_clip:
            clips["judge_clip"] = read_clip(FLAGS.judge_clip)
        preprocess = "styleclip" if for_avatars() else "clip"
        self._clips = {
            name: CLIPMeasure(*clip, texts, images, preprocess) for name, clip in clips.items()
        }
        self._classifier = attribute_classifier.load(FLAGS.classifier) if FLAGS.classifier else None
        self.labels = self._read(images)
        self._descriptors = _descriptors(images) if FLAGS.face_descriptors else None

    def _read(self, images: np.ndarray) -> Int[np.ndarray, "faces slots"]:
        """Predicted labels of images; empty without a classifier."""
        if self._classifier is None:
            return np.zeros((len(images), 0), np.int8)
        return read_labels(self._classifier, images)

    def __call__(
        self, images: Float[np.ndarray, "faces height height 3"], task: Task, text: str
    ) -> tuple[dict[str, float], Int[np.ndarray, "faces slots"]]:
        """Measures images edited with a wording of a task; also returns their labels."""
        figures, labels = {}, self._read(images)
        if task.edit and self._classifier is not None:
            edit = self.labels, labels, task.edit.slot, task.edit.value
            figures |= edit_score(*edit)
            figures |= {f"kept_{slot}": share for slot, share in kept_by_slot(*edit).items()}
        for name, measure in self._clips.items():
            changes = measure(images, text, self._anchors[task.name])
            figures |= {f"{name}_{change}": value for change, value in changes.items()}
        if self._arcface is not None:
            losses = jax.jit(id_loss)(self._arcface, images, self._before)
            figures["identity"] = 1 - float(np.mean(losses))
        if self._descriptors is not None:
            pairs = zip(self._descriptors, _descriptors(images), strict=True)
            # Only images with a face before and after have a distance.
            found = [(a, b) for a, b in pairs if a is not None and b is not None]
            figures["faces_found"] = len(found) / len(images)
            if found:
                figures["face_distance"] = float(
                    np.mean([np.linalg.norm(after - before) for before, after in found])
                )
        return figures | {"pixels": pixel_change(self._before, images)}, labels


def _descriptors(images: Float[np.ndarray, "faces height height 3"]) -> list[Any]:
    return [face_descriptor(to_pil(image)) for image in images]


def anchors_of(task: Task) -> tuple[str, ...]:
    """Texts about attributes that the edit should preserve."""
    if FLAGS.anchor:
        return tuple(FLAGS.anchor)
    if task.edit is None:
        return tuple(anchor for anchor in FACE_ANCHORS if anchor != task.name)
    changes = (task.edit.slot, *implied(task.edit.slot, task.edit.value))
    return tuple(edit.wordings[0] for edit in EDITS if edit.slot not in changes)


def load_labels(path: str, names: Sequence[str], faces: int) -> dict[str, np.ndarray]:
    """Reads the labels in the results of an evaluation of the same methods, texts and faces.

    Raises:
        InputError: The labels are missing or from another evaluation.
    """
    try:
        with np.load(Path(path).expanduser() / LABELS_FILE) as file:
            labels = dict(file)
    except (OSError, ValueError):
        raise InputError(
            f"{path} has no {LABELS_FILE}, expected results of an evaluation with --classifier"
        ) from None
    if set(labels) != {"before", *names} or len(labels["before"]) != faces:
        raise InputError(f"{path} has other methods, texts or faces; use the flags of that run")
    return labels


if __name__ == "__main__":
    command_line.run(main)
