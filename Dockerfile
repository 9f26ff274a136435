# Serves the page of app.py as an unprivileged user on a read-only root file system:
#   docker build --tag=styleclip .
#   docker run --read-only --tmpfs=/tmp --publish=127.0.0.1:7860:7860 styleclip
FROM python:3.12 AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE styleclip_commands.py ./
COPY styleclip_jax styleclip_jax
COPY ckpt_convert ckpt_convert
# Dependencies without a wheel are compiled here.
RUN pip wheel --no-cache-dir --wheel-dir=/wheels '.[app]'

# The slim image has no compiler.
FROM python:3.12-slim
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links=/wheels 'styleclip-jax[app]'
RUN useradd --uid=10001 --no-create-home styleclip
USER styleclip
WORKDIR /tmp
# The only writable directory.
ENV HOME=/tmp JAX_COMPILATION_CACHE_DIR=/tmp/compiled
EXPOSE 7860
HEALTHCHECK --start-period=2m CMD ["python", "-c", \
    "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/health', timeout=5)"]
STOPSIGNAL SIGTERM
CMD ["styleclip-app", "--host=0.0.0.0"]
