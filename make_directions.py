"""Measures what a generator's style channels do, for directions.py. ``--help`` explains it.

The code is in ``styleclip_jax/scripts/make_directions.py``.
"""

try:
    from styleclip_jax.scripts.make_directions import start
except KeyboardInterrupt:
    raise SystemExit("error: interrupted") from None

if __name__ == "__main__":
    start()
