import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from styleclip_jax.errors import InputError
from styleclip_jax.runs.experiment import Checkpoints, Measurements, Progress, claim


def test_a_run_that_was_killed_while_it_claimed_its_directory_starts_again(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "flags.unfinished").write_text('{"flags": {"se')
    with claim(epath.Path(tmp_path), {"seed": 0}):
        pass
    assert json.loads((tmp_path / "config" / "flags.json").read_text())["flags"] == {"seed": 0}


def test_a_run_that_has_not_begun_may_begin_with_other_flags(tmp_path):
    for seed in (0, 1):
        with claim(epath.Path(tmp_path), {"seed": seed}):
            pass
    assert json.loads((tmp_path / "config" / "flags.json").read_text())["flags"] == {"seed": 1}


def test_other_processes_need_the_flags_and_the_directory_of_the_first(tmp_path, monkeypatch):
    with claim(epath.Path(tmp_path), {"seed": 0}):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with claim(epath.Path(tmp_path), {"seed": 0}):
            pass
        with pytest.raises(InputError, match="--seed was 0 and is 1"):
            with claim(epath.Path(tmp_path), {"seed": 1}):
                pass
        with pytest.raises(InputError, match=r"missing on process 1; .* all machines share"):
            with claim(epath.Path(tmp_path / "elsewhere"), {"seed": 0}):
                pass


@pytest.mark.parametrize("part", ["state", "progress", "metrics"])
def test_every_part_of_a_checkpoint_may_be_damaged(tmp_path, part):
    state = {"weights": jnp.ones(3)}
    with contextlib.closing(Checkpoints(epath.Path(tmp_path))) as saved:
        saved.save(1, state, Progress(), validation_loss=0.5)
    for path in (tmp_path / "checkpoints" / "1" / part).iterdir():
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot be read: .*; remove"):
        Checkpoints(epath.Path(tmp_path)).restore(1, state)


def test_a_flipped_bit_in_a_checkpoint_is_refused(tmp_path):
    state, random = {"weights": jnp.arange(1000.0)}, np.random.default_rng(0)
    with contextlib.closing(Checkpoints(epath.Path(tmp_path))) as saved:
        saved.save(1, state, Progress(best_loss=0.5), validation_loss=0.5)
    with contextlib.closing(Checkpoints(epath.Path(tmp_path))) as saved:
        for part in ("state", "progress"):
            files = [f for f in (tmp_path / "checkpoints" / "1" / part).rglob("*") if f.is_file()]
            for file in [f for f in files if f.name != "commit_success.txt"]:
                content = file.read_bytes()
                damaged = bytearray(content)
                damaged[random.integers(len(content))] ^= 1 << random.integers(8)
                file.write_bytes(damaged)
                with pytest.raises(InputError, match=r"step 1 .* is damaged"):
                    saved.restore(1, state)
                file.write_bytes(content)
        assert saved.restore(1, state)[1].best_loss == 0.5


# Tensorstore's threads may report the event loop that Orbax has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_checkpoint_that_does_not_fit_on_the_disk_is_named_and_removed(tmp_path, full_disk):
    small, random = {"weights": jnp.ones(3)}, np.random.default_rng(0)
    large = {"weights": jnp.asarray(random.normal(size=2**16))}
    saved = Checkpoints(epath.Path(tmp_path))
    saved.save(1, small, Progress())
    saved.save(2, large, Progress())
    with pytest.raises(OSError, match=r"^no checkpoint can be written to .*\(File too large"):
        saved.save(3, small, Progress())
    saved.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_measurements_that_do_not_fit_on_the_disk_are_named(tmp_path, full_disk):
    noise = np.random.default_rng(0).integers(256, size=(300, 300, 3), dtype=np.uint8)
    measurements = Measurements(epath.Path(tmp_path), None)
    with pytest.raises(OSError, match=r"tfevents.* cannot be written \(File too large\)"):
        with contextlib.closing(measurements):
            measurements.image(1, "train", lambda: Image.fromarray(noise))
