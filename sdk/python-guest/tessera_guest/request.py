"""The request, and the ways to read its body."""

import json
from collections.abc import Iterator

from . import host
from .errors import InvalidInput, ModelError, TooLarge, Unavailable

# Large enough that the cost of the call vanishes, small enough that a guest which works chunk by chunk stays small.
_CHUNK_BYTES = 64 * 1024


class Request:
    """One call of the endpoint. Make one by hand for unit tests."""

    def __init__(self, path: str = "invocations", content_type: str = "", body: bytes | str = b"", *, _source=None):
        # `path` is below the endpoint: `invocations`, `embeddings`, `v2/infer`, `chat/completions` and so on.
        self.path = path
        # The `Content-Type` header as sent; empty when absent.
        self.content_type = content_type
        self._body = body.encode() if isinstance(body, str) else body
        self._source = _source

    @property
    def media_type(self) -> str:
        """The content type in lower case and without parameters."""
        return self.content_type.partition(";")[0].strip().lower()

    @property
    def endpoint(self) -> str:
        """The name of the endpoint that was called."""
        return self.setting("tessera.endpoint") or ""

    @property
    def model_version(self) -> str:
        """The number of the model version that answers."""
        return self.setting("tessera.model_version") or ""

    def setting(self, name: str) -> str | None:
        """A setting of the manifest, or of the served entity's environment. One that refers to a secret is only here,
        never in `Package.setting`."""
        return host.settings.get(name)

    def header(self, name: str) -> str | None:
        """A header by its name in any case; None when absent, not text, or withheld (credentials)."""
        return host.request_headers.get(name.lower())

    def bytes(self) -> bytes:
        """The whole body; one that arrives in chunks is read to its end."""
        if self._source is not None:
            self._body, self._source = b"".join(self.chunks()), None
        return self._body

    def text(self) -> str:
        """The body as text."""
        try:
            return self.bytes().decode()
        except UnicodeDecodeError as error:
            raise InvalidInput(f"the body is not UTF-8 text: invalid byte at offset {error.start}") from None

    def json(self):
        """The body as JSON. A mistake is reported with its line and column."""
        text = self.text()
        if not text:
            raise InvalidInput("the body is empty; expected JSON")
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"failed to parse the JSON body: {error}") from None

    def chunks(self) -> Iterator["bytes"]:
        """The body chunk by chunk, while it arrives (`request_body = "chunks"` in the manifest), none of them empty. A
        full body is one chunk."""
        if self._source is None:
            if self._body:
                yield self._body
            return
        while chunk := self._read():
            yield chunk

    def _read(self):
        try:
            return self._source.read(_CHUNK_BYTES)
        except host.Err as error:
            raise stream_error("read the request body", error.value) from None


def stream_error(attempted: str, error):
    """The exception for a `stream-error` of the host."""
    match error.name:
        case "CLOSED":
            return Unavailable(f"failed to {attempted}: the client is gone")
        case "TOO_LARGE":
            return TooLarge(f"failed to {attempted}: over its limit in bytes")
        case _:
            return ModelError(f"failed to {attempted}: responded before, or the status is not allowed")
