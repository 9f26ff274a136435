"""An experiment directory: flags, measurements, and checkpoints to resume from.

::

    config/flags.json    flags and versions of the libraries
    checkpoints/STEP/    Orbax checkpoints: the latest few, and the best by validation loss
    metrics.jsonl        one line per measurement: {"step": ..., "split": "train", "loss": ...}
    images/              validation images
    tensorboard/         the same metrics and images, and training images
"""

import contextlib
import dataclasses
import io
import json
import math
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from PIL import Image

from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import FLAGS_FILE, absolute
from styleclip_jax.io.checksums import verify_checksums, write_checksums
from styleclip_jax.io.files import (
    last_reason,
    parse_json,
    remove_unfinished,
    replace_file,
    written_file_named,
)
from styleclip_jax.io.images import encode_image
from styleclip_jax.runs import processes as distributed
from styleclip_jax.runs.results import flag_differences, lock_run
from styleclip_jax.versions import library_versions

Tree = TypeVar("Tree")

LOCK_FILE = "config/lock"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
IMAGES = "images"
TENSORBOARD = "tensorboard"


@contextlib.contextmanager
def claim(directory: epath.Path, flags: Mapping[str, Any]) -> Iterator[None]:
    """Creates an experiment directory, or checks that it holds this experiment, and locks it.

    Every process must call this; the first one writes.

    Args:
        directory: The experiment directory, on a file system that all processes share.
        flags: Flags that decide the result; JSON-serializable.

    Raises:
        InputError: The directory holds other files, an experiment with other flags, or a running
            one; or the processes do not share the directory or have different flags.
    """
    path = directory / FLAGS_FILE
    flags = json.loads(json.dumps(flags))
    with contextlib.ExitStack() as held:
        with distributed.together():
            if jax.process_index() == 0:
                _take(directory, path, flags, held)
        with distributed.together():
            _compare_flags(path, directory, flags)
        yield


def _take(
    directory: epath.Path, path: epath.Path, flags: Mapping[str, Any], held: contextlib.ExitStack
) -> None:
    """Locks the directory, and records the flags of a new experiment."""
    begun = directory.exists() and any(x.name != path.parent.name for x in directory.iterdir())
    if begun and not path.exists():
        raise InputError(f"{directory} is not empty and holds no run; use another --exp_dir")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_run(directory / LOCK_FILE, directory, held)
    if begun:
        return
    content = {"flags": flags, "versions": library_versions()}
    with replace_file(path) as file:
        file.write(f"{json.dumps(content, indent=2)}\n".encode())


def _compare_flags(path: epath.Path, directory: epath.Path, flags: Mapping[str, Any]) -> None:
    try:
        recorded = parse_json(path.read_text())["flags"]
        differences = flag_differences(recorded, flags)
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing on process {jax.process_index()}; use an --exp_dir on a file system"
            " that all machines share"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is damaged; give another --exp_dir") from None
    if differences:
        raise InputError(
            f"{directory} holds a run with other flags: {differences}. Give the same"
            " flags to resume it, or another --exp_dir"
        )


def _read_metrics(path: epath.Path, last: int) -> list[dict[str, Any]]:
    """Measurements up to a step."""
    # A run that was killed may have written part of its last line.
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    try:
        read = [parse_json(line) for line in lines]
        return [line for line in read if line["split"] and line["step"] <= last]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged; remove it to resume without it") from None


class Measurements:
    """Writes measurements and images to files and to TensorBoard, on the first process only.

    Args:
        directory: The experiment directory.
        step: Step to resume from; later records are discarded. None: a new training.

    Raises:
        InputError: Earlier measurements are damaged.
    """

    def __init__(self, directory: epath.Path, step: int | None):
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        self._directory = directory
        kept = [] if step is None else _read_metrics(directory / METRICS_FILE, step)
        with replace_file(directory / METRICS_FILE) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
        self._tensorboard = _TensorBoard(directory / TENSORBOARD)
        for line in kept:
            self._show(**line)
        for path in sorted((directory / IMAGES).glob("validation_*.png")):
            number = int(path.stem.removeprefix("validation_"))
            if step is None or number > step:
                path.unlink()
            else:
                self._tensorboard.image(number, "validation", path.read_bytes())

    def scalars(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Records numbers; ``split`` is for example ``"train"``."""
        if self._writes:
            path = self._directory / METRICS_FILE
            with written_file_named(path), path.open("a") as file:
                file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
            self._show(step, split, **metrics)

    def image(self, step: int, split: str, make: Callable[[], Image.Image]) -> None:
        """Records an image; ``make`` synthesizes it and is called on the first process only.

        TensorBoard gets the images of this run. Validation images are also written to ``images/``,
        from where a resumed run adds them to TensorBoard again.
        """
        if self._writes:
            content = encode_image(make())
            self._tensorboard.image(step, split, content)
            if split == "validation":
                with replace_file(self._directory / IMAGES / f"{split}_{step:06}.png") as file:
                    file.write(content)

    def _show(self, step: int, split: str, **metrics: float) -> None:
        self._tensorboard.scalars(
            step, {f"{split}/{name}": value for name, value in metrics.items()}
        )

    def close(self) -> None:
        """Flushes TensorBoard's files."""
        if self._writes:
            self._tensorboard.close()


class _TensorBoard:
    """Writes a file for TensorBoard like its ``EventFileWriter``, but in this thread.

    On a full disk, the thread of an ``EventFileWriter`` dies with a traceback.
    """

    def __init__(self, directory: epath.Path):
        # Needed on only one of many hosts.
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        protocol: Any = event_pb2  # Its names are defined at run time.
        self._event = protocol.Event
        self._path = directory / f"events.out.tfevents.{int(time.time())}.{platform.node()}"
        with written_file_named(self._path):
            directory.mkdir(parents=True, exist_ok=True)
            # Buffered; if the run is killed, the file is incomplete.
            self._file = RecordWriter(self._path.open("wb"))
        self._add(0, file_version="brain.Event:2")
        # TensorBoard then ignores later steps in the files of earlier runs.
        start = protocol.SessionLog(status=protocol.SessionLog.START)
        self._add(0, session_log=start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers by their tags."""
        for tag, value in values.items():
            self._add(step, summary={"value": [{"tag": tag, "simple_value": value}]})

    def image(self, step: int, tag: str, content: bytes) -> None:
        """Adds an image, the content of a PNG file, and flushes the file."""
        shown: dict[str, Any] = {"encoded_image_string": content, "colorspace": 3}
        with Image.open(io.BytesIO(content)) as image:
            shown |= {"height": image.height, "width": image.width}
        self._add(step, summary={"value": [{"tag": tag, "image": shown}]})
        with written_file_named(self._path):
            self._file.flush()

    def _add(self, step: int, **content: Any) -> None:
        event = self._event(wall_time=time.time(), step=step, **content)
        with written_file_named(self._path):
            self._file.write(event.SerializeToString())

    def close(self) -> None:
        """Flushes and closes the file."""
        with written_file_named(self._path):
            self._file.close()


@dataclasses.dataclass
class Progress:
    """Progress of a training, saved next to its state.

    Attributes:
        first: Metrics of the validation before the first step.
        loss: Loss of the last validation.
        best_loss: Lowest validation loss so far.
        best_step: Its step.
        stale: Validations since then.
    """

    first: dict[str, float] = dataclasses.field(default_factory=dict)
    loss: float = math.inf
    best_loss: float = math.inf
    best_step: int = 0
    stale: int = 0

    def record(self, step: int, loss: float) -> bool:
        """Records a validation; returns whether it is the best so far."""
        self.loss = loss
        improved = loss < self.best_loss
        if improved:
            self.best_loss, self.best_step, self.stale = loss, step, 0
        else:
            self.stale += 1
        return improved

    def finished(self, stop_loss: float | None, patience: int) -> bool:
        """Whether the training stops early."""
        reached = stop_loss is not None and self.loss < stop_loss
        return reached or 0 < patience <= self.stale


class _Checksums:
    """Adds ``SHA256SUMS`` to an item of a checkpoint, before the checkpoint is complete."""

    def finalize(self, directory: epath.Path) -> None:
        """Writes the checksums last, before the checkpoint gets its final name."""
        super().finalize(directory)  # pyright: ignore[reportAttributeAccessIssue]
        write_checksums(directory)

    def restore(self, directory: epath.Path, *arguments: Any, **options: Any) -> Any:
        """Verifies the checksums and reads the item; older checkpoints have none."""
        with contextlib.suppress(FileNotFoundError):
            verify_checksums(directory)
        return super().restore(  # pyright: ignore[reportAttributeAccessIssue]
            directory, *arguments, **options
        )


class _State(_Checksums, ocp.StandardCheckpointHandler):
    """The arrays."""


class _Progress(_Checksums, ocp.JsonCheckpointHandler):
    """The :class:`Progress`."""


class Checkpoints:
    """Saves and restores the state of a training, asynchronously and from several hosts.

    Args:
        directory: The experiment directory.
        keep: Number of latest checkpoints to keep, in addition to the best one.

    Raises:
        InputError: The metrics of a checkpoint are damaged.
    """

    def __init__(self, directory: epath.Path, keep: int = 3):
        path = absolute(directory / CHECKPOINTS)
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        state, remembered = _State(), _Progress()
        handlers.add("state", ocp.args.StandardSave, state)
        handlers.add("state", ocp.args.StandardRestore, state)
        handlers.add("progress", ocp.args.JsonSave, remembered)
        handlers.add("progress", ocp.args.JsonRestore, remembered)
        managers = ocp.checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            best_fn=_validation_loss,
            best_mode="min",
            preservation_policy=managers.AnyPreservationPolicy(
                [
                    managers.LatestN(keep),
                    managers.BestN(
                        get_metric_fn=_validation_loss,
                        reverse=True,
                        n=1,
                        # Only LatestN keeps these.
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            # Unfinished checkpoints of a run that was killed.
            cleanup_tmp_directories=True,
        )
        try:
            self._manager = ocp.CheckpointManager(path, options=options, handler_registry=handlers)
        except ValueError as error:
            raise InputError(
                f"the metrics of a checkpoint in {path} cannot be read: {error}; remove the"
                " checkpoint whose metrics/metrics is damaged"
            ) from error

    @property
    def latest_step(self) -> int | None:
        """Step of the latest checkpoint, or None."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: Any,
        progress: Progress,
        validation_loss: float | None = None,
    ) -> None:
        """Starts writing a checkpoint.

        Args:
            step: Number of steps taken.
            state: A tree of arrays that are equal on all devices.
            progress: The progress.
            validation_loss: The validation loss, if it was measured at this step.

        Raises:
            OSError: This checkpoint or the previous one cannot be written, for example because the
                disk is full.
        """
        # A copy on the host, because the next step reuses the device's memory.
        arrays = {name: np.array(array) for name, array in _named(state).items()}
        with self._written():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
                ),
                metrics={
                    "validation_loss": math.inf if validation_loss is None else validation_loss
                },
                force=True,
            )

    def restore(self, step: int, state: Tree) -> tuple[Tree, Progress]:
        """Reads a checkpoint.

        Args:
            step: One of the steps that are kept.
            state: A state of the same structure, on the devices for the restored arrays.

        Raises:
            InputError: The checkpoint is damaged or has another structure.
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
        except Exception as error:  # Tensorstore raises many types for damaged files.
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise InputError(
                f"the checkpoint of step {step} in {self._manager.directory} cannot be read:"
                f" {reason}; remove it to resume from an earlier one"
            ) from error
        arrays = [jax.device_put(saved.state[n], a.sharding) for n, a in like.items()]
        return jax.tree.unflatten(jax.tree.structure(state), arrays), Progress(**saved.progress)

    def close(self) -> None:
        """Waits until all checkpoints are written.

        Raises:
            OSError: The last checkpoint cannot be written, for example because the disk is full; it
                is removed.
        """
        with self._written():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # Tensorstore raises ValueErrors.
            directory = self._manager.directory
            if jax.process_index() == 0:
                for unfinished in directory.glob("*.orbax-checkpoint-tmp"):
                    remove_unfinished(unfinished)
            raise OSError(
                f"no checkpoint can be written to {directory} ({last_reason(error)})"
            ) from error


class Preemption:
    """Notices SIGTERM, which clusters send before they take a machine away."""

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
