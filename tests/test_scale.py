"""Edits on several devices and hosts, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from styleclip_jax.io.checkpoints import save_model
from styleclip_jax.models import LevelsMapper, MapperConfig
from tests.ports import free_port
from tests.programs import collectives, dump_programs, read_programs

ROOT = Path(__file__).parents[1]
# Seven images in batches of four: the last batch is not full, and some images stop early.
OPTIMIZE = (
    "optimize.py",
    "--description=a hat",
    "--description=a bow",
    "--num_images=7",
    "--batch_size=4",
    "--steps=8",
    "--guidance=direction",
    "--views=1",
    "--patience=3",
    "--min_improvement=0.02",
)
APPLY = ("apply_mapper.py", "--num_images=7", "--batch_size=4")
# Both scripts distribute edits with the same code, so one of them also runs on one host.
SHARED = [("optimize", "2"), ("optimize", "2x2"), ("apply", "2x2")]


@pytest.fixture(scope="module")
def edited(run_main, generator, generator_path, clip_path, tmp_path_factory) -> Path:
    """Results of both scripts in this process and of SHARED, where 2x2 are two hosts."""
    directory = tmp_path_factory.mktemp("scale")
    sizes = MapperConfig(generator.config.w_dim, generator.num_layers)
    mapper = LevelsMapper(sizes, rngs=nnx.Rngs(0))
    save_model(directory / "mapper", mapper)
    models = {
        "optimize": (*OPTIMIZE, f"--generator={generator_path}", f"--clip={clip_path}"),
        "apply": (*APPLY, f"--generator={generator_path}", f"--mapper={directory / 'mapper'}"),
    }
    for script, command in models.items():
        assert run_main(*command, f"--results_dir={directory / script}-1") == 0
        if (script, "2") in SHARED:
            finish([start(directory, f"{script}-2", *command)])
        joining = (f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2")
        hosts = [
            start(directory, f"{script}-2x2", *command, *joining, f"--process_id={i}")
            for i in range(2)
        ]
        outputs = finish(hosts)
        assert "wrote" in outputs[0] and "wrote" not in outputs[1]
    return directory


def start(directory: Path, name: str, *command: str) -> subprocess.Popen:
    """Starts a script on two devices."""
    flags = [
        os.environ["XLA_FLAGS"],
        "--xla_force_host_platform_device_count=2",
        dump_programs(directory / "programs" / name, "_step|edit_with_mappers"),
    ]
    return subprocess.Popen(
        [sys.executable, *command, f"--results_dir={directory / name}"],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": " ".join(flags)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes: list[subprocess.Popen]) -> list[str]:
    outputs = []
    for process in processes:
        outputs.append(process.communicate(timeout=500)[0])
        assert process.returncode == 0, outputs[-1]
    return outputs


@pytest.mark.parametrize(("script", "devices"), SHARED)
def test_edits_do_not_depend_on_the_number_of_devices_and_hosts(edited, script, devices):
    alone, shared = edited / f"{script}-1", edited / f"{script}-{devices}"
    names = {str(path.relative_to(alone)) for path in alone.rglob("*")}
    assert names == {str(path.relative_to(shared)) for path in shared.rglob("*")}
    places = {path.parent for path in alone.glob("*/latents.npy")}
    assert len(places) == (3 if script == "optimize" else 2)
    for place in places:
        ours, expected = (np.load(x / place.name / "latents.npy") for x in (shared, alone))
        assert len(expected) == 7
        assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()
    if script == "optimize":
        edits, expected = (
            json.loads((x / "metrics.json").read_text())["descriptions"] for x in (shared, alone)
        )
        steps = [[len(image["losses"]) for image in edit["images"]] for edit in expected]
        assert steps == [[len(image["losses"]) for image in edit["images"]] for edit in edits]
        # The images stop at different steps.
        assert len({count for text in steps for count in text}) > 1


@pytest.mark.parametrize(("script", "devices"), SHARED)
def test_devices_exchange_nothing(edited, script, devices):
    programs = read_programs(edited / "programs" / f"{script}-{devices}")
    # Compiled once; two hosts may overwrite each other's dump.
    assert len(programs) == 1 if devices == "2" else programs
    for program in programs:
        assert f"num_partitions={devices[0]}" in program
        assert not collectives(program)
