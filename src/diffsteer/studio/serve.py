"""The server of the page: bound to this machine, without telemetry, strict on requests."""

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from diffsteer.core.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LARGEST = 2**25
"""Bytes of an upload."""
PNG = b"\x89PNG\r\n\x1a\n"
PART = re.compile(
    rb'name="([^"]*)"; filename="([^"]*)"[^\r]*\r\n(?:[^\r\n]+\r\n)*\r\n(.{0,8})', re.S
)
Asgi = Callable[..., Any]


def quiet() -> None:
    """Switch off all that Gradio and the hub would send elsewhere; before Gradio is imported."""
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_CHECK_UPDATES"):
        os.environ[name] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    for name in ("no_proxy", "NO_PROXY"):  # Gradio asks its own server whether it has started
        os.environ[name] = ",".join([*filter(None, [os.environ.get(name)]), *LOOPBACK[:2]])
    if "GRADIO_TEMP_DIR" not in os.environ:
        folder = os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="diffsteer-studio-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def require_safe(host: str, password: str) -> None:
    """Check that nobody but this machine reaches a page without a password."""
    if host not in LOOPBACK and not password:
        raise InputError(
            f"--host {host} lets other machines in: give --password as well, or leave it out for "
            "this machine alone"
        )


class Guard:
    """Refuses requests of foreign pages, other names of this machine, and unfit uploads.

    Args:
        app: What answers the others.
        local: Whether the page is bound to this machine, so that it has no other names.
    """

    def __init__(self, app: Asgi, local: bool) -> None:
        self._app, self._local = app, local

    async def __call__(self, scope: dict[str, Any], receive: Asgi, send: Asgi) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {k.decode("latin1"): v.decode("latin1") for k, v in scope["headers"]}
        reason = refusal(headers, scope.get("path", ""), self._local)
        if not reason and scope["type"] == "http" and scope["path"].endswith("/upload"):
            body, reason = await _body(receive)
            receive = _replayed(body)
        if reason:
            await _refuse(send, *reason)
            return
        await self._app(scope, receive, send)


def refusal(headers: dict[str, str], path: str, local: bool) -> tuple[int, str] | None:
    """Status and reason with which a request is refused; None for others."""
    host, origin = headers.get("host", ""), headers.get("origin", "")
    if local and urlsplit(f"//{host}").hostname not in LOOPBACK:
        return 403, "this page is for this machine alone"
    if origin and urlsplit(origin).netloc != host:
        return 403, "requests from other pages are refused"
    if headers.get("sec-fetch-site", "") == "cross-site" and "gradio_api" in path:
        return 403, "requests from other pages are refused"
    if re.search(r"file=\s*\w+:", path) or "/proxy=" in path:
        return 403, "nothing is fetched from elsewhere"
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > LARGEST:
        return 413, f"at most {LARGEST} bytes are taken"
    return None


def unfit(body: bytes) -> tuple[int, str] | None:
    """Status and reason with which an upload is refused: all but PNG files."""
    parts = PART.findall(body)
    if body.count(b"filename") != len(parts) or not parts:
        return 415, "upload a PNG file"
    for _, name, start in parts:
        if not name.lower().endswith(b".png") or b"/" in name or b"\\" in name or start != PNG:
            return 415, "this is no PNG file: drop an image that diffsteer made"
    return None


async def _body(receive: Asgi) -> tuple[bytes, tuple[int, str] | None]:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > LARGEST:
            return b"", (413, f"at most {LARGEST} bytes are taken")
        if not message.get("more_body"):
            return body, unfit(body)


def _replayed(body: bytes) -> Asgi:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _refuse(send: Asgi, status: int, reason: str) -> None:
    text = reason.encode()
    head = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": text})


def launch(page: Any, folder: Path, host: str, port: int, password: str, browser: bool) -> str:
    """Serve a page from now on, and return its local address.

    Args:
        page: Blocks, with `theme` and `css` of its own in `look`.
        folder: Whose images the page may show.
        host: Address that it is bound to.
        port: Of it; 0 for the first that is free from 7860 on.
        password: Of the user "studio"; empty for none.
        browser: Whether to open a browser.
    """
    from starlette.middleware import Middleware

    require_safe(host, password)
    _, url, _ = page.queue(max_size=64, api_open=False).launch(
        server_name=host,
        server_port=port or None,
        auth=("studio", password) if password else None,
        inbrowser=browser,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        show_error=False,
        footer_links=[],
        allowed_paths=[str(folder.resolve())],
        max_file_size=LARGEST,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        _frontend=False,  # else it ends where its own page takes more than three seconds to come
        strict_cors=True,
        app_kwargs={"middleware": [Middleware(Guard, local=host in LOOPBACK)]},
        **page.look,
    )
    return str(url)
