"""Who may talk to a server of ours: host names, origins, sign-in, sizes, and what the browser may do with a page.

On a loopback address there is no sign-in; other web pages are still kept out, because they can make the browser send
requests and point their own host name at 127.0.0.1. Beyond loopback everybody needs the token.

    Host        a name or address the server was told of; addresses in digits always pass    (against DNS rebinding)
    Origin      every POST comes from this very page and says so with a header               (against forged requests)
                every WebSocket is opened by a page of ours                                  (browsers let others try)
    cookie      a keyed hash of the token, HttpOnly, SameSite=Strict, compared in constant time
    headers     scripts, styles and media from here only, nothing inline, no framing

Left out: accounts; TLS, which is a reverse proxy's job.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from reelign.web.access import Access

OWN_HEADER = "x-reelign"
MAX_BODY = 64 * 1024
OPEN_PATHS = ("/sign-in", "/static/", "/health")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer a form says "Origin: null"
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


def session_of(token: str) -> str:
    """What the cookie holds: the token itself never goes into it."""
    return hmac.new(token.encode(), b"reelign session", hashlib.sha256).hexdigest()


class Gate:
    """ASGI middleware that holds the rules above.

    Args:
        app: what is behind it.
        access: who may come in.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.cookie = access.cookie
        self.hosts = {"localhost", *(host.lower() for host in access.hosts)}
        self.session = None if access.token is None else session_of(access.token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on; pages and files with our headers."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            refused = self._socket_refused(Headers(scope=scope))
            await (WebSocketClose() if refused else self.app)(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope, Headers(scope=scope))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await (refusal or self.app)(scope, _limited(receive), send_with_headers)

    def _socket_refused(self, headers: Headers) -> bool:
        """Browsers let any page open a WebSocket to any server, cookies of ours included; they only say who it is."""
        return not (self._known(headers.get("host", "")) and _ours(headers) and self._signed_in(headers))

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a request that may not pass, or None."""
        if not self._known(headers.get("host", "")):
            return PlainTextResponse("this host name is not served here; see --allow-host", 421)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("method not allowed", 405)
        if scope["method"] == "POST":
            if not _same_origin(headers, scope["path"]):
                return PlainTextResponse("a post comes from this page itself", 403)
            if not headers.get("content-length", "0").isdigit() or int(headers.get("content-length", "0")) > MAX_BODY:
                return PlainTextResponse(f"at most {MAX_BODY} bytes are taken", 413)
        if self._signed_in(headers) or scope["path"].startswith(OPEN_PATHS):
            return None
        if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return RedirectResponse(f"/sign-in?next={quote(scope['path'])}", 303)
        return JSONResponse({"detail": "sign in first"}, 401)

    def _known(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.hosts
        return True

    def _signed_in(self, headers: Headers) -> bool:
        if self.session is None:
            return True
        given = cookie_parser(headers.get("cookie", "")).get(self.cookie, "")
        return hmac.compare_digest(given.encode(), self.session.encode())


def _ours(headers: Headers) -> bool:
    """Whether the page that asks, as the browser names it, came from this server."""
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc == headers.get("host")


def _same_origin(headers: Headers, path: str) -> bool:
    """A browser says where a post comes from; a form cannot send our own header, which the API asks for as well."""
    return _ours(headers) and (not path.startswith("/api/") or headers.get(OWN_HEADER) == "1")


def _limited(receive: Receive) -> Receive:
    """``receive`` that ends a body sent in chunks once it is too long."""
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        return {"type": "http.disconnect"} if taken > MAX_BODY else message

    return limited
