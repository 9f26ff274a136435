"""Finds the latents of photos. ``--help`` explains it.

The code is in ``styleclip_jax/scripts/invert.py``.
"""

from styleclip_jax.scripts.invert import start

if __name__ == "__main__":
    start()
