"""Serves a page for editing faces with text; ``--help`` lists the flags.

The code is in ``styleclip_jax/scripts/app.py``.
"""

try:
    from styleclip_jax.scripts.app import start
except KeyboardInterrupt:
    raise SystemExit("error: interrupted") from None

if __name__ == "__main__":
    start()
