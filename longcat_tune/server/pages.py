"""Templates to HTML: what every page is given, the language it is in, and how a refusal looks.

Knows nothing of what the pages are about.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from longcat_tune.server.replies import Refusal
from longcat_tune.server.texts import LANGUAGES, Language, translate

TEMPLATES = Path(__file__).parent / "templates"
LANGUAGE_COOKIE = "longcat_tune_language"

NAVIGATION: Mapping[str, str] = {
    "/": "app.runs",
    "/runs/new": "app.new_run",
    "/datasets": "app.datasets",
    "/preview": "app.preview",
}
"""What stands at the top of every page: address to text."""


@lru_cache
def environment() -> Environment:
    """The templates; what a page prints is escaped, and a name it was not given is a bug."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


def page(request: Request, name: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """A whole page.

    Args:
        request: asks for it.
        name: of the template; it extends `base.html`.
        status: of the reply.
        **context: what else the template reads.
    """
    return HTMLResponse(_rendered(request, name, context), status)


def fragment(request: Request, name: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """A part of a page, for htmx.

    Args:
        request: asks for it.
        name: of the template.
        status: of the reply.
        **context: what else the template reads.
    """
    return HTMLResponse(_rendered(request, name, context), status)


def language_of(request: Request) -> Language:
    """The language that was chosen, or the first one known of those the browser prefers."""
    cookie = request.cookies.get(LANGUAGE_COOKIE)
    preferred = request.headers.get("accept-language", "").lower().split(",")
    codes = [cookie, *(one.strip()[:2] for one in preferred)]
    return next((language for code in codes for language in LANGUAGES if language == code), "en")


def refusal_reply(request: Request, refusal: Refusal) -> Response:
    """The refusal as the asker reads it: JSON, a notice for htmx, or a page; always escaped."""
    text = refusal.told(language_of(request))
    headers = dict(refusal.headers or {})
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"error": text}, refusal.status, headers)
    if "hx-request" in request.headers:
        reply = fragment(request, "app_notice.html", status=refusal.status, text=text)
    else:
        reply = page(request, "app_error.html", status=refusal.status, text=text, code=refusal.status)
    reply.headers.update(headers)
    return reply


def _rendered(request: Request, name: str, context: Mapping[str, Any]) -> str:
    language = language_of(request)
    path = request.url.path
    given = {
        "t": partial(translate, language),
        "language": language,
        "languages": LANGUAGES,
        "navigation": NAVIGATION,
        "here": _here(path),
        "path": path,
    }
    return environment().get_template(name).render({**given, **context})


def _here(path: str) -> str:
    """The address in the navigation that a page belongs to; pages of a run belong to the runs."""
    fitting = [address for address in NAVIGATION if address != "/" and path.startswith(address)]
    return max(fitting, key=len, default="/")
