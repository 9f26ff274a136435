"""Edits one image on two devices at once; a program of test_devices.py.

Arguments: a generator, a CLIP, directions, and the file for the results.
"""

import dataclasses
import json
import sys
import threading
from pathlib import Path

import jax
import numpy as np

from styleclip_jax.app.engine import Engine
from styleclip_jax.app.recipes import Instant, Optimized
from styleclip_jax.app.running import RunningEdits

TEXTS = ("a hat", "a face")


def main() -> None:
    generator, clip, directions, out = sys.argv[1:]
    first = Engine(generator, clip, {}, directions=directions)
    first.config = dataclasses.replace(first.config, start_samples=8)
    engines = [first, *map(first.on, jax.local_devices()[1:])]
    running = RunningEdits(engines)
    # Nobody finishes before everybody has started.
    everybody, results = threading.Barrier(len(engines)), {}

    def edit() -> None:
        with running.track() as engine:
            everybody.wait()
            start = engine.random_face(0)
            *_, last = engine.optimize(start, Optimized(*TEXTS, steps=3))
            instant = engine.instant(start, Instant(*TEXTS, 2.0, 0.2, "directions"))
            (device,) = jax.tree.leaves(engine.generator)[0].devices()
            assert last.edit
            edited = [last.edit.face.pixels, instant.face.pixels]
            results[device.id] = np.stack([start.pixels, *edited]).tolist()
            everybody.wait()

    threads = [threading.Thread(target=edit) for _ in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Path(out).write_text(json.dumps({"results": results, "count": running.count}))


main()
