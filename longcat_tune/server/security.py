"""Who may ask, from where, how much, and what a reply permits the browser; before any route is looked at.

Knows nothing of pages. One class, in front of the whole app, so that no route can forget a check.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from secrets import compare_digest
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longcat_tune.server.pages import page, refusal_reply
from longcat_tune.server.replies import Refusal
from longcat_tune.server.settings import Settings, is_loopback

MEGABYTE = 1_000_000
BODY_LIMIT = 2 * MEGABYTE
MOST_DIGITS = 20
"""Of a length that is looked at."""
SAFE_METHODS = {"GET", "HEAD"}
"""They change nothing; no route of ours may."""
OPEN_TO_ALL = "/static/"
"""What needs no token: the same files as in everybody's wheel; the page that asks for the token has them."""
HOST = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?", re.IGNORECASE)
COOKIE_LIFE = 30 * 24 * 3600

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob: data:",
    "media-src": "'self' blob:",
    "connect-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: browsers then name no origin for a form of our own either, which `check_site` refuses.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of every reply, whatever it is."""
CACHING = "private, no-cache"
"""Where a route says nothing else: kept by the visitor's browser only, which asks whether it still holds."""


class Guard:
    """Stands in front of the app.

    Args:
        app: what is guarded.
        settings: what the server was started with.
        body_limits: route to the bytes that it takes, where those are not `BODY_LIMIT`.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings, body_limits: Mapping[str, int]) -> None:
        self.app = app
        self.settings = settings
        self.body_limits = {compile_path(route)[0]: limit for route, limit in body_limits.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that may not pass; let others through, and put the headers on every reply."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        assert scope["type"] == "http", "the server is told to speak no other protocol"
        request = Request(scope)
        limit = self._body_limit(scope["path"])
        try:
            check_host(request, self.settings)
            check_site(request, self.settings)
            reply = admit(request, self.settings)
            check_length(request, limit)
        except Refusal as refusal:
            reply = refusal_reply(request, refusal)
        if reply is None:
            await self.app(scope, limited(receive, limit), with_headers(send))
        else:
            await reply(scope, receive, with_headers(send))

    def _body_limit(self, path: str) -> int:
        return next((limit for route, limit in self.body_limits.items() if route.match(path)), BODY_LIMIT)


def check_host(request: Request, settings: Settings) -> None:
    """Refuse names that are not this server's: another site's name may be made to lead here.

    Where there is a token any name will do, a proxy's too: the browser has no cookie for another site's.

    Raises:
        Refusal: there is not one Host, or it is not ours.
    """
    hosts = request.headers.getlist("host")
    host = _host_name(hosts[0]) if len(hosts) == 1 else ""
    if host and (is_loopback(host) or settings.token is not None):
        return
    address = f"http://localhost:{settings.port}"
    raise Refusal(421, "app.wrong_host", name=", ".join(hosts)[:80], address=address)


def check_site(request: Request, settings: Settings) -> None:
    """Refuse what another site makes the browser ask.

    Raises:
        Refusal: a change that no page of ours asks for, or another site that embeds something of ours.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if request.method in SAFE_METHODS:
        opened = (request.headers.get("sec-fetch-mode"), request.headers.get("sec-fetch-dest"))
        fine = site in {None, "same-origin", "none"} or opened == ("navigate", "document")
    elif site is None and origin is None:
        fine = _bearer_fits(request, settings)
    else:
        fine = site in {None, "same-origin"} and (origin is None or _same_origin(origin, request))
    if not fine:
        raise Refusal(403, "app.wrong_origin")


def admit(request: Request, settings: Settings) -> Response | None:
    """Let a visitor in who has the token, where there is one.

    Args:
        request: the token may be in its cookie, in `Authorization: Bearer`, or once in the address of home.
        settings: has the token.

    Returns:
        None, or for a token in the address a page that puts it into a cookie and goes on to home.

    Raises:
        Refusal: no token, or a wrong one.
    """
    if settings.token is None or request.url.path.startswith(OPEN_TO_ALL):
        return None
    cookie = f"longcat_tune_{settings.port}"
    given = request.query_params.get("token") if request.url.path == "/" else None
    if given is not None and _fits(given, settings.token):
        # No redirect: after a link on another site, as in a web terminal, it would take no strict cookie.
        reply = page(request, "app_welcome.html")
        secure = request.url.scheme == "https"
        reply.set_cookie(cookie, given, COOKIE_LIFE, httponly=True, samesite="strict", secure=secure)
        return reply
    in_cookie = request.cookies.get(cookie)
    if given is None and (_bearer_fits(request, settings) or _fits(in_cookie, settings.token)):
        return None
    shown = given is not None or in_cookie is not None or "authorization" in request.headers
    raise Refusal(401, "app.token_wrong" if shown else "app.token_needed")


def check_length(request: Request, limit: int) -> None:
    """Refuse a body that says itself how long it is, before it is sent.

    Raises:
        Refusal: it is too long.
    """
    length = request.headers.get("content-length", "0")
    # A number of thousands of digits is none that Python reads.
    if not (length.isascii() and length.isdigit() and len(length) <= MOST_DIGITS and int(length) <= limit):
        raise _too_large(limit)


def limited(receive: Receive, limit: int) -> Receive:
    """The body's parts, until there are more bytes than the limit: then a Refusal in whoever reads them."""
    received = 0

    async def receive_some() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise _too_large(limit)
        return message

    return receive_some


def with_headers(send: Send) -> Send:
    """Send a reply with `HEADERS`."""

    async def send_some(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS)
            headers.setdefault("Cache-Control", CACHING)
        await send(message)

    return send_some


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "app.too_large", limit=f"{limit / MEGABYTE:g}")


def _host_name(host: str) -> str:
    """Without port or brackets; empty where it is no host."""
    found = HOST.fullmatch(host)
    return found["name"].strip("[]") if found else ""


def _same_origin(origin: str, request: Request) -> bool:
    scheme, _, host = origin.partition("://")
    return scheme in {"http", "https"} and host.lower() == request.headers["host"].lower()


def _bearer_fits(request: Request, settings: Settings) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return settings.token is not None and scheme.lower() == "bearer" and _fits(given, settings.token)


def _fits(given: str | None, token: str) -> bool:
    """Compared in a time that tells nothing of how much was right."""
    return given is not None and compare_digest(given.encode(), token.encode())
