"""The web server: the page, a health check, and a graceful stop."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import fastapi
import gradio as gr
import uvicorn
from starlette.responses import PlainTextResponse

from styleclip_jax.app import layout, page, pictures
from styleclip_jax.app.actions import ClosingError
from styleclip_jax.app.engine import Engine

# The browser must not send requests to other hosts.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self'"
    " 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self'"
    " data:; connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none';"
    " base-uri 'self'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)


class Work:
    """Counts the running edits; admits no new ones once the service is about to stop."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._closing = False

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Counts an edit while it runs.

        Raises:
            ClosingError: The service is about to stop.
        """
        with self._changed:
            if self._closing:
                raise ClosingError
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @property
    def running(self) -> int:
        """Number of running edits."""
        return self._running

    def close(self, seconds: float) -> bool:
        """Stops admitting edits and waits for the running ones.

        Returns:
            Whether all of them finished in time.
        """
        with self._changed:
            self._closing = True
            return self._changed.wait_for(lambda: not self._running, seconds)


class _Guard:
    """Refuses large requests and sets the content security policy."""

    def __init__(self, app: Any, largest_body: int):
        self._app = app
        self._largest_body = largest_body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"")
        if scope["method"] in ("POST", "PUT", "PATCH"):
            # A body without a length could be endless.
            if not length.isdigit() or int(length) > self._largest_body:
                refusal = PlainTextResponse("the request is too large", 413)
                return await refusal(scope, receive, send)

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self._app(scope, receive, send_with_policy)


def make_app(engine: Engine, work: Work, max_waiting: int, **options: Any) -> fastapi.FastAPI:
    """The application: the page at ``/``, and ``/health``.

    Args:
        engine: Computes the edits.
        work: Counts the edits.
        max_waiting: Maximum number of waiting requests; further ones get an error at once.
        options: Further arguments of ``gradio.mount_gradio_app``, such as ``auth``.
    """
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    started = time.time()

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "seconds": round(time.time() - started),
            "edits": work.running,
            # Whether everything is compiled.
            "warm": engine.warm.is_set(),
        }

    # The file and its multipart form.
    app.add_middleware(_Guard, largest_body=engine.limits.upload_bytes + 100_000)
    blocks = page.build_page(engine, work)
    blocks.queue(max_size=max_waiting, api_open=False)
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=layout.THEME,
        css=layout.CSS,
        head=pictures.HEAD,
        max_file_size=engine.limits.upload_bytes,
        ssr_mode=False,
        footer_links=[],
        show_error=True,
        **options,
    )


def serve(app: fastapi.FastAPI, work: Work, host: str, port: int, grace_seconds: float) -> None:
    """Serves until SIGTERM or Ctrl-C, then lets the running edits finish.

    Args:
        app: From :func:`make_app`.
        work: The ``work`` of this app.
        host: Address to listen on.
        port: Port to listen on.
        grace_seconds: Maximum time for the running edits to finish.
    """
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    # uvicorn's own handlers would close the connections at once.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]

    def stop(*_: Any) -> None:
        def wait() -> None:
            work.close(grace_seconds)
            server.should_exit = True

        threading.Thread(target=wait, daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    server.run()
