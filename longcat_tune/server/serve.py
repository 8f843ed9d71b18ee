"""The command `longcat-tune server`: from the words of the command line to a listening web UI, until Ctrl-C.

Imports the web libraries only when it is run: without the extra it says how to install them.
"""

from __future__ import annotations

import logging
import socket
import threading
import webbrowser
from asyncio import CancelledError
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from secrets import token_urlsafe
from typing import TYPE_CHECKING

from longcat_tune import log
from longcat_tune.errors import ConfigError, UserError
from longcat_tune.server.settings import Settings, is_loopback

if TYPE_CHECKING:
    import uvicorn

logger = logging.getLogger(__name__)

PACKAGES = ("fastapi", "uvicorn", "sse_starlette", "jinja2", "python_multipart")
DEFAULT_WORKSPACE = Path("longcat-tune-workspace")
SECONDS_FOR_REPLIES = 1
"""That a reply still being sent gets after Ctrl-C; streams of events end by themselves."""
BACKLOG = 2048


def serve(workspace: Sequence[Path], *, host: str, port: int, open_browser: bool) -> None:
    """Run the web UI until Ctrl-C or SIGTERM; jobs that it started go on.

    Args:
        workspace: folders that it may read; the first is made if missing, and all is written there.
        host: name or address to listen on; for one that other machines reach, a token is made.
        port: port to listen on; 0 takes a free one.
        open_browser: show the first page in the browser.

    Raises:
        UserError: the web libraries are not installed, a folder is missing, or the address cannot be used.
    """
    require_packages()
    roots = resolve_roots(workspace or [DEFAULT_WORKSPACE])
    listener = listen(host, port)
    token = None if is_loopback(host) else token_urlsafe(32)
    settings = Settings(roots=roots, host=host, port=listener.getsockname()[1], token=token)
    url = address(settings)
    log.output.print(f"longcat-tune server: {url}", markup=False, highlight=False)
    log.output.print(f"workspace: {', '.join(map(str, roots))}; Ctrl-C ends", markup=False, highlight=False)
    if open_browser:
        # The listener already queues what connects; some browsers only return when they are closed.
        threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()
    # Whether Ctrl-C comes out of it is a race between uvicorn's last step and asyncio's.
    with suppress(KeyboardInterrupt):
        make_server(settings).run(sockets=[listener])
    logger.info("the server has ended; jobs go on, and the next server finds them")


def require_packages() -> None:
    """Refuse without the extra `web`.

    Raises:
        UserError: a package of it is not installed.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"longcat-tune server: needs {', '.join(missing)}, which this environment lacks; "
            "pip install 'longcat-tune[web]'"
        )


def resolve_roots(folders: Sequence[Path]) -> tuple[Path, ...]:
    """The folders with symlinks followed; the first is made if missing.

    Args:
        folders: as given on the command line.

    Raises:
        UserError: one is no folder, or the first cannot be made.
    """
    from longcat_tune.files import require_writable

    home, *others = folders
    require_writable(home)
    for folder in others:
        if not folder.is_dir():
            raise ConfigError(f"--workspace ({folder}) is not a folder; make it, or give one that exists")
    return tuple(dict.fromkeys(folder.resolve() for folder in (home, *others)))


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on.

    Args:
        host: name or address.
        port: port; 0 takes a free one.

    Raises:
        UserError: the name is unknown, or the port is in use or not permitted.
    """
    try:
        [(family, kind, protocol, _, where), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as error:
        raise UserError(
            f"longcat-tune server: cannot listen on {host}, port {port} ({error.strerror or error}); another "
            "server may be running there: give another --port, or a --host of this machine"
        ) from error
    return listener


def address(settings: Settings) -> str:
    """What to open in a browser; it lets in who has it."""
    host = settings.host
    if host in {"127.0.0.1", "::1"}:
        host = "localhost"
    elif host in {"0.0.0.0", "::"}:
        host = socket.gethostname()
    elif ":" in host:
        host = f"[{ip_address(host)}]"
    return f"http://{host}:{settings.port}/" + (f"?token={settings.token}" if settings.token else "")


def make_server(settings: Settings) -> uvicorn.Server:
    """The server of the web UI, not yet running.

    Args:
        settings: what it is started with.
    """
    import uvicorn

    from longcat_tune.server.app import create_app

    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    config = uvicorn.Config(
        create_app(settings),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SECONDS_FOR_REPLIES,
    )
    return uvicorn.Server(config)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record of uvicorn's is worth showing: that the end cuts off open streams is not."""
    failed_with = record.exc_info[0] if record.exc_info else None
    return failed_with is not CancelledError and not record.getMessage().startswith("Cancel ")
