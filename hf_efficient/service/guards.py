"""What stands in front of a service: who may ask, and how much at once. ASGI middleware."""

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlencode

Message = MutableMapping[str, Any]
Asgi = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

COOKIE = "hf_efficient_token"


class BodyLimit:
    """Refuses bodies of more than ``limit`` bytes with 413, however they come; under ``path`` only."""

    def __init__(self, app: Asgi, limit: int, path: str):
        self.app, self.limit, self.path = app, limit, path

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(self.path):
            return await self.app(scope, receive, send)
        said = f"the request has more than {self.limit} bytes, which is what is allowed; send less at once"
        length = _headers(scope).get("content-length", "")
        if length.isdigit() and int(length) > self.limit:
            return await _refuse(send, 413, said)
        body = b""
        while True:  # small ones alone get through, so they can be read before they are handed on
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.limit:
                return await _refuse(send, 413, said)
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        handed = iter([{**message, "body": body}] if message["type"] == "http.request" else [message])

        async def replay() -> Message:
            given = next(handed, None)
            return await receive() if given is None else given

        return await self.app(scope, replay, send)


class TokenGuard:
    """Lets in who brings ``token``: as a bearer, or once as ``?token=...``, which a cookie then remembers.

    Health may be asked for without it.
    """

    def __init__(self, app: Asgi, token: str):
        self.app, self.token = app, token

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] == "/health":
            return await self.app(scope, receive, send)
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        headers = _headers(scope)
        if self._is_right(headers.get("authorization", "").removeprefix("Bearer ")) or self._is_right(_cookie(headers)):
            return await self.app(scope, receive, send)
        if scope["type"] == "http" and self._is_right("".join(query.pop("token", []))):
            rest = urlencode(query, doseq=True)
            where = scope["path"] + (f"?{rest}" if rest else "")
            # Strict: another site's page cannot ask in this one's name
            cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            sent = [(b"location", where.encode()), (b"set-cookie", cookie.encode())]
            await send({"type": "http.response.start", "status": 303, "headers": sent})
            return await send({"type": "http.response.body", "body": b""})
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        said = "a token is needed: send the header 'Authorization: Bearer TOKEN', or open the page with ?token=TOKEN"
        return await _refuse(send, 401, said, [(b"www-authenticate", b"Bearer")])

    def _is_right(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())


def _headers(scope: Message) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _cookie(headers: dict[str, str]) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


async def _refuse(send: Any, status: int, said: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    sent = [(b"content-type", b"application/json"), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": json.dumps({"error": said}).encode()})
