"""Edits images with a trained mapper, in one pass. ``--help`` explains it.

The code is in ``styleclip_jax/scripts/apply_mapper.py``.
"""

try:
    from styleclip_jax.scripts.apply_mapper import start
except KeyboardInterrupt:
    raise SystemExit("error: interrupted") from None

if __name__ == "__main__":
    start()
