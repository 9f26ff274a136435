"""Edits images until they fit a text, or makes an image from a text alone. ``--help`` explains it.

The code is in ``styleclip_jax/scripts/optimize.py``.
"""

from styleclip_jax.scripts.optimize import start

if __name__ == "__main__":
    start()
