"""Why a request, or the deploy, failed."""


class Error(Exception):
    """A failure with the message that the caller is shown. From `init` it fails the deploy and is shown as its reason.

    Raise one of the classes below: the class decides the HTTP status.
    """

    kind = "MODEL"

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message


class InvalidInput(Error):
    """The caller's input is wrong: 400."""

    kind = "INVALID_INPUT"


class NotFound(Error):
    """The endpoint has no such path: 404."""

    kind = "NOT_FOUND"


class TooLarge(Error):
    """Input or output exceeds a limit: 413."""

    kind = "TOO_LARGE"


class UnsupportedMediaType(Error):
    """The content type is not understood: 415."""

    kind = "UNSUPPORTED_MEDIA_TYPE"


class ModelError(Error):
    """The model or the guest failed on this input: 400, for repeating the call will not help."""


class TimedOut(Error):
    """Time ran out: 504."""

    kind = "TIMEOUT"


class Unavailable(Error):
    """The same call may succeed later: 503."""

    kind = "UNAVAILABLE"
