"""Edits images until they match a text, or generates one from a text. See ``--help``.

The code is in ``styleclip_jax/scripts/optimize.py``.
"""

try:
    from styleclip_jax.scripts.optimize import start
except KeyboardInterrupt:
    raise SystemExit("error: interrupted") from None

if __name__ == "__main__":
    start()
