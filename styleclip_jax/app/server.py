"""The web server: the page, the health check and the graceful shutdown."""

import contextlib
import signal
import threading
import time
from typing import Any

import fastapi
import gradio as gr
import uvicorn
from starlette.responses import PlainTextResponse

from styleclip_jax.app import fragments, layout, page
from styleclip_jax.app.engine import Engine
from styleclip_jax.app.running import RunningEdits

# Keeps the browser from sending requests to other hosts.
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


class _Guard:
    """Middleware that refuses large requests and adds security headers to responses."""

    def __init__(self, app: Any, max_body_bytes: int):
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"")
        if scope["method"] in ("POST", "PUT", "PATCH"):
            # Without a declared length, the size of a body is unlimited.
            if not length.isdigit() or int(length) > self._max_body_bytes:
                refusal = PlainTextResponse(
                    "the request is too large or has no Content-Length, expected at most"
                    f" {self._max_body_bytes} bytes",
                    413,
                )
                return await refusal(scope, receive, send)

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def make_app(
    engine: Engine, running: RunningEdits, max_waiting: int, **options: Any
) -> fastapi.FastAPI:
    """Returns an application that serves the page at ``/`` and the health check at ``/health``.

    Args:
        engine: Computes the edits.
        running: Runs the edits.
        max_waiting: Maximum number of waiting requests; further ones fail immediately.
        options: Further arguments of ``gradio.mount_gradio_app``, such as ``auth``.
    """
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    started = time.time()

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "seconds": round(time.time() - started),
            "edits": running.count,
            "warm": running.warm,
        }

    # An upload is a multipart form, which is larger than its file.
    app.add_middleware(_Guard, max_body_bytes=engine.limits.upload_bytes + 100_000)
    blocks = page.build_page(engine, running)
    blocks.queue(max_size=max_waiting, api_open=False)
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=layout.THEME,
        css=layout.CSS,
        head=fragments.HEAD,
        max_file_size=engine.limits.upload_bytes,
        ssr_mode=False,
        footer_links=[],
        show_error=True,
        **options,
    )


def serve(
    app: fastapi.FastAPI, running: RunningEdits, host: str, port: int, grace_seconds: float
) -> None:
    """Serves an application until SIGTERM or Ctrl-C, then lets the running edits finish.

    Args:
        app: An application of :func:`make_app`.
        running: The argument ``running`` of :func:`make_app`.
        host: Address to listen on.
        port: Port to listen on.
        grace_seconds: Maximum time for the running edits to finish.
    """
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    # uvicorn's own signal handlers would close the connections immediately.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]

    def stop(*_: Any) -> None:
        def wait() -> None:
            running.close(grace_seconds)
            server.should_exit = True

        threading.Thread(target=wait, daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    server.run()
