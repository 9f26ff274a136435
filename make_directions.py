"""Measures what a generator's style channels do, for directions.py. ``--help`` explains it.

The code is in ``styleclip_jax/scripts/make_directions.py``.
"""

from styleclip_jax.scripts.make_directions import start

if __name__ == "__main__":
    start()
