"""Edits images with a trained mapper, in one pass. ``--help`` explains it.

The code is in ``styleclip_jax/scripts/apply_mapper.py``.
"""

from styleclip_jax.scripts.apply_mapper import start

if __name__ == "__main__":
    start()
