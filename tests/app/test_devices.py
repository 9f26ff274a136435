import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[1]


def test_every_device_takes_an_edit_and_computes_the_same(
    generator_path, long_text_clip_path, directions_path, tmp_path
):
    models = map(str, (generator_path, long_text_clip_path, directions_path))
    subprocess.run(
        [sys.executable, TESTS / "app" / "edits_on_devices.py", *models, tmp_path / "results"],
        env={
            **os.environ,
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
            "PYTHONPATH": str(TESTS.parent),
        },
        check=True,
    )
    written = json.loads((tmp_path / "results").read_text())
    assert written["count"] == 0 and set(written["results"]) == {"0", "1"}
    one, other = (np.array(images) for images in written["results"].values())
    assert (np.diff(one, axis=0) != 0).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(one, other)
