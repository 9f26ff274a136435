import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import photographs
import pytest
from flax import nnx
from PIL import Image

from styleclip_jax.io.checkpoints import load_generator, save_model
from styleclip_jax.io.images import read_image
from styleclip_jax.io.photos import read_photo, upright_rgb
from styleclip_jax.methods.tuning import tune_step
from styleclip_jax.models import (
    E4E,
    LPIPS,
    E4EConfig,
    Generator,
    LevelsMapper,
    LPIPSConfig,
    MapperConfig,
)
from styleclip_jax.runs import photos

ENCODER = E4EConfig(
    image_height=32,
    image_width=32,
    num_layers=8,
    w_dim=16,
    stem_width=4,
    stages=((4, 1), (8, 1), (8, 1), (8, 1)),
    reduction=4,
)
SYNTHESIZE = jax.jit(Generator.__call__)


@pytest.fixture(scope="module")
def generator(generator, random_model):
    """A random generator of the encoder's size."""
    config = dataclasses.replace(generator.config, resolution=ENCODER.image_width)
    return random_model(Generator, config, seed=1)


@pytest.fixture(scope="module")
def generator_path(generator, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "generator"
    save_model(path, generator)
    return path


@pytest.fixture(scope="module")
def checkpoints(generator, tmp_path_factory):
    """An encoder, an LPIPS and a mapper for the small generator."""
    directory = tmp_path_factory.mktemp("checkpoints")
    encoder = E4E(ENCODER, rngs=nnx.Rngs(0))
    encoder.mean_latent[...] = generator.mean_latents(1)[0]
    save_model(directory / "encoder", encoder)
    save_model(directory / "lpips", LPIPS(LPIPSConfig(((4, 1), (8, 1))), rngs=nnx.Rngs(0)))
    mapper = LevelsMapper(MapperConfig(w_dim=16, num_layers=8), rngs=nnx.Rngs(0))
    save_model(directory / "mapper", mapper)
    return directory


@pytest.fixture
def run(run_script, generator_path, checkpoints, tmp_path):
    """Runs a script on the small models; flags may be added."""

    def run(script, *arguments, **given):
        paths = {"generator": generator_path, "results_dir": tmp_path / "results", **given}
        if "image" in paths:
            paths = {"encoder": checkpoints / "encoder", "lpips": checkpoints / "lpips", **paths}
        flags = [f"--{name}={value}" for name, value in paths.items()]
        return run_script(script, *flags, *arguments)

    return run


@pytest.fixture
def image_files(tmp_path):
    """A directory of two images that are aligned already."""
    directory = tmp_path / "images"
    directory.mkdir()
    rng = np.random.default_rng(0)
    for name, size in {"a.png": (32, 32), "b.jpg": (50, 40)}.items():
        pixels = rng.integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(directory / name)
    return directory


def measured(directory):
    return json.loads((directory / "metrics.json").read_text())["images"]


def test_photos_are_inverted_and_the_one_that_cannot_be_read_is_named(run, image_files, tmp_path):
    (image_files / "broken.png").write_bytes(b"\x89PNG nonsense")
    outcome = run("invert.py", "--align=false", "--refine_steps=2", image=image_files)
    assert outcome.code == 1
    assert outcome.err.count("error:") == 1
    assert "broken.png" in outcome.err
    results = tmp_path / "results"
    assert np.load(results / "latents.npy").shape == (2, 8, 16)
    for name in ("aligned/000.png", "reconstructed/001.png"):
        assert read_image(results / name).shape == (32, 32, 3)
    images = measured(results)
    assert [image["file"] for image in images] == ["000.png", "001.png"]
    assert images[0]["photo"].endswith("a.png")
    assert {"mse", "psnr", "lpips"} <= set(images[0])
    with Image.open(results / "inversion.png") as sheet:
        assert sheet.width > 3 * 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--image is missing"),
        (("--image=nowhere.png",), "nowhere.png"),
        (("--image={image_files}", "--align=false", "--faces=all"), "--faces has no effect"),
        (("--image={image_files}", "--tune_steps=3"), "--tune_steps has no effect without --tune"),
        (("--faces=all",), "--image is missing"),
    ],
)
def test_flags_without_meaning_are_refused(arguments, message, run_script, image_files, tmp_path):
    arguments = [argument.format(image_files=image_files) for argument in arguments]
    outcome = run_script("invert.py", f"--results_dir={tmp_path / 'results'}", *arguments)
    assert outcome.code == 1
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_photo_without_a_face_is_named(run, image_files, monkeypatch):
    monkeypatch.setattr("styleclip_jax.faces.dlib_landmarks", lambda image: [])
    outcome = run("invert.py", image=image_files / "a.png")
    assert outcome.code == 1
    assert "a.png: no face" in outcome.err and "--align=false" in outcome.err


@pytest.fixture(scope="module")
def tuned(run_main, generator_path, checkpoints, tmp_path_factory):
    """Results of invert.py --tune of two photos, which the generator cannot synthesize."""
    directory = tmp_path_factory.mktemp("tuned")
    for name, color in {"a.png": "red", "b.png": "blue"}.items():
        image = Image.new("RGB", (32, 32), "white")
        image.paste(color, (8, 8, 24, 24))
        image.save(directory / name)
    flags = {
        "generator": generator_path,
        "encoder": checkpoints / "encoder",
        "lpips": checkpoints / "lpips",
        "results_dir": directory / "results",
        "image": directory / "*.png",
    }
    command = [f"--{name}={value}" for name, value in flags.items()]
    command += ["--align=false", "--refine_steps=1", "--tune", "--tune_steps=60"]
    programs: Any = tune_step
    programs.clear_cache()
    assert run_main("invert.py", *command) == 0
    # One program for all steps of all photos.
    assert programs._cache_size() == 1
    return directory / "results"


def synthesized(inversion, photo, generator):
    """A photo's latents as the generator tuned for the same or another photo synthesizes them."""
    latents = jnp.asarray(np.load(inversion / "latents.npy")[photo : photo + 1])
    tuned = load_generator(inversion / f"generators/{generator:03}")
    return np.clip(np.asarray(SYNTHESIZE(tuned, latents))[0], -1, 1)


def test_each_photo_gets_its_own_tuned_generator(tuned):
    images = measured(tuned)
    assert [Path(image["photo"]).name for image in images] == ["a.png", "b.png"]
    for i, image in enumerate(images):
        assert image["generator"] == f"generators/{i:03}"
        assert image["tuned"]["mse"] < 0.9 * image["mse"]
        aligned = read_image(tuned / "aligned" / image["file"])
        own, other = (np.square(synthesized(tuned, i, j) - aligned).mean() for j in (i, 1 - i))
        assert own == pytest.approx(image["tuned"]["mse"], rel=1e-2)
        assert own < other


def test_edits_use_the_generator_tuned_for_each_photo(
    run_script, generator_path, tuned, checkpoints, clip_path, tmp_path
):
    text = ["--description=a hat", "--steps=1", "--learning_rate=1e-6", f"--clip={clip_path}"]
    scripts = {
        "apply_mapper.py": [f"--mapper={checkpoints / 'mapper'}", "--strength=1e-6"],
        "optimize.py": text,
        "directions.py": [*text, "--method=stylemc", "--templates=false", "--guide_resolution=32"],
    }
    for script, arguments in scripts.items():
        results = tmp_path / script
        given = [f"--generator={generator_path}", f"--inversion={tuned}"]
        outcome = run_script(script, *given, f"--results_dir={results}", *arguments)
        assert outcome.code == 0, outcome.err
        places = {path.parent for path in results.glob("*/001.png")}
        assert len(places) == 2  # Before, and after an edit too small to see.
        for place in places:
            for i in range(2):
                found = read_image(place / f"{i:03}.png")
                np.testing.assert_allclose(found, synthesized(tuned, i, i), atol=1.6 / 127.5)


def test_a_batch_size_with_tuned_generators_is_refused(run, tuned, checkpoints):
    mapper = f"--mapper={checkpoints / 'mapper'}"
    outcome = run("apply_mapper.py", mapper, "--batch_size=2", inversion=tuned)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "--batch_size has no effect with photos" in outcome.err


def test_a_missing_tuned_generator_is_named(run, tuned, checkpoints, tmp_path):
    damaged = shutil.copytree(tuned, tmp_path / "damaged")
    shutil.rmtree(damaged / "generators" / "001")
    outcome = run("apply_mapper.py", f"--mapper={checkpoints / 'mapper'}", inversion=damaged)
    assert outcome.code == 1
    assert "generators/001" in outcome.err and "Traceback" not in outcome.err


def test_an_edit_of_a_photo_shows_all_stages(run, image_files, clip_path, tmp_path):
    arguments = ("--align=false", "--refine_steps=1", "--steps=1", "--description=a hat")
    outcome = run("optimize.py", *arguments, f"--clip={clip_path}", image=image_files / "a.png")
    assert outcome.code == 0, outcome.err
    results = tmp_path / "results"
    assert len(measured(results)) == 1
    np.testing.assert_array_equal(
        np.load(results / "before/latents.npy"), np.load(results / "latents.npy")
    )
    with Image.open(results / "before_after.png") as sheet:
        assert sheet.width > 4 * 256


def test_an_edited_face_is_pasted_back(run, checkpoints, tmp_path, monkeypatch):
    landmarks = np.zeros((68, 2))
    landmarks[36:42], landmarks[42:48] = (55, 60), (75, 60)
    landmarks[48], landmarks[54] = (57, 80), (73, 80)
    monkeypatch.setattr(photos, "find_faces", lambda photo: [landmarks])
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(160, 140, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "me.png")
    outcome = run(
        "apply_mapper.py",
        f"--mapper={checkpoints / 'mapper'}",
        "--strength=5",
        "--paste_back",
        "--blend=crop",
        "--refine_steps=0",
        image=tmp_path / "me.png",
    )
    assert outcome.code == 0, outcome.err
    (pasted,) = (tmp_path / "results/strength_5.0/photos").iterdir()
    with Image.open(pasted) as photo:
        result = np.asarray(photo)
    assert result.shape == pixels.shape
    np.testing.assert_array_equal(result[:10], pixels[:10])
    assert (result[65, 65] != pixels[65, 65]).any()


@pytest.fixture(params=["hopper", "astronaut"])
def photograph(request, tmp_path):
    """A photograph: as shipped, with an ICC profile, or gray and turned by its EXIF."""
    path = photographs.path(request.param)
    if request.param == "astronaut":
        return path
    profile = read_photo(photographs.path("astronaut")).info["icc_profile"]
    tags = Image.Exif()
    tags[0x0112], tags[0x010F] = 6, "camera"
    turned = read_photo(path).convert("L").transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "hopper.jpg", exif=tags, icc_profile=profile)
    return tmp_path / "hopper.jpg"


def outside(quad, size):
    """Where the centers of pixels are outside a square."""
    upper_left, lower_left, _, upper_right = np.array(quad)
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    sides = np.stack([upper_right - upper_left, lower_left - upper_left], axis=1)
    inside = np.linalg.inv(sides) @ np.stack([x - upper_left[0], y - upper_left[1]]).reshape(2, -1)
    return ((inside < 0) | (inside > 1)).any(axis=0).reshape(size[1], size[0])


def test_photographs_are_found_inverted_edited_and_pasted_back(
    run, photograph, checkpoints, clip_path, tmp_path
):
    edits = {
        "apply_mapper.py": (f"--mapper={checkpoints / 'mapper'}", "--strength=5"),
        "optimize.py": ("--description=a hat", "--steps=2", f"--clip={clip_path}"),
    }
    outcome = run("invert.py", "--refine_steps=1", image=photograph)
    assert outcome.code == 0, outcome.err
    (inverted,) = measured(tmp_path / "results")
    photo = read_photo(photograph)
    upright = np.asarray(upright_rgb(photo))
    kept = outside(inverted["quad"], upright_rgb(photo).size)
    assert 0.2 < kept.mean() < 0.9
    for script, arguments in edits.items():
        for source in ("image", "inversion"):
            given = {"image": photograph, "inversion": tmp_path / "results"}[source]
            results = tmp_path / f"{script}-{source}"
            outcome = run(
                script,
                *arguments,
                "--paste_back",
                *(["--refine_steps=1"] if source == "image" else []),
                **{source: given, "results_dir": results},
            )
            assert outcome.code == 0, outcome.err
            (pasted,) = results.glob("*/photos/*")
            edited = read_photo(pasted)
            assert (edited.mode, edited.size) == (photo.mode, photo.size)
            for name in ("exif", "icc_profile"):
                assert edited.info.get(name) == photo.info.get(name)
            pixels = np.asarray(upright_rgb(edited))
            np.testing.assert_array_equal(pixels[kept], upright[kept])
            assert (pixels != upright).any(axis=2).mean() > 0.01


def test_one_or_all_faces_of_a_photo_are_edited(run, checkpoints, tmp_path):
    both = Image.new("RGB", (1024, 600), "white")
    both.paste(photographs.photo("astronaut"), (0, 0))
    both.paste(photographs.photo("hopper"), (512, 0))
    both.save(tmp_path / "both.png")
    edit = (f"--mapper={checkpoints / 'mapper'}", "--strength=5", "--paste_back")
    changed = {}
    for faces in ("largest", "all"):
        results = tmp_path / faces
        arguments = (*edit, f"--faces={faces}", "--refine_steps=0")
        outcome = run(
            "apply_mapper.py", *arguments, image=tmp_path / "both.png", results_dir=results
        )
        assert outcome.code == 0, outcome.err
        (photo,) = results.glob("*/photos/*")
        where = (np.asarray(read_photo(photo)) != np.asarray(both)).any(axis=2)
        changed[faces] = len(measured(results)), where[:, :512].any(), where[:, 512:].any()
    # Grace Hopper's face, on the right, is the larger one.
    assert changed == {"largest": (1, False, True), "all": (2, True, True)}


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (10, 10), (40, 40)])
def test_a_tiny_photo_without_a_face_ends_in_one_line(run, tmp_path, size):
    Image.effect_noise(size, 50).save(tmp_path / "tiny.png")
    outcome = run("invert.py", image=tmp_path / "tiny.png")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "tiny.png: no face" in outcome.err
    assert not (tmp_path / "results").exists()


def test_pasting_back_what_was_not_aligned_is_refused(run, image_files, checkpoints):
    outcome = run(
        "apply_mapper.py",
        f"--mapper={checkpoints / 'mapper'}",
        "--align=false",
        "--paste_back",
        image=image_files,
    )
    assert outcome.code == 1
    assert "--paste_back has no effect with --align=false" in outcome.err


def test_an_encoder_for_another_generator_is_refused(run, image_files, tmp_path, random_model):
    other = random_model(E4E, dataclasses.replace(ENCODER, num_layers=10), seed=0)
    save_model(tmp_path / "other", other)
    outcome = run("invert.py", "--align=false", image=image_files, encoder=tmp_path / "other")
    assert outcome.code == 1
    assert "the encoder is for another generator" in outcome.err
