import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from avatars.attributes import NAMES, index
from styleclip_jax.io.checkpoints import save_model
from styleclip_jax.latents import sample_latents, synthesize
from styleclip_jax.measures import pixel_change
from styleclip_jax.methods.mapper_editing import apply_mapper
from styleclip_jax.models import LevelsMapper, MapperConfig

# The first step changes nothing. Tests that share these settings share a compiled program.
OPTIMIZATION = (
    "optimization,steps=2,guidance=direction,views=1,view_kinds=shift,guide_resolution=16"
)


@pytest.fixture
def evaluate(run_script, generator_path, long_text_clip_path, tmp_path):
    """Runs evaluate.py on the small models; flags may be added."""

    def run(*arguments, results="results"):
        return run_script(
            "evaluate.py",
            f"--generator={generator_path}",
            f"--clip={long_text_clip_path}",
            *([] if any("--latents" in argument for argument in arguments) else ["--faces=4"]),
            "--batch_size=2",
            f"--results_dir={tmp_path / results}",
            *arguments,
        )

    return run


@pytest.fixture
def classifier(monkeypatch):
    """A stand-in that predicts the first value of every slot.

    It predicts another background for every second image.
    """

    def read_labels(_, images):
        labels = np.zeros((len(images), len(NAMES)), np.int8)
        labels[::2, NAMES.index("background")] = index("background", "pink")
        return labels

    monkeypatch.setattr("avatars.classifier.load", lambda path: path)
    monkeypatch.setattr("avatars.scores.read_labels", read_labels)
    return "--classifier=classifier.npz"


@pytest.fixture
def mapper(generator, tmp_path):
    """A random mapper, saved as ``mapper``."""
    config = generator.config
    sizes = MapperConfig(config.w_dim, config.num_layers, style_dims=config.style_dims)
    mapper = LevelsMapper(sizes, rngs=nnx.Rngs(0))
    save_model(tmp_path / "mapper", mapper)
    return mapper


def read_metrics(tmp_path):
    return json.loads((tmp_path / "results" / "metrics.json").read_text())


def assert_refused(outcome, tmp_path, *words):
    assert outcome.code == 1
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    for word in words:
        assert word in outcome.err
    assert not (tmp_path / "results").exists()


def test_any_texts_are_edited_by_several_methods_with_their_own_settings(
    evaluate, long_text_clip_path, tmp_path
):
    outcome = evaluate(
        f"--method={OPTIMIZATION}",
        "--method=stylespace,steps=2",
        # The default CLIP twice: to guide and to measure.
        f"--clip={long_text_clip_path}",
        f"--judge_clip={long_text_clip_path}",
        "--keep=a hat",
        "--description=a beard",
        "--description=a smile",
    )
    assert outcome.code == 0, outcome.err
    methods = read_metrics(tmp_path)["methods"]
    first, second = methods.values()
    assert list(methods) == [OPTIMIZATION, "stylespace,steps=2"]
    assert first["settings"]["steps"] == 2 and first["settings"]["view_kinds"] == ["shift"]
    assert second["settings"]["space"] == "stylespace"
    for method in methods.values():
        assert list(method["texts"]) == ["a beard", "a smile"]
        figures = method["mean"]
        assert figures["pixels"] > 0 and figures["seconds"] > 0
        assert figures["judge_clip_gain"] == figures["clip_gain"] != 0
        assert "whole" not in figures
    names = {p.name for p in (tmp_path / "results").iterdir()}
    assert names == {"command.txt", "metrics.json", "1-optimization.jpg", "2-stylespace.jpg"}
    with Image.open(tmp_path / "results" / "1-optimization.jpg") as sheet:
        assert sheet.width > 3 * 256 and sheet.height > 4 * 256
    rows = [line.split() for line in outcome.out.splitlines()]
    assert sum(row[:2] == ["a", "beard"] for row in rows) == 2
    assert "judge" in outcome.out and "whole" not in outcome.out


def test_figures_of_a_mapper_are_those_of_the_library(evaluate, generator, mapper, tmp_path):
    arguments = f"--mapper={tmp_path / 'mapper'}", "--description=a beard"
    outcome = evaluate("--method=mapper,strength=0.2", *arguments, "--seed=5", "--truncation=1")
    assert outcome.code == 0, outcome.err
    latents = sample_latents(generator, 4, 5, 1.0)
    images, _ = apply_mapper(generator, mapper, latents, 0.2)
    before = jax.jit(synthesize)(generator, latents)
    figures = read_metrics(tmp_path)["methods"]["mapper,strength=0.2"]["mean"]
    assert figures["pixels"] == pytest.approx(pixel_change(before, images), rel=1e-3)


def test_edits_of_avatars_are_scored_by_the_classifiers_labels(
    evaluate, classifier, mapper, tmp_path
):
    texts = "--texts=mouth=smiling", "--texts=eyes=wink", "--texts=background=pink"
    mappers = [f"--mapper={tmp_path / 'mapper'}"] * 3
    methods = "--method=mapper", f"--method={OPTIMIZATION}", "--keep=a hat"
    outcome = evaluate(classifier, *methods, *texts, *mappers, "--wordings=2")
    assert outcome.code == 0, outcome.err
    for name, method in read_metrics(tmp_path)["methods"].items():
        # A mapper was trained for a text; another wording makes no difference.
        for text in method["texts"].values():
            assert len(text["wordings"]) == (1 if name == "mapper" else 2)
        shares = {
            text: [figures["mean"][part] for part in ("before", "target", "others", "whole")]
            for text, figures in method["texts"].items()
        }
        assert shares == {
            "mouth=smiling": [1, 1, 1, 1],
            "eyes=wink": [0, 0, 1, 0],
            "background=pink": [0.5, 0.5, 1, 0.5],
        }
        assert method["mean"]["whole"] == pytest.approx(0.5)
        assert method["mean"]["kept_skin"] == 1
    assert "50.0%" in outcome.out


def test_images_with_the_same_labels_in_an_earlier_run_are_counted(
    evaluate, classifier, mapper, tmp_path
):
    flags = classifier, "--method=mapper", f"--mapper={tmp_path / 'mapper'}", "--texts=eyes=wink"
    assert evaluate(*flags, results="earlier").code == 0
    earlier = tmp_path / "earlier" / "labels.npz"
    with np.load(earlier) as file:
        labels = dict(file)
    labels["mapper: he winks with one eye"][0, 3] = 1
    np.savez(earlier, **labels)
    outcome = evaluate(*flags, f"--compare={tmp_path / 'earlier'}")
    assert outcome.code == 0, outcome.err
    assert read_metrics(tmp_path)["same_labels"] == 0.75
    assert "75.00%" in outcome.out


def test_a_comparison_with_other_texts_is_refused_before_the_work(
    evaluate, classifier, mapper, tmp_path
):
    flags = classifier, "--method=mapper", f"--mapper={tmp_path / 'mapper'}"
    assert evaluate(*flags, "--texts=eyes=wink", results="earlier").code == 0
    outcome = evaluate(*flags, "--texts=skin=dark", f"--compare={tmp_path / 'earlier'}")
    assert_refused(outcome, tmp_path, "earlier", "other methods, texts or faces")
    outcome = evaluate(*flags, "--texts=skin=dark", f"--compare={tmp_path}")
    assert_refused(outcome, tmp_path, "labels.npz", "--classifier")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method=magic"], ["no method 'magic'", "optimization"]),
        (["--method=optimization,speed=9"], ["unknown setting 'speed=9'", "learning_rate"]),
        (["--method=optimization,steps=few"], ["steps is 'few'", "300"]),
        (["--method=optimization", "--method=optimization"], ["'optimization' is given twice"]),
        (["--method=optimization,id_lambda=1"], ["--arcface"]),
        (["--method=mapper"], ["--mapper"]),
        (["--method=mapper", "--mapper=a", "--mapper=b"], ["2 mappers, expected 1"]),
        (["--method=swap"], ["--classifier"]),
        (["--compare=earlier"], ["--classifier"]),
        (["--latents=mine.npy", "--seed=1"], ["--seed", "--latents"]),
    ],
)
def test_invalid_flags_print_one_line(evaluate, tmp_path, arguments, words):
    assert_refused(evaluate("--description=a beard", *arguments), tmp_path, *words)


def test_texts_are_required_unless_the_models_are_for_avatars(evaluate, tmp_path):
    assert_refused(evaluate(), tmp_path, "--description")
