"""Finds the latents of photos. ``--help`` explains it.

The code is in ``styleclip_jax/scripts/invert.py``.
"""

try:
    from styleclip_jax.scripts.invert import start
except KeyboardInterrupt:
    raise SystemExit("error: interrupted") from None

if __name__ == "__main__":
    start()
