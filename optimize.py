"""Edits images until they match a text, or generates one from a text. See ``--help``.

The code is in ``styleclip_jax/scripts/optimize.py``.
"""

from styleclip_jax.scripts.optimize import start

if __name__ == "__main__":
    start()
