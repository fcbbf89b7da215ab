"""The page on a port: what it may load, and who may ask."""

import contextlib
import ipaddress
import os
import re
import socket
import tempfile
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

from ec_dit.core import stopping
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
_BODY = 64 * 1024  # bytes of a request, at most
_SESSIONS = 32  # users whose last results Gradio keeps
# What the page asks for; whatever else Gradio offers (uploads, recordings, links to states) is refused.
_ASKED = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(assets|static|svelte)/.*)?"
    r"|/gradio_api/(info|app_id|startup-events|cancel|reset|heartbeat/.*|queue/(join|data|status)|file=.*)"
)


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


def address(host: str, port: int) -> str:
    """Gives what to type into a browser."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def refusal(method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
    """Gives status and words for a request that is none of the page's own; None where it may pass."""
    if not _ASKED.fullmatch(path):
        return 403, "This page has no such part, and takes no files."
    origin = headers.get("origin")
    if origin is not None and urllib.parse.urlsplit(origin).netloc != headers.get("host"):
        return 403, "Other pages may not ask this one."
    length = headers.get("content-length", "" if method in ("POST", "PUT", "PATCH") else "0")
    if not length.isdecimal():
        return 411, "How long is it?"
    if int(length) > _BODY:
        return 413, "Too long."
    return None


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
    page.state_session_capacity = _SESSIONS
    page.queue(max_size=queue, default_concurrency_limit=2, api_open=False)
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(
        request: fastapi.Request, call_next: Callable[[fastapi.Request], Awaitable[fastapi.Response]]
    ) -> fastapi.Response:
        if problem := refusal(request.method, request.url.path, request.headers):
            return fastapi.Response(problem[1], problem[0], _HEADERS)
        answer = await call_next(request)
        answer.headers.update(_HEADERS)
        return answer

    if is_local(host):  # no other name leads here, so that a page from elsewhere cannot pose as this one
        names = ["localhost", "127.0.0.1", "[::1]", "::1", host, f"[{host}]"]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=names)
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
        run_history=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

    with contextlib.suppress(stopping.Stopped), stopping.at_once():  # SIGTERM too leads through what cleans up
        Server(uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=2)).run()
