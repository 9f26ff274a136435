"""Makes vocabulary.json: the part of CLIP's vocabulary that the texts of tokens.json need.

Usage, with a checkout of openai/CLIP:

    python tests/golden/make_vocabulary.py --clip=PATH

At every step byte-pair encoding applies the most frequent merge that fits. So leaving out merges
that are never applied changes nothing for these texts.
"""

import gzip
import json
from pathlib import Path

import seeded
from absl import app, flags

_CLIP = flags.DEFINE_string("clip", None, "Checkout of openai/CLIP.", required=True)

# 49152 tokens minus one per byte, twice, and two special tokens (clip/simple_tokenizer.py).
NUM_MERGES = 49152 - 2 * 256 - 2
NUM_SYMBOLS = 512


def main(_: list[str]) -> None:
    """Writes the file."""
    content = (Path(_CLIP.value) / "clip" / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    merges = gzip.decompress(content).decode().split("\n")[1 : NUM_MERGES + 1]
    ids = {merge.replace(" ", ""): NUM_SYMBOLS + rank for rank, merge in enumerate(merges)}
    parts = {NUM_SYMBOLS + rank: merge.split() for rank, merge in enumerate(merges)}

    def with_parts(token: int) -> set[int]:
        if token not in parts:
            return set()
        return {token}.union(*(with_parts(ids.get(part, 0)) for part in parts[token]))

    texts = json.loads((seeded.DIRECTORY / "tokens.json").read_text())
    needed = sorted(set().union(*(with_parts(token) for text in texts for token in text["ids"])))
    lines = ",\n".join(json.dumps([merges[i - NUM_SYMBOLS], i]) for i in needed)
    (seeded.DIRECTORY / "vocabulary.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    app.run(main)
