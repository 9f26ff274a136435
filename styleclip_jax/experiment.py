"""An experiment directory: what was asked for, what was measured, and where training goes on.

::

    config/flags.json    the flags and the versions of the libraries
    checkpoints/STEP/    Orbax checkpoints: the latest few, and the best by validation loss
    metrics.jsonl        one line per measurement: {"step": ..., "split": "train", "loss": ...}
    images/              pictures of the validations
    tensorboard/         the same numbers and pictures, and more
"""

import dataclasses
import importlib.metadata
import json
import math
import signal
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from PIL import Image
from tensorboardX import SummaryWriter

from styleclip_jax.checkpoints import absolute
from styleclip_jax.errors import InputError
from styleclip_jax.images import write_image

Tree = TypeVar("Tree")

FLAGS_FILE = "config/flags.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
IMAGES = "images"
TENSORBOARD = "tensorboard"


def claim(directory: epath.Path, flags: Mapping[str, Any]) -> None:
    """Makes a directory this experiment's own, or checks that it is.

    Every process has to call this; the first one writes.

    Args:
        directory: The experiment directory.
        flags: What decides the result, as JSON can hold it.

    Raises:
        InputError: The directory holds something else, or an experiment with other flags.
    """
    path = directory / FLAGS_FILE
    flags = json.loads(json.dumps(flags))
    if path.exists():
        recorded = json.loads(path.read_text())["flags"]
        differences = [
            f"--{name} was {recorded.get(name)!r} and is {flags.get(name)!r}"
            for name in sorted(recorded.keys() | flags.keys())
            if recorded.get(name) != flags.get(name)
        ]
        if differences:
            raise InputError(
                f"{directory} holds a run with other flags: {'; '.join(differences)}. Give the"
                " same flags to go on with it, or another --exp_dir"
            )
    elif directory.exists() and any(x.name != path.parent.name for x in directory.iterdir()):
        raise InputError(f"{directory} is not empty and holds no run; give another --exp_dir")
    # All have looked before one writes.
    multihost_utils.sync_global_devices("claim")
    if not path.exists() and jax.process_index() == 0:
        libraries = ("styleclip-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
        content = {"flags": flags, "versions": {name: _version(name) for name in libraries}}
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(content, indent=2) + "\n")
        unfinished.rename(path)


class Measurements:
    """Writes measurements and pictures to files and to TensorBoard; on the first process alone.

    Args:
        directory: The experiment directory.
        step: Where the training goes on; what a run that was killed left of later steps is removed.
            None: it starts anew.
    """

    def __init__(self, directory: epath.Path, step: int | None):
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        self._directory = directory
        path = directory / METRICS_FILE
        # A line without its end was being written when the run was killed.
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        kept = [x + "\n" for x in lines if step is not None and json.loads(x)["step"] <= step]
        unfinished = directory / f"{METRICS_FILE}.unfinished"
        unfinished.write_text("".join(kept))
        unfinished.replace(path)
        first = 0 if step is None else step + 1
        self._tensorboard = SummaryWriter(str(directory / TENSORBOARD), purge_step=first)

    def scalars(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Records numbers; ``split`` is for example ``"train"``."""
        if self._writes:
            with (self._directory / METRICS_FILE).open("a") as file:
                file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
            for name, value in metrics.items():
                self._tensorboard.add_scalar(f"{split}/{name}", value, step)

    def picture(self, step: int, split: str, picture: Callable[[], Image.Image]) -> None:
        """Records a picture, which is drawn where it is needed.

        TensorBoard has all of them; those of the validation are files in ``images/`` as well.
        """
        if self._writes:
            drawn = picture()
            self._tensorboard.add_image(split, np.asarray(drawn), step, dataformats="HWC")
            if split == "validation":
                write_image(self._directory / IMAGES / f"{split}_{step:06}.png", drawn)

    def close(self) -> None:
        """Writes what is left."""
        if self._writes:
            self._tensorboard.close()


@dataclasses.dataclass
class Progress:
    """What a training remembers beside its state.

    Attributes:
        first: Metrics of the validation before the first step.
        loss: Loss of the last validation.
        best_loss: The lowest validation loss so far.
        best_step: Its step.
        stale: Validations since then.
    """

    first: dict[str, float] = dataclasses.field(default_factory=dict)
    loss: float = math.inf
    best_loss: float = math.inf
    best_step: int = 0
    stale: int = 0

    def record(self, step: int, loss: float) -> bool:
        """Takes note of a validation; returns whether it is the best so far."""
        self.loss = loss
        improved = loss < self.best_loss
        if improved:
            self.best_loss, self.best_step, self.stale = loss, step, 0
        else:
            self.stale += 1
        return improved

    def finished(self, stop_loss: float | None, patience: int) -> bool:
        """Whether the validation loss says that it is enough."""
        reached = stop_loss is not None and self.loss < stop_loss
        return reached or 0 < patience <= self.stale


class Checkpoints:
    """Saves and restores the state of a training, asynchronously and from several hosts.

    Args:
        directory: The experiment directory.
        keep: How many of the latest checkpoints are kept beside the best one.
    """

    def __init__(self, directory: epath.Path, keep: int = 3):
        managers = ocp.checkpoint_managers
        self._manager = ocp.CheckpointManager(
            absolute(directory / CHECKPOINTS),
            options=ocp.CheckpointManagerOptions(
                best_fn=_validation_loss,
                best_mode="min",
                preservation_policy=managers.AnyPreservationPolicy(
                    [
                        managers.LatestN(keep),
                        managers.BestN(get_metric_fn=_validation_loss, reverse=True, n=1),
                    ]
                ),
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint; None: there is none."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: Any,
        progress: Progress,
        validation_loss: float | None = None,
    ) -> None:
        """Starts to write a checkpoint, unless the step has one.

        Args:
            step: Number of steps taken.
            state: A tree of arrays that are equal on all devices.
            progress: What else the training has to remember.
            validation_loss: Where it was measured at this step.
        """
        if step in self._manager.all_steps():
            return
        # The copy lets the next step take the device's memory while this one is written.
        arrays = {name: np.array(array) for name, array in _named(state).items()}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(arrays),
                progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
            ),
            metrics={"validation_loss": math.inf if validation_loss is None else validation_loss},
            force=True,
        )

    def restore(self, step: int, state: Tree) -> tuple[Tree, Progress]:
        """Reads a checkpoint.

        Args:
            step: One of the steps that are kept.
            state: Gives the structure, and the devices on which the arrays are put.

        Raises:
            InputError: The checkpoint is damaged or of another structure.
        """
        like = _named(state)
        try:
            saved: Any = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(
                        {n: np.empty(a.shape, a.dtype) for n, a in like.items()}
                    ),
                    progress=ocp.args.JsonRestore(),
                ),
            )
        except (ValueError, KeyError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"the checkpoint of step {step} in {self._manager.directory} cannot be read:"
                f" {reason}; remove it to go on from an earlier one"
            ) from error
        arrays = [jax.device_put(saved.state[n], a.sharding) for n, a in like.items()]
        return jax.tree.unflatten(jax.tree.structure(state), arrays), Progress(**saved.progress)

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


class Preemption:
    """Notices SIGTERM, with which clusters announce that they take the machine away."""

    def __init__(self) -> None:
        self._noticed = False
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._notice)

    def _notice(self, *_: object) -> None:
        self._noticed = True

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step; the same answer on every host."""
        if jax.process_count() == 1:
            return self._noticed
        return multihost_utils.reached_preemption_sync_point(step)


def _named(state: Any) -> dict[str, jax.Array]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _validation_loss(metrics: Mapping[str, float]) -> float:
    return metrics["validation_loss"]


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
