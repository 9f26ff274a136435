import json

import jax.numpy as jnp
import numpy as np
import pytest

from styleclip_jax.io.checkpoints import fingerprint, load_clip, load_directions, save_model
from styleclip_jax.io.images import read_image
from styleclip_jax.io.latents import load_latents
from styleclip_jax.io.templates import IMAGENET_TEMPLATES
from styleclip_jax.io.text import load_tokenizer
from styleclip_jax.latents import sample_latents
from styleclip_jax.methods.directions import edit_with_direction, text_direction
from styleclip_jax.methods.relevance import build_directions, relevance_steps
from styleclip_jax.models import Directions, DirectionsConfig, LevelsMapper, MapperConfig
from styleclip_jax.models.directions import channel_widths
from styleclip_jax.runs import results


@pytest.fixture
def directions(generator, long_text_clip_path, tmp_path) -> Directions:
    """Random ones, saved as ``directions``."""
    config = DirectionsConfig(
        channel_widths(generator.config, "stylespace"),
        16,
        generator=fingerprint(generator),
        clip=fingerprint(load_clip(long_text_clip_path)),
    )
    relevance = np.random.default_rng(0).normal(size=(config.channels, 16)).astype(np.float32)
    relevance /= np.linalg.norm(relevance, axis=1, keepdims=True)
    made = build_directions(config, relevance, np.full(config.channels, 0.5, np.float32))
    save_model(tmp_path / "directions", made)
    return made


@pytest.fixture
def edit(run_script, generator_path, long_text_clip_path, tmp_path):
    """Runs directions.py on the small models; flags may be added."""

    def run(*arguments, models=True):
        given = [
            f"--generator={generator_path}",
            f"--clip={long_text_clip_path}",
        ]
        return run_script(
            "directions.py",
            *(given if models else []),
            "--num_images=2",
            f"--results_dir={tmp_path / 'results'}",
            *arguments,
        )

    return run


def test_results_are_those_of_the_library(
    edit, tmp_path, generator, directions, long_text_clip_path
):
    outcome = edit(
        f"--directions={tmp_path / 'directions'}",
        "--description=a red hat",
        "--description=a beard",
        "--strength=2",
        "--strength=-1.5",
        "--threshold=0.2",
    )
    assert outcome.code == 0, outcome.err
    clip, tokenizer = load_clip(long_text_clip_path), load_tokenizer(long_text_clip_path)
    dt = jnp.stack(
        [
            text_direction(clip, tokenizer, text, "a face", IMAGENET_TEMPLATES)
            for text in ("a red hat", "a beard")
        ]
    )
    latents = sample_latents(generator, 2, seed=0)
    expected = edit_with_direction(generator, directions, latents, dt, -1.5, 0.2)
    results = tmp_path / "results"
    saved = load_latents(results / "strength_-1.5" / "latents.npz", generator)
    for ours, theirs in zip(saved, expected.styles, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["changed_channels"] == int(expected.changed)
    assert f"{int(expected.changed)} of {directions.config.channels} channels" in outcome.out
    assert list(metrics["strengths"]) == ["strength -1.5", "before", "strength 2.0"]


def test_avatars_get_a_strength_each_and_others_the_papers(edit, tmp_path, directions):
    outcome = edit(f"--directions={tmp_path / 'directions'}", "--description=a hat")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "results" / "strength_4.1").exists()
    outcome = edit("--description=a person with sunglasses", models=False)
    assert outcome.code == 0, outcome.err
    measured = json.loads((tmp_path / "results-2" / "metrics.json").read_text())["strengths"]
    assert list(measured) == ["before", "automatic"]
    strengths = [image["strength"] for image in measured["automatic"]["images"]]
    assert len(set(strengths)) == 2 and max(strengths) > 1
    images = [read_image(tmp_path / "results-2" / x / "000.png") for x in ("before", "automatic")]
    assert np.abs(images[0] - images[1]).mean() > 0.01


def test_an_interrupted_run_resumes_to_the_same_files(edit, tmp_path, directions, monkeypatch):
    flags = (
        f"--directions={tmp_path / 'directions'}",
        "--description=a hat",
        "--batch_size=1",
        "--strength=1",
    )
    assert edit(*flags).code == 0

    def write(path, image):
        if str(path).endswith("strength_1.0/001.png"):
            raise KeyboardInterrupt
        original(path, image)

    original = results.write_image
    other = tmp_path / "other"
    with monkeypatch.context() as patched:
        patched.setattr(results, "write_image", write)
        assert edit(*flags, f"--results_dir={other}").code == 1
    stamp = (other / "strength_1.0" / "000.png").stat().st_mtime_ns
    assert edit(*flags, f"--results_dir={other}", "--resume").code == 0
    assert (other / "strength_1.0" / "000.png").stat().st_mtime_ns == stamp
    whole = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert len(whole) == len([path for path in other.rglob("*") if path.is_file()])
    for path in whole:
        if path.name not in ("command.txt", "metrics.json"):
            name = path.relative_to(tmp_path / "results")
            assert path.read_bytes() == (other / name).read_bytes()


def test_images_that_are_not_finite_are_named_and_do_not_change(edit, tmp_path, directions):
    flags = (f"--directions={tmp_path / 'directions'}", "--description=a hat")
    outcome = edit(*flags, "--strength=3e38")
    failure = "the image is not finite with --strength=3e+38"
    names = [f"strength_3e+38/{i:03}.png" for i in range(2)]
    assert outcome.code == 1
    assert outcome.err.splitlines() == [f"error: {name}: {failure}" for name in names]
    place = tmp_path / "results"
    assert (place / names[0]).read_bytes() == (place / "before" / "000.png").read_bytes()


def test_the_learned_change_needs_no_directions(edit, tmp_path, generator):
    outcome = edit(
        "--method=stylemc",
        "--description=a hat",
        "--steps=2",
        "--images_per_step=2",
        "--guide_resolution=16",
    )
    assert outcome.code == 0, outcome.err
    before, after = (
        load_latents(tmp_path / "results" / name / "latents.npz", generator)
        for name in ("before", "strength_1.0")
    )
    moved = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert moved[0] and not moved[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threshold=1"], ["no channel reaches the threshold 1"]),
        (["--threshold=0.2", "--min_channels=3"], ["--min_channels has no effect"]),
        (["--steps=3"], ["--steps has no effect with --method=relevance"]),
        (["--neutral=a hat"], ["the same to this CLIP"]),
        (["--strength=nan"], ["--strength is nan, expected a finite number"]),
    ],
)
def test_invalid_edits_print_one_line(arguments, words, edit, tmp_path, directions):
    flags = [f"--directions={tmp_path / 'directions'}", "--description=a hat"]
    assert_refused(edit(*flags, *arguments), tmp_path, *words)


def test_other_models_need_directions(edit, tmp_path):
    assert_refused(edit("--description=a hat"), tmp_path, "--directions", "make_directions.py")


def test_directions_of_another_clip_are_refused(edit, tmp_path, directions, clip_path):
    outcome = edit(
        f"--directions={tmp_path / 'directions'}", "--description=a hat", f"--clip={clip_path}"
    )
    assert_refused(outcome, tmp_path, "made for another CLIP")


@pytest.mark.parametrize("damage", ["config", "array", "kind"])
def test_damaged_directions_are_refused(damage, edit, tmp_path, directions, random_model):
    path = tmp_path / "directions"
    if damage == "config":
        (path / "config.json").write_text("{}")
    elif damage == "array":
        file = max(path.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        path = tmp_path / "mapper"
        mapper = random_model(LevelsMapper, MapperConfig(w_dim=16, num_layers=6), seed=0)
        save_model(path, mapper)
    outcome = edit(f"--directions={path}", "--description=a hat")
    assert_refused(outcome, tmp_path, str(path))


def assert_refused(outcome, tmp_path, *words):
    assert outcome.code == 1
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    for word in words:
        assert word in outcome.err
    assert not (tmp_path / "results").exists()


@pytest.fixture
def make(run_script, generator_path, clip_path, tmp_path):
    """Runs make_directions.py on the small models; flags may be added."""

    def run(*arguments, name="made"):
        return run_script(
            "make_directions.py",
            f"--generator={generator_path}",
            f"--clip={clip_path}",
            f"--directions={tmp_path / name}",
            "--space=w",
            "--num_images=2",
            "--guide_resolution=16",
            *arguments,
        )

    return run


def test_a_run_that_was_stopped_gives_the_same_directions(make, tmp_path, monkeypatch):
    assert make().code == 0

    def stopped(*arguments):
        yield next(relevance_steps(*arguments))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("styleclip_jax.methods.relevance.relevance_steps", stopped)
        outcome = make(name="again")
    assert (outcome.code, outcome.err) == (1, "error: interrupted\n")
    assert not (tmp_path / "again").exists()
    outcome = make("--num_images=3", name="again")
    assert outcome.code == 1 and "other models or flags" in outcome.err
    assert make(name="again").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "made"]
    once, twice = (load_directions(tmp_path / name) for name in ("made", "again"))
    np.testing.assert_allclose(once.relevance[...], twice.relevance[...], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(once.relevance[...], axis=1), 1, atol=1e-5)


def test_damaged_progress_and_taken_names_are_refused(make, tmp_path):
    (tmp_path / "made.progress.npz").write_bytes(b"PK damaged")
    outcome = make()
    assert outcome.code == 1 and "is damaged; remove it" in outcome.err
    (tmp_path / "taken").mkdir()
    outcome = make(name="taken")
    assert outcome.code == 1 and "already exists" in outcome.err
