"""Edits images until they fit a text, or makes an image from a text alone. ``--help`` explains it.

The code is in ``styleclip_jax/scripts/optimize.py``.
"""

try:
    from styleclip_jax.scripts.optimize import start
except KeyboardInterrupt:
    raise SystemExit("error: interrupted") from None

if __name__ == "__main__":
    start()
