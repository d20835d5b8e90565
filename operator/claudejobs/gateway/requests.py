"""Reads what the gateway needs to know of a request, and passes its body on as it comes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from .refusal import RefusedError

HEAD_BYTES = 64 * 1024
"""The part of a body in which the model is looked for. The agent's client names it first of all."""

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
NOT_SENT = HOP_BY_HOP | {"host", "authorization", "x-api-key", "cookie", "accept-encoding", "expect"}
"""Of the request: the caller's own authorization, and what concerns the connection or its encoding."""

NOT_RETURNED = HOP_BY_HOP | {"set-cookie", "date", "server"}
"""Of the answer. A cookie would be shared by jobs."""

_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]:,]', re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,127}")


def token_of(headers: Mapping[str, str]) -> str:
    """The caller's token: the agent's client sends it in both ways that the API knows."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()


def end_to_end(headers: CIMultiDictProxy[str], left_out: frozenset[str]) -> CIMultiDict[str]:
    """The headers without those left out and those that ``Connection`` names."""
    named = {name.strip().lower() for value in headers.getall("Connection", []) for name in value.split(",")}
    return CIMultiDict((n, v) for n, v in headers.items() if n.lower() not in left_out and n.lower() not in named)


def model_in(head: bytes) -> str | None:
    """The value of the outermost object's ``model``, if the beginning of the document has it."""
    depth, previous, name = 0, b"", b""
    for found in _TOKENS.finditer(head):
        token = found[0]
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
        elif token == b":":
            name = previous
        elif depth == 1 and name == b'"model"' and token.startswith(b'"'):
            model = token[1:-1].decode("utf-8", "replace")
            return model if _NAME.fullmatch(model) else None
        elif token == b",":
            name = b""
        previous = token
    return None


class Body:
    """A request's body: its beginning, read already, and the rest, as it comes."""

    def __init__(self, request: web.Request, limit: int) -> None:
        self._stream = request.content
        self._limit = limit
        self.length = request.content_length
        self.head = b""
        self.overlong = False
        if self.length is not None and self.length > limit:
            raise self._too_large()

    async def read_head(self) -> None:
        """Read the beginning."""
        parts, size = [], 0
        while size < HEAD_BYTES and (chunk := await self._stream.readany()):
            parts.append(chunk)
            size += len(chunk)
        self.head = b"".join(parts)
        if len(self.head) > self._limit:
            raise self._too_large()

    @property
    def data(self) -> bytes | AsyncIterator[bytes]:
        """What is to be sent: at once if it is whole, else as it comes."""
        return self.head if self._stream.at_eof() else self._all()

    async def _all(self) -> AsyncIterator[bytes]:
        yield self.head
        size = len(self.head)
        while chunk := await self._stream.readany():
            size += len(chunk)
            if size > self._limit:
                self.overlong = True
                raise self._too_large()
            yield chunk

    def _too_large(self) -> RefusedError:
        message = f"the request has more than {self._limit} bytes"
        return RefusedError(413, "request_too_large", "too_large", message)
