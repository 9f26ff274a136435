"""Trains a mapper, which edits any image in one pass. ``--help`` explains it.

The code is in ``styleclip_jax/scripts/train_mapper.py``.
"""

from styleclip_jax.scripts.train_mapper import start

if __name__ == "__main__":
    start()
