"""The page on a port: what it may load, and who may ask."""

import contextlib
import ipaddress
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from ec_dit.core.errors import UserError

# Nothing comes from elsewhere. Gradio's own scripts and styles stand in the page, hence 'unsafe-inline' and 'unsafe-eval'.
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "frame-ancestors 'self'",
        "form-action 'self'",
        "base-uri 'self'",
        "object-src 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_UPLOADS = ("/gradio_api/upload", "/upload")  # no part of the page takes files


def check_free(host: str, port: int) -> None:
    """Raises UserError where the port is taken, or the host is none of this machine's."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        raise UserError(f"--host={host} --port={port}: {error.strerror or error}. Give another --port.") from error


def is_local(host: str) -> bool:
    """Tells whether only this machine reaches the host."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Makes a folder for what Gradio keeps, which goes with the page."""
    with tempfile.TemporaryDirectory(prefix="ec_dit_app_") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        yield Path(folder)


def serve(build: Callable[[], object], host: str, port: int, queue: int, ready: Callable[[], None]) -> None:
    """Serves a page until the process is told to stop.

    Args:
        build: gives the page, a gradio.Blocks.
        queue: requests that wait at most; further ones are told to come back.
        ready: called when the page answers.
    """
    import fastapi
    import gradio as gr
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from ec_dit.studio.tabs import CSS, HEAD

    page = build()
    assert isinstance(page, gr.Blocks)
    page.queue(max_size=queue, default_concurrency_limit=2, api_open=False)
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(
        request: fastapi.Request, call_next: Callable[[fastapi.Request], Awaitable[fastapi.Response]]
    ) -> fastapi.Response:
        if request.url.path.startswith(_UPLOADS):
            return fastapi.Response("This page takes no files.", 403, _HEADERS)
        answer = await call_next(request)
        answer.headers.update(_HEADERS)
        return answer

    if is_local(host):  # no other name leads here, so that a page from elsewhere cannot pose as this one
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", "::1"])
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    app = gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=theme,
        css=CSS,
        head=HEAD,
        footer_links=[],
        allowed_paths=[],
        show_error=False,
        max_file_size=1,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

    Server(uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=2)).run()
