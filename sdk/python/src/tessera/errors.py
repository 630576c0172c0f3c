"""What can go wrong, by what the caller can do about it."""


class TesseraError(Exception):
    """The base of all errors that this package raises on purpose."""


class ConversionError(TesseraError):
    """The model has something that cannot be converted. The message says what, and which choices are left."""


class ParityError(TesseraError):
    """The converted model predicts something else than the model. The message shows the worst row."""


class MissingDependencyError(TesseraError):
    """A library that this model needs is not installed. The message says how to install it."""


class ServerError(TesseraError):
    """The server refused a request, or is not there.

    ``status`` is the HTTP status (0 without an answer), ``code`` the API's error code.
    """

    def __init__(self, message: str, status: int = 0, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
