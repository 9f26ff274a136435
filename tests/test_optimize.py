import dataclasses
import errno
import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from styleclip_jax.io import images
from styleclip_jax.io.checkpoints import save_model
from styleclip_jax.io.latents import load_latents, save_latents
from styleclip_jax.latents import sample_latents
from styleclip_jax.models import ArcFace, ArcFaceConfig, Generator


@pytest.fixture(scope="module")
def generator(generator, random_model):
    """A generator of 8 pixels, because many settings compile a program of their own."""
    return random_model(Generator, dataclasses.replace(generator.config, resolution=8), seed=1)


@pytest.fixture(scope="module")
def generator_path(generator, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "generator"
    save_model(path, generator)
    return path


@pytest.fixture
def optimize(run_script, generator_path, clip_path, tmp_path):
    """Runs optimize.py on the small models for few steps; flags may be overridden."""

    def run(*arguments):
        return run_script(
            "optimize.py",
            f"--generator={generator_path}",
            f"--clip={clip_path}",
            "--description=a hat",
            "--steps=3",
            *(() if any("latents" in argument for argument in arguments) else ["--num_images=2"]),
            f"--results_dir={tmp_path / 'results'}",
            *arguments,
        )

    return run


def assert_refused(outcome, tmp_path, *words):
    assert outcome.code == 1
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    for word in words:
        assert word in outcome.err
    assert not (tmp_path / "results").exists()


def test_results_are_complete(optimize, tmp_path, generator):
    outcome = optimize("--description=glasses, red", "--save_intermediate_every=2")
    assert outcome.code == 0, outcome.err
    results = tmp_path / "results"
    written = {str(p.relative_to(results)) for p in results.rglob("*") if p.is_file()}
    edits = ["1-a-hat", "2-glasses-red"]
    assert written == {
        "command.txt",
        "before_after.png",
        "metrics.json",
        *(f"{d}/{f}" for d in ["before", *edits] for f in ("000.png", "001.png", "latents.npy")),
        *(f"{d}/{f}" for d in edits for f in ("frames/0002.png", "steps.gif")),
    }
    with Image.open(results / "before" / "001.png") as image:
        assert image.size == (8, 8)
    # Three columns and two rows of at least 256 pixels.
    with Image.open(results / "before_after.png") as sheet:
        assert sheet.width > 3 * 256 and sheet.height > 2 * 256
    latents = load_latents(results / "2-glasses-red" / "latents.npy", generator)
    assert np.shape(latents) == (2, 4, 16)


def test_metrics_record_settings_and_results(optimize, tmp_path):
    optimize("--seed=5", "--steps=30", "--l2_lambda=0")
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert metrics["seed"] == 5
    assert metrics["flags"]["steps"] == 30 and metrics["flags"]["truncation"] == 0.7
    assert "jax" in metrics["versions"]
    (edit,) = metrics["descriptions"]
    assert edit["description"] == "a hat" and edit["seconds"] > 0 and edit["steps"] == 30
    for image in edit["images"]:
        assert len(image["losses"]) == 30
        # Without other terms, the loss is 1 - similarity.
        assert image["losses"][0] == pytest.approx(1 - image["clip_similarity_before"], abs=1e-4)
        assert image["clip_similarity_after"] > image["clip_similarity_before"]
        assert image["latent_distance"] > 0


def test_latent_distance_is_that_of_the_saved_latents(optimize, tmp_path):
    optimize()
    results = tmp_path / "results"
    moved = np.load(results / "1-a-hat/latents.npy") - np.load(results / "before/latents.npy")
    (edit,) = json.loads((results / "metrics.json").read_text())["descriptions"]
    distances = [image["latent_distance"] for image in edit["images"]]
    np.testing.assert_allclose(distances, np.sqrt(np.sum(moved**2, (1, 2))), rtol=1e-5)


def test_an_existing_results_directory_is_never_overwritten(optimize, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine.txt").write_text("precious")
    assert optimize().code == optimize().code == 0
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["mine.txt"]
    assert (tmp_path / "results-2" / "metrics.json").exists()
    assert (tmp_path / "results-3" / "metrics.json").exists()


def test_the_same_seed_gives_the_same_images_and_another_one_does_not(optimize, tmp_path):
    for seed in (7, 7, 8):
        optimize(f"--seed={seed}")
    first, same, other = (
        (tmp_path / name / "1-a-hat" / "001.png").read_bytes()
        for name in ("results", "results-2", "results-3")
    )
    assert first == same != other


def test_given_latents_are_edited(optimize, tmp_path, generator):
    latents = sample_latents(generator, 2, seed=1)
    save_latents(tmp_path / "mine", latents)
    assert optimize(f"--latents={tmp_path / 'mine.npy'}").code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "results/before/latents.npy"), latents)


@pytest.mark.parametrize("start_samples", [0, 3])
def test_stylespace_is_edited_from_either_kind_of_latents(
    optimize, tmp_path, generator, start_samples
):
    latents = sample_latents(generator, 2, seed=1)
    save_latents(tmp_path / "mine", latents)
    save_latents(tmp_path / "mine", jax.jit(type(generator).styles)(generator, latents))
    for name in ("mine.npy", "mine.npz"):
        flags = [f"--latents={tmp_path / name}", f"--start_samples={start_samples}"]
        assert optimize("--space=stylespace", *flags).code == 0
    results = [tmp_path / name / "1-a-hat" / "latents.npz" for name in ("results", "results-2")]
    with np.load(results[0]) as one, np.load(results[1]) as other:
        assert list(one) == [f"layer_{i:02}" for i in range(5)]
        for name in one:
            np.testing.assert_allclose(one[name], other[name], atol=1e-4)


def test_generate_starts_from_the_mean_image(run_script, generator_path, clip_path, tmp_path):
    outcome = run_script(
        "optimize.py",
        f"--generator={generator_path}",
        f"--clip={clip_path}",
        "--description=a hat",
        "--mode=generate",
        "--steps=2",
        f"--results_dir={tmp_path / 'results'}",
    )
    assert outcome.code == 0, outcome.err
    start = np.load(tmp_path / "results/before/latents.npy")
    assert start.shape == (1, 4, 16)
    assert (start == start[:, :1]).all()


def test_generate_starts_from_the_sample_that_fits_best(
    run_script, generator_path, clip_path, tmp_path, generator
):
    outcome = run_script(
        "optimize.py",
        f"--generator={generator_path}",
        f"--clip={clip_path}",
        "--description=a hat",
        "--description=a bow",
        "--mode=generate",
        "--samples=5",
        "--seed=3",
        "--steps=2",
        f"--results_dir={tmp_path / 'results'}",
    )
    assert outcome.code == 0, outcome.err
    start = np.load(tmp_path / "results/before/latents.npy")
    samples = np.asarray(sample_latents(generator, 5, seed=3))
    assert all((np.abs(samples - latents).max(axis=(1, 2)) < 1e-6).any() for latents in start)
    for edit in ("1-a-hat", "2-a-bow"):
        assert np.load(tmp_path / "results" / edit / "latents.npy").shape == (1, 4, 16)
    # The start and the result for both texts.
    with Image.open(tmp_path / "results/before_after.png") as sheet:
        assert sheet.width > 4 * 256


def test_edits_by_direction_with_several_clips_views_and_texts_to_keep(
    optimize, tmp_path, clip, clip_path, random_model
):
    tokenizer = {path.name: path.read_bytes() for path in (clip_path / "tokenizer").iterdir()}
    save_model(tmp_path / "other", random_model(type(clip), clip.config, seed=8), tokenizer)
    flags = (
        "--guidance=direction",
        "--neutral=a man",
        "--keep=a scarf",
        "--views=2",
        "--view_kinds=shift,color",
        f"--clip={tmp_path / 'other'}",
    )
    for seed in (0, 0, 1):
        outcome = optimize(*flags, f"--seed={seed}", "--l2_lambda=0")
        assert outcome.code == 0, outcome.err
    first, same, _ = (
        json.loads((tmp_path / name / "metrics.json").read_text())
        for name in ("results", "results-2", "results-3")
    )
    assert first["flags"]["neutral"] == "a man" and len(first["flags"]["clip"]) == 2
    losses = [[x["losses"] for x in m["descriptions"][0]["images"]] for m in (first, same)]
    assert losses[0] == losses[1]
    # Only the views differ so far.
    np.testing.assert_allclose([image[0] for image in losses[0]], 1, atol=0.2)


def test_the_neutral_text_is_a_face_unless_one_is_given(optimize, tmp_path):
    assert optimize("--guidance=direction").code == 0
    metrics = json.loads((tmp_path / "results/metrics.json").read_text())
    assert metrics["flags"]["neutral"] == "a face"


def test_bfloat16_edits_are_nearly_the_same(optimize, tmp_path):
    for dtype in ("float32", "bfloat16"):
        assert optimize(f"--dtype={dtype}").code == 0
    exact, rounded = (
        np.array([image["losses"] for image in edit["images"]])
        for name in ("results", "results-2")
        for edit in json.loads((tmp_path / name / "metrics.json").read_text())["descriptions"]
    )
    assert 0 < np.abs(exact - rounded).max() < 0.02


def test_the_identity_can_be_preserved_with_an_arcface(optimize, tmp_path, random_model):
    config = ArcFaceConfig(image_size=16, stem_width=16, stages=((16, 1),))
    save_model(tmp_path / "arcface", random_model(ArcFace, config, seed=3))
    losses = []
    held = (f"--arcface={tmp_path / 'arcface'}", "--id_lambda=0.5")
    for name, given in (("results", ()), ("results-2", held)):
        assert optimize(*given).code == 0
        (edit,) = json.loads((tmp_path / name / "metrics.json").read_text())["descriptions"]
        losses.append([image["losses"] for image in edit["images"]])
    # The identity loss applies to the first image.
    np.testing.assert_allclose(losses[0][0][0], losses[1][0][0], atol=1e-5)
    assert not np.allclose(losses[0], losses[1], atol=1e-5)


def test_a_progress_bar_shows_steps_and_loss_on_a_terminal_only(optimize, monkeypatch):
    assert optimize().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    outcome = optimize()
    assert outcome.code == 0
    assert "a hat: 100%" in outcome.err and "3/3" in outcome.err
    assert re.search(r"loss=\d\.\d{3}", outcome.err)


def test_stops_when_the_loss_stalls(optimize, tmp_path):
    optimize("--steps=30", "--patience=3", "--min_improvement=10")
    (edit,) = json.loads((tmp_path / "results/metrics.json").read_text())["descriptions"]
    assert edit["steps"] == 4
    assert all(len(image["losses"]) == 4 for image in edit["images"])


@pytest.mark.parametrize("every", ["3", "7"])
def test_an_accelerator_waits_for_frames_and_not_for_every_step(optimize, monkeypatch, every):
    given = []

    def edit(*_, progress_every, **__):
        given.append(progress_every)
        raise KeyboardInterrupt

    monkeypatch.setattr("styleclip_jax.methods.optimization.edit_latents", edit)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    optimize(f"--save_intermediate_every={every}")
    assert given == [int(every)]


def test_help_explains_the_flags_with_examples(run_script):
    outcome = run_script("optimize.py", "--help")
    assert "python optimize.py --description=" in outcome.out
    assert "--guide_resolution" in outcome.out


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--space=z", ("space", "stylespace")),
        ("--mode=draw", ("mode", "generate")),
        ("--dtype=int8", ("dtype", "bfloat16")),
        ("--steps=many", ("steps", "many")),
        ("--steps=0", ("steps", "0")),
        ("--num_images=0", ("num_images", "0")),
        ("--seed=-1", ("seed", "-1")),
        (f"--seed={2**64}", ("seed", str(2**64))),
        ("--truncation=nan", ("truncation", "nan")),
        ("--learning_rate=-1", ("learning_rate", "-1")),
        ("--colour=red", ("colour",)),
        ("sunglasses", ("sunglasses", "quotes")),
        ("--guide_resolution=48", ("guide_resolution", "48", "(4, 8)")),
        ("--id_lambda=0.1", ("id_lambda", "--arcface")),
        ("--arcface=anything", ("--arcface", "--id_lambda")),
        ("--min_improvement=0.1", ("--min_improvement", "--patience")),
        ("--mode=generate", ("--num_images",)),
        ("--description=", ("empty",)),
        ("--description=" + "a hat " * 20, ("tokens", "18", "shorten")),
        ("--latents=nowhere.npy", ("nowhere.npy",)),
        ("--guidance=text", ("guidance", "direction")),
        ("--neutral=a man", ("--neutral", "--guidance=direction")),
        ("--orthogonal_lambda=1", ("--orthogonal_lambda", "--guidance=direction")),
        ("--keep_lambda=1", ("--keep_lambda", "--keep")),
        ("--keep=", ("--keep", "empty")),
        ("--view_kinds=shift", ("--view_kinds", "--views")),
        ("--views=-1", ("views", "-1")),
        ("--samples=4", ("--samples", "--mode=generate")),
        ("--templates", ("tokens", "18")),
        ("--generator=nowhere", ("nowhere", "ckpt_convert")),
        ("--clip=nowhere", ("nowhere",)),
        ("--generator=", ("--generator", "empty")),
        ("--results_dir=", ("--results_dir", "empty")),
        ("--results_dir=gs://bucket/x", ("--results_dir=gs://bucket/x", "mount")),
        ("--results_dir=~nobody-at-all/x", ("~nobody-at-all/x", "no such user")),
        ("--batch_size=0", ("batch_size", "0")),
        ("--num_processes=2", ("--coordinator_address", "--process_id")),
        ("--truncation=1e38", ("truncation is 1e+38",)),
    ],
)
def test_bad_flags_print_one_line(optimize, tmp_path, flag, words):
    assert_refused(optimize(flag), tmp_path, *words)


def test_flags_without_effect_print_one_line(optimize, tmp_path):
    assert_refused(optimize("--latents=mine.npy", "--seed=3"), tmp_path, "--seed", "--latents")
    assert_refused(optimize("--arcface=nowhere", "--id_lambda=1"), tmp_path, "nowhere")
    kinds = ("--views=2", "--view_kinds=blur")
    assert_refused(optimize(*kinds), tmp_path, "view_kinds", "blur", "shift")
    same = ("--guidance=direction", "--neutral=a hat")
    assert_refused(optimize(*same), tmp_path, "same")


def test_a_missing_description_prints_one_line(run_script, tmp_path):
    outcome = run_script("optimize.py", f"--results_dir={tmp_path / 'results'}")
    assert_refused(outcome, tmp_path, "--description")


def test_a_checkpoint_of_the_wrong_kind_prints_one_line(optimize, tmp_path, clip_path):
    outcome = optimize(f"--generator={clip_path}")
    assert_refused(outcome, tmp_path, str(clip_path), "CLIP", "Generator")


def test_a_generator_in_place_of_a_clip_prints_one_line(optimize, tmp_path, generator_path):
    assert_refused(optimize(f"--clip={generator_path}"), tmp_path, "Generator", "CLIP")


def test_an_official_file_in_place_of_a_checkpoint_prints_one_line(optimize, tmp_path):
    (tmp_path / "ffhq.pkl").write_bytes(b"\x80\x04N.")
    assert_refused(optimize(f"--generator={tmp_path / 'ffhq.pkl'}"), tmp_path, "ckpt_convert")


def test_a_truncated_checkpoint_prints_one_line(optimize, tmp_path, generator_path):
    shutil.copytree(generator_path, tmp_path / "damaged")
    for file in (tmp_path / "damaged" / "parameters").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    outcome = optimize(f"--generator={tmp_path / 'damaged'}")
    assert_refused(outcome, tmp_path, "damaged", "cannot be read")


def test_latents_with_nan_print_one_line(optimize, tmp_path):
    np.save(tmp_path / "bad.npy", np.full((1, 4, 16), np.nan, np.float32))
    assert_refused(optimize(f"--latents={tmp_path / 'bad.npy'}"), tmp_path, "bad.npy", "NaN")


def test_latents_of_another_generator_print_one_line(optimize, tmp_path):
    np.save(tmp_path / "bad.npy", np.zeros((1, 18, 512), np.float32))
    outcome = optimize(f"--latents={tmp_path / 'bad.npy'}")
    assert_refused(outcome, tmp_path, "(1, 18, 512)", "(N, 4, 16)")


def test_an_unwritable_results_directory_prints_one_line_before_any_work(optimize, tmp_path):
    (tmp_path / "file").write_text("")
    # The generator is missing too, but is checked later.
    outcome = optimize(f"--results_dir={tmp_path / 'file' / 'results'}", "--generator=nowhere")
    assert_refused(outcome, tmp_path, str(tmp_path / "file" / "results"), "cannot be written")


def test_images_whose_loss_is_not_finite_are_named_and_do_not_change(optimize, tmp_path):
    outcome = optimize("--steps=30", "--learning_rate=1e38", "--num_images=3", "--batch_size=2")
    assert outcome.code == 1
    failure = "the loss is not finite at step 3 of 30; try a lower learning_rate"
    names = [f"1-a-hat/{i:03}.png" for i in range(3)]
    assert outcome.err.splitlines() == [f"error: {name}: {failure}" for name in names]
    results = tmp_path / "results"
    before, after = (results / place / "latents.npy" for place in ("before", "1-a-hat"))
    np.testing.assert_array_equal(np.load(before), np.load(after))
    (edit,) = json.loads((results / "metrics.json").read_text())["descriptions"]
    assert [image["failed"] for image in edit["images"]] == [failure] * 3


def test_overflowing_latents_fail_an_image_even_if_its_similarity_is_finite(
    run_script, generator_path, clip_path, tmp_path
):
    outcome = run_script(
        "optimize.py",
        f"--generator={generator_path}",
        f"--clip={clip_path}",
        "--description=a hat",
        "--mode=generate",
        "--steps=20",
        "--learning_rate=1e30",
        f"--results_dir={tmp_path / 'results'}",
    )
    assert outcome.code == 1
    assert outcome.err.count("error:") == outcome.err.count("\n") == 1
    assert "not finite at step 3 of 20; try a lower learning_rate" in outcome.err


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left"),
    ],
)
def test_a_run_that_ends_before_an_edit_leaves_no_files(
    optimize, tmp_path, monkeypatch, failure, words
):
    def fail(*_):
        assert (tmp_path / "results" / "before" / "000.png").exists()
        raise failure

    monkeypatch.setattr(images, "sheet", fail)
    assert_refused(optimize("--save_intermediate_every=2"), tmp_path, words)


@pytest.fixture
def interrupted(optimize, tmp_path, monkeypatch):
    """Two texts and five images in batches of two, and Ctrl-C when the fourth batch is written."""
    flags = ("--description=a bow", "--num_images=5", "--batch_size=2", "--patience=2")
    assert optimize(*flags).code == 0
    written = []

    def write(path, image):
        written.append(path)
        if str(path).endswith("2-a-bow/000.png"):
            raise KeyboardInterrupt
        original(path, image)

    original = images.write_image
    with monkeypatch.context() as patched:
        patched.setattr(images, "write_image", write)
        patched.setattr("styleclip_jax.runs.results.write_image", write)
        outcome = optimize(*flags, f"--results_dir={tmp_path / 'other'}")
    assert outcome.code == 1
    assert "run the same command with --resume" in outcome.err
    assert outcome.err.endswith("error: interrupted\n")
    return flags


def files(directory):
    return {str(p.relative_to(directory)): p for p in directory.rglob("*") if p.is_file()}


def test_an_interrupted_run_keeps_finished_images_and_resumes_to_the_same_files(
    optimize, tmp_path, interrupted
):
    other = tmp_path / "other"
    kept = files(other)
    assert {"unfinished.json", "1-a-hat/004.png", "1-a-hat/latents-000004.npy"} <= kept.keys()
    stamp = kept["1-a-hat/000.png"].stat().st_mtime_ns
    again = (*interrupted, f"--results_dir={other}", "--resume")
    refused = optimize(*again, "--l2_lambda=0.5")
    assert refused.code == 1 and "--l2_lambda was 0.008 and is 0.5" in refused.err
    outcome = optimize(*again)
    assert outcome.code == 0 and outcome.err == ""
    assert kept["1-a-hat/000.png"].stat().st_mtime_ns == stamp
    ours, whole = files(other), files(tmp_path / "results")
    assert ours.keys() == whole.keys()
    for name in ours.keys() - {"command.txt", "metrics.json"}:
        assert ours[name].read_bytes() == whole[name].read_bytes(), name
    metrics = [json.loads(x["metrics.json"].read_text())["descriptions"] for x in (ours, whole)]
    assert [e["images"] for e in metrics[0]] == [e["images"] for e in metrics[1]]
    complete = optimize(*again)
    assert complete.code == 0 and "nothing left to do" in complete.out


def test_a_run_may_be_resumed_with_other_batches(optimize, tmp_path, interrupted):
    other = tmp_path / "other"
    again = (*interrupted[:2], "--batch_size=3", *interrupted[3:], "--resume")
    assert optimize(*again, f"--results_dir={other}").code == 0
    for name in ("1-a-hat/latents.npy", "2-a-bow/latents.npy"):
        whole = np.load(tmp_path / "results" / name)
        np.testing.assert_allclose(np.load(other / name), whole, atol=1e-4)


def test_resume_starts_a_new_run_if_there_is_none(optimize, tmp_path):
    assert optimize("--resume").code == 0
    assert (tmp_path / "results" / "metrics.json").exists()


def test_insufficient_memory_suggests_a_smaller_batch(optimize, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")

    monkeypatch.setattr("styleclip_jax.methods.optimization.edit_latents", fail)
    for size in ("9", "64"):
        outcome = optimize("--num_images=9", f"--batch_size={size}")
        assert_refused(outcome, tmp_path, "not enough memory for 9 images", "--batch_size=4")


def test_a_clip_without_a_tokenizer_prints_one_line(optimize, tmp_path, clip_path):
    shutil.copytree(clip_path, tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer"))
    assert_refused(optimize(f"--clip={tmp_path / 'mute'}"), tmp_path, "tokenizer")
