"""The answer: whole, or in chunks while it is made."""

import json
from collections.abc import Iterable

from .errors import ModelError


class Response:
    """What `predict` returns where plain JSON with status 200 is not what is wanted.

    An answer to a bad request is 4xx: clients retry 5xx. Better still, raise an `Error`, which the host renders as every
    other error of the API.
    """

    def __init__(self, body: bytes | str, content_type: str = "application/octet-stream", status: int = 200):
        self.body = body.encode() if isinstance(body, str) else bytes(body)
        self.chunks = None
        self.content_type = content_type
        self.status = status

    @classmethod
    def json(cls, value, status: int = 200) -> "Response":
        """`value` as JSON."""
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"failed to write the response as JSON: {error}") from None
        return cls(text, "application/json", status)

    @classmethod
    def text(cls, text: str, status: int = 200) -> "Response":
        """Plain text."""
        return cls(text, "text/plain; charset=utf-8", status)

    @classmethod
    def stream(cls, chunks: Iterable[bytes | str], content_type: str, status: int = 200) -> "Response":
        """A body that is sent chunk by chunk, each after the client has taken the ones before it. For server-sent events
        the content type is `text/event-stream`. An error after the first chunk can only cut the response off."""
        response = cls(b"", content_type, status)
        response.chunks = chunks
        return response
