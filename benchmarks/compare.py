"""Times our code and the official PyTorch code in turn on one machine; prints a Markdown table.

Each measurement has its own process, and each of ours is followed by its official counterpart, so
that both run under the same conditions. Each row is the median of the rounds.

Examples:
  python benchmarks/compare.py --styleclip=PATH --clip=PATH
  python benchmarks/compare.py --styleclip=PATH --clip=PATH \
      --cases=mapper_step_256,mapper_apply_256 --repeats=1 --rounds=3

The paths are checkouts of orpatashnik/StyleCLIP and openai/CLIP. PyTorch is required
(pip install -e '.[test]'); for a GPU it may be in another environment, whose interpreter is given
by --official_python.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

FLAGS = flags.FLAGS
HERE = Path(__file__).parent

# Our measurement -> the official case and its resolution.
COUNTERPARTS = {
    "forward_256": ("generator_forward", 256),
    "forward_1024": ("generator_forward", 1024),
    "step_256": ("optimization_step", 256),
    "step_1024": ("optimization_step", 1024),
    "step_1024_guide_256": ("optimization_step", 1024),
    "mapper_step_256": ("mapper_training_step", 256),
    "mapper_step_1024": ("mapper_training_step", 1024),
    "mapper_apply_256": ("mapper_apply", 256),
    "mapper_apply_1024": ("mapper_apply", 1024),
    "refine_step_256": ("refinement_step", 256),
    "refine_step_1024": ("refinement_step", 1024),
    "tune_step_256": ("tuning_step", 256),
    "tune_step_1024": ("tuning_step", 1024),
}
COLUMNS = (
    "measurement",
    "ours, s",
    "official, s",
    "official / ours",
    "our peak memory, GB",
    "ours / matrix product",
)

flags.DEFINE_string("styleclip", None, "Checkout of StyleCLIP.", required=True)
flags.DEFINE_string("clip", None, "Checkout of openai/CLIP.", required=True)
flags.DEFINE_list("cases", list(COUNTERPARTS), "Measurements to compare; default: all.")
flags.DEFINE_integer("rounds", 1, "Number of rounds.", lower_bound=1)
flags.DEFINE_integer("repeats", 3, "Timed repetitions in a turn after one that is not timed.")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Precision of our networks.")
flags.DEFINE_string("official_python", sys.executable, "Interpreter that has PyTorch.")


def run(python: str, script: str, *arguments: str) -> dict[str, Any]:
    """Runs one measurement in its own process and returns its JSON output."""
    command = [python, str(HERE / script), f"--repeats={FLAGS.repeats}", *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def take_turns(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measures ours and the official code alternately."""
    case, resolution = COUNTERPARTS[name]
    checkouts = [f"--styleclip={FLAGS.styleclip}", f"--clip={FLAGS.clip}"]
    what = [f"--cases={case}", f"--resolution={resolution}"]
    ours, official = [], []
    for _ in range(FLAGS.rounds):
        ours.append(run(sys.executable, "speed.py", f"--measure={name}", f"--dtype={FLAGS.dtype}"))
        official.append(run(FLAGS.official_python, "official_pytorch.py", *checkouts, *what))
    return ours, official


def row(name: str, ours: Sequence[dict[str, Any]], official: Sequence[dict[str, Any]]) -> str:
    """A line of the table."""

    def median(results: Sequence[dict[str, Any]], key: str) -> float:
        return statistics.median(result[key] for result in results)

    seconds, official_seconds = median(ours, "seconds"), median(official, "seconds")
    cells = (
        name,
        f"{seconds:.3g}",
        f"{official_seconds:.3g}",
        f"{official_seconds / seconds:.2f}",
        f"{median(ours, 'peak_memory_gb'):.2f}",
        f"{median(ours, 'ratio_to_matrix_product'):.2f}",
    )
    return f"| {' | '.join(cells)} |"


def main(_: Sequence[str]) -> None:
    """Prints the table row by row, and then the versions and devices."""
    if not FLAGS.cases:
        raise app.UsageError("--cases is empty")
    if unknown := set(FLAGS.cases) - set(COUNTERPARTS):
        raise app.UsageError(f"there is no case {', '.join(sorted(unknown))}")
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    ours, official = [], []
    for name in FLAGS.cases:
        ours, official = take_turns(name)
        print(row(name, ours, official), flush=True)
    print(
        f"\nOurs: {FLAGS.dtype} on {ours[0]['device']}. Official: PyTorch {official[0]['torch']},"
        f" CLIP in {official[0]['clip_dtype']}, on {official[0]['device']} with"
        f" {official[0]['threads']} threads. Rounds: {FLAGS.rounds} of {FLAGS.repeats} repeats."
    )


if __name__ == "__main__":
    app.run(main)
