"""Edits images with any text in one forward pass. ``--help`` explains it.

The code is in ``styleclip_jax/scripts/directions.py``.
"""

try:
    from styleclip_jax.scripts.directions import start
except KeyboardInterrupt:
    raise SystemExit("error: interrupted") from None

if __name__ == "__main__":
    start()
