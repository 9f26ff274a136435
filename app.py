"""Serves a page on which faces are edited by text. ``--help`` explains it.

The code is in ``styleclip_jax/scripts/app.py``.
"""

from styleclip_jax.scripts.app import start

if __name__ == "__main__":
    start()
