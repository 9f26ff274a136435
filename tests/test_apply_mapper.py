import json
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from styleclip_jax.errors import InputError
from styleclip_jax.io import checkpoints
from styleclip_jax.io.checkpoints import fingerprint, save_model
from styleclip_jax.io.latents import load_latents, save_latents
from styleclip_jax.io.text import load_tokenizer
from styleclip_jax.latents import sample_latents, synthesize
from styleclip_jax.methods.delta_editing import edit_with_delta_mapper
from styleclip_jax.methods.directions import text_direction
from styleclip_jax.methods.mapper_editing import apply_mapper
from styleclip_jax.models import (
    DeltaMapper,
    DeltaMapperConfig,
    Generator,
    LevelsMapper,
    MapperCard,
    MapperConfig,
)
from styleclip_jax.models.mapper import Mapper, WithoutToRGBStyleSpaceMapper
from styleclip_jax.runs import results


def make_mapper(
    generator, kind: type[Mapper] = LevelsMapper, seed=0, card: MapperCard | None = None
) -> Any:
    config = MapperConfig(
        card=card or MapperCard(),
        w_dim=generator.config.w_dim,
        num_layers=generator.config.num_layers,
        style_dims=generator.config.style_dims,
    )
    return kind(config, rngs=nnx.Rngs(seed))


@pytest.fixture
def mapper(generator, tmp_path) -> LevelsMapper:
    """A random mapper, saved as train_mapper.py does in the run ``beard``."""
    mapper = make_mapper(generator)
    save_model(tmp_path / "beard" / "mapper", mapper)
    return mapper


@pytest.fixture
def apply(run_script, generator_path, tmp_path, mapper):
    """Runs apply_mapper.py on the small models; flags may be added."""

    def run(*arguments, mapper=tmp_path / "beard"):
        return run_script(
            "apply_mapper.py",
            f"--generator={generator_path}",
            f"--mapper={mapper}",
            *([] if any("--latents" in argument for argument in arguments) else ["--num_images=3"]),
            f"--results_dir={tmp_path / 'results'}",
            *arguments,
        )

    return run


def read(path):
    with Image.open(path) as image:
        return np.asarray(image, np.float32) / 127.5 - 1


def assert_refused(outcome, tmp_path, *words):
    assert outcome.code == 1
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    for word in words:
        assert word in outcome.err
    assert not (tmp_path / "results").exists()


def test_results_are_those_of_the_library(apply, tmp_path, generator, mapper):
    outcome = apply("--seed=3")
    assert outcome.code == 0, outcome.err
    results = tmp_path / "results"
    written = {str(p.relative_to(results)) for p in results.rglob("*") if p.is_file()}
    assert written == {
        "command.txt",
        "before_after.png",
        "metrics.json",
        *(
            f"{directory}/{file}"
            for directory in ("before", "strength_0.1")
            for file in ("000.png", "001.png", "002.png", "latents.npy")
        ),
    }
    latents = sample_latents(generator, 3, seed=3)
    images, edited = apply_mapper(generator, mapper, latents, 0.1)
    np.testing.assert_allclose(
        load_latents(results / "strength_0.1" / "latents.npy", generator), edited, atol=1e-5
    )
    before = jax.jit(Generator.__call__)(generator, latents)
    for directory, expected in (("before", before), ("strength_0.1", images)):
        image = read(results / directory / "002.png")
        assert np.abs(image - np.clip(expected[2], -1, 1)).max() <= 0.01
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["strengths"]["strength 0.1"]["seconds_per_image"] > 0
    assert metrics["flags"]["seed"] == 3


def test_strengths_that_hardly_differ_have_their_own_directories(apply, tmp_path):
    assert apply("--strength=0.1", "--strength=0.10000001").code == 0
    assert len(list((tmp_path / "results").glob("strength_*"))) == 2


def test_strengths_make_a_strip_from_negative_to_positive(apply, tmp_path):
    assert apply("--strength=0.2", "--strength=-0.1").code == 0
    results = tmp_path / "results"
    names = ["strength_-0.1", "before", "strength_0.2"]
    assert list(json.loads((results / "metrics.json").read_text())["strengths"]) == [
        name.replace("_", " ") for name in names
    ]
    low, middle, high = (np.load(results / name / "latents.npy") for name in names)
    np.testing.assert_allclose((high - middle) / 0.2, (low - middle) / -0.1, atol=1e-4)
    with Image.open(results / "before_after.png") as sheet:
        assert sheet.width > 3 * 256


def test_several_mappers_add_up(apply, tmp_path, generator, mapper):
    other = make_mapper(generator, seed=1)
    save_model(tmp_path / "other", other)
    assert apply(f"--mapper={tmp_path / 'other'}").code == 0
    _, edited = apply_mapper(generator, [mapper, other], sample_latents(generator, 3, 0), 0.1)
    np.testing.assert_allclose(
        np.load(tmp_path / "results" / "strength_0.1" / "latents.npy"), edited, atol=1e-5
    )


def test_more_images_than_a_batch_are_all_edited(apply, tmp_path, generator, mapper):
    latents = sample_latents(generator, 10, seed=1)
    save_latents(tmp_path / "mine", latents)
    assert apply(f"--latents={tmp_path / 'mine.npy'}").code == 0
    _, edited = apply_mapper(generator, mapper, latents, 0.1)
    place = tmp_path / "results" / "strength_0.1"
    np.testing.assert_allclose(np.load(place / "latents.npy"), edited, atol=1e-5)
    assert (place / "009.png").exists() and not (place / "010.png").exists()
    alone = jax.jit(synthesize)(generator, edited[9:10])[0]
    assert np.abs(read(place / "009.png") - np.clip(alone, -1, 1)).max() <= 0.01


def test_a_sheet_of_many_images_shows_the_first_ones_with_a_note(apply, tmp_path):
    outcome = apply("--num_images=17")
    assert outcome.code == 0
    assert "the first 16 of 17 images" in outcome.out
    assert (tmp_path / "results" / "before" / "016.png").exists()


def test_flags_of_random_images_are_refused_with_latents(apply, tmp_path):
    outcome = apply("--latents=mine.npy", "--num_images=2", "--truncation=0.5")
    assert_refused(outcome, tmp_path, "--num_images, --truncation", "--latents")


def test_images_that_are_not_finite_are_named_and_do_not_change(apply, tmp_path):
    outcome = apply("--strength=1e38", "--strength=0.1")
    assert outcome.code == 1
    failure = "the image is not finite with --strength=1e+38"
    names = [f"strength_1e+38/{i:03}.png" for i in range(3)]
    assert outcome.err.splitlines() == [f"error: {name}: {failure}" for name in names]
    place = tmp_path / "results"
    before, failed, edited = (
        np.load(place / name / "latents.npy")
        for name in ("before", "strength_1e+38", "strength_0.1")
    )
    np.testing.assert_array_equal(before, failed)
    assert np.abs(edited - before).max() > 0.001
    strengths = json.loads((place / "metrics.json").read_text())["strengths"]
    assert all(image["failed"] == failure for image in strengths["strength 1e+38"]["images"])


def test_an_interrupted_run_resumes_to_the_same_files(apply, tmp_path, monkeypatch):
    flags = ("--num_images=5", "--batch_size=2", "--strength=0.1")
    assert apply(*flags).code == 0

    def write(path, image):
        if str(path).endswith("strength_0.1/002.png"):
            raise KeyboardInterrupt
        original(path, image)

    original = results.write_image
    other = tmp_path / "other"
    with monkeypatch.context() as patched:
        patched.setattr(results, "write_image", write)
        assert apply(*flags, f"--results_dir={other}").code == 1
    stamp = (other / "strength_0.1" / "001.png").stat().st_mtime_ns
    assert apply(*flags, f"--results_dir={other}", "--resume").code == 0
    assert (other / "strength_0.1" / "001.png").stat().st_mtime_ns == stamp
    whole = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert len(whole) == len([path for path in other.rglob("*") if path.is_file()])
    for path in whole:
        if path.name not in ("command.txt", "metrics.json"):
            name = path.relative_to(tmp_path / "results")
            assert path.read_bytes() == (other / name).read_bytes()


def test_a_mapper_is_applied_with_its_strength_and_notes_another_generator(
    apply, tmp_path, generator
):
    known = make_mapper(generator, card=MapperCard(strength=0.3, generator=fingerprint(generator)))
    save_model(tmp_path / "known", known)
    outcome = apply(mapper=tmp_path / "known")
    assert outcome.code == 0 and "another generator" not in outcome.err
    _, edited = apply_mapper(generator, known, sample_latents(generator, 3, 0))
    np.testing.assert_allclose(
        np.load(tmp_path / "results" / "strength_0.3" / "latents.npy"), edited, atol=1e-5
    )
    card = MapperCard("a hat", generator="another")
    save_model(tmp_path / "other", make_mapper(generator, card=card))
    outcome = apply("--strength=0.1", mapper=tmp_path / "other")
    assert outcome.code == 0
    assert f"note: --mapper={tmp_path / 'other'}: the mapper of 'a hat' was" in outcome.err
    outcome = apply(f"--mapper={tmp_path / 'known'}")
    assert outcome.code == 1
    assert "were trained with different strengths, 0.1, 0.3; give --strength" in outcome.err


def test_no_mapper_is_refused(generator):
    with pytest.raises(InputError, match="no mapper"):
        apply_mapper(generator, [], sample_latents(generator, 1, seed=0))


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_prints_one_line(apply, tmp_path, seed):
    assert_refused(apply(f"--seed={seed}"), tmp_path, "seed", str(seed))


def test_a_stylespace_mapper_is_applied(apply, tmp_path, generator):
    save_model(tmp_path / "styles", make_mapper(generator, WithoutToRGBStyleSpaceMapper))
    assert apply(mapper=tmp_path / "styles").code == 0
    edited = load_latents(tmp_path / "results" / "strength_0.1" / "latents.npz", generator)
    assert [style.shape[1] for style in edited] == list(generator.config.style_dims)


def test_mappers_that_come_with_the_package_are_found_by_name(
    apply, tmp_path, generator, monkeypatch
):
    monkeypatch.setattr(checkpoints, "AVATARS", checkpoints.epath.Path(tmp_path))
    save_model(tmp_path / "mappers" / "sunglasses", make_mapper(generator))
    # Even if there is a directory of the same name that is not a mapper.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sunglasses").mkdir()
    assert apply(mapper="sunglasses").code == 0
    outcome = apply(mapper="moonglasses")
    assert outcome.code == 1
    assert "there is no mapper moonglasses" in outcome.err and "sunglasses" in outcome.err


def test_a_mapper_that_comes_with_the_package_needs_no_other_flag(run_script, tmp_path):
    results = tmp_path / "results"
    outcome = run_script("apply_mapper.py", "--mapper=sunglasses", f"--results_dir={results}")
    assert outcome.code == 0, outcome.err
    before, after = (read(results / d / "003.png") for d in ("before", "strength_0.1"))
    assert np.abs(after - before).mean() > 0.01


def test_a_strength_that_is_not_finite_is_refused(apply, tmp_path):
    assert_refused(apply("--strength=nan"), tmp_path, "strength", "finite")


def test_existing_results_are_never_overwritten(apply, tmp_path):
    assert apply().code == apply().code == 0
    assert (tmp_path / "results" / "metrics.json").exists()
    assert (tmp_path / "results-2" / "metrics.json").exists()


def test_a_mapper_for_another_generator_is_refused(apply, tmp_path, random_model):
    other = random_model(LevelsMapper, MapperConfig(w_dim=16, num_layers=10), seed=0)
    save_model(tmp_path / "other", other)
    outcome = apply(mapper=tmp_path / "other")
    assert_refused(outcome, tmp_path, "(batch, 10, 16)", "(3, 6, 16)")


def test_another_model_in_place_of_the_mapper_is_refused(apply, tmp_path, generator_path):
    assert_refused(apply(mapper=generator_path), tmp_path, "holds a Generator", "LevelsMapper")


def test_mappers_of_different_spaces_are_refused(apply, tmp_path, generator):
    save_model(tmp_path / "styles", make_mapper(generator, WithoutToRGBStyleSpaceMapper))
    assert_refused(apply(f"--mapper={tmp_path / 'styles'}"), tmp_path, "cannot be added")


@pytest.mark.parametrize(
    ("latents", "reason"),
    [
        (np.zeros((0, 6, 16)), "empty"),
        (np.zeros((2, 6, 512)), "(2, 6, 512)"),
        (np.full((2, 6, 16), np.nan), "NaN"),
    ],
)
def test_useless_latents_are_refused(apply, tmp_path, latents, reason):
    np.save(tmp_path / "latents.npy", latents.astype(np.float32))
    assert_refused(apply(f"--latents={tmp_path / 'latents.npy'}"), tmp_path, reason)


@pytest.fixture
def any_text(generator, clip, tmp_path):
    """A random mapper for any text, saved as ``any_text``."""
    config = DeltaMapperConfig(generator.config.style_dims, clip.config.embed_dim, width=8)
    mapper = DeltaMapper(config, rngs=nnx.Rngs(0))
    save_model(tmp_path / "any_text", mapper)
    return mapper


def test_a_mapper_for_any_text_edits_as_the_library_does(
    apply, tmp_path, generator, clip, clip_path, any_text
):
    outcome = apply(
        f"--clip={clip_path}",
        "--description=a hat",
        "--neutral=a face",
        "--notemplates",
        mapper=tmp_path / "any_text",
    )
    assert outcome.code == 0, outcome.err
    dt = text_direction(clip, load_tokenizer(clip_path), "a hat", "a face")
    latents = sample_latents(generator, 3, seed=0)
    edit = edit_with_delta_mapper(generator, any_text, clip, latents, dt)
    written = load_latents(tmp_path / "results" / "strength_1.0" / "latents.npz", generator)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), written, edit.styles
    )


def test_a_text_and_a_mapper_that_do_not_match_are_refused(apply, tmp_path, any_text):
    assert_refused(apply(mapper=tmp_path / "any_text"), tmp_path, "give --description")
    assert_refused(apply("--description=a hat"), tmp_path, "remove --description")
    both = apply(
        f"--mapper={tmp_path / 'beard'}", "--description=a hat", mapper=tmp_path / "any_text"
    )
    assert_refused(both, tmp_path, "cannot be added to others")
    assert_refused(apply("--threshold=0.1"), tmp_path, "no effect without --directions")
    refused = apply("--min_change=0.1")
    assert_refused(refused, tmp_path, "--min_change is only for mappers for any text")
