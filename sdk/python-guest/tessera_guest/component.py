"""What the host calls: the exports of the world, made from the endpoint's class. Imported only in a component."""

import linecache
import logging
import sys
import traceback

import wit_world
from componentize_py_types import Err

from . import host
from .errors import Error
from .log_writer import LogWriter
from .marking import marked
from .package import Package
from .request import Request, stream_error
from .response import Response

_state = None


class WitWorld(wit_world.WitWorld):
    """The exports of the component."""

    def init(self) -> None:
        """Makes the endpoint: what it holds afterwards is frozen."""
        global _state
        try:
            state = marked()()
            if hasattr(state, "init"):
                state.init(Package())
        except Error as error:
            raise Err(error.message) from None
        except Exception as error:
            # Whoever deploys a package reads the reason; it is theirs.
            raise Err("".join(_traceback(error)).rstrip()) from None
        finally:
            _flush()
        _state = state

    def handle(self, request):
        """Answers one request."""
        try:
            return _reply(_state.predict(_request(request)))
        except Error as error:
            raise Err(_failure(error.kind, error.message)) from None
        except Exception as error:
            host.logging.log(host.logging.Level.ERROR, "".join(_traceback(error)).rstrip())
            name = type(error).__name__
            raise Err(_failure("MODEL", f"the endpoint's code raised {name}; its log has the traceback")) from None
        finally:
            _flush()


def _request(request) -> Request:
    full = isinstance(request.body, host.types.Body_Full)
    body, source = (request.body.value, None) if full else (b"", request.body.value)
    return Request(request.path, request.content_type, body, _source=source)


def _reply(answer):
    response = answer if isinstance(answer, Response) else Response.json(answer)
    if response.chunks is None:
        whole = host.types.Response(response.status, response.content_type, response.body)
        return host.types.Reply_Full(whole)
    try:
        with host.streaming.respond(response.status, response.content_type) as body:
            for chunk in response.chunks:
                body.write(chunk.encode() if isinstance(chunk, str) else bytes(chunk))
    except Err as error:
        raise stream_error("write the response", error.value) from None
    return host.types.Reply_Streamed()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _failure(kind: str, message: str):
    return host.types.Failure(host.types.FailureKind[kind], message)


def _traceback(error: BaseException) -> list[str]:
    """Without this module's own frames."""
    inner = error.__traceback__.tb_next if error.__traceback__ else None
    return traceback.format_exception(type(error), error, inner)


class _HostHandler(logging.Handler):
    """Gives the lines of the module `logging` to the host."""

    def emit(self, record):
        above = (name for least, name in _LEVELS if record.levelno >= least)
        host.logging.log(host.logging.Level[next(above, "DEBUG")], self.format(record))


_LEVELS = [(logging.ERROR, "ERROR"), (logging.WARNING, "WARN"), (logging.INFO, "INFO")]


def prepare() -> None:
    """What is done when the component is built, after the endpoint's module was imported."""
    marked()
    logging.basicConfig(level=logging.DEBUG, format="%(message)s", handlers=[_HostHandler()])
    # The library of C would keep its handle of the output in the frozen memory, where the next instance finds nothing.
    sys.stdout, sys.stderr = LogWriter("INFO"), LogWriter("ERROR")
    # The lines that tracebacks show are read while there are files. One without a time is never looked for again.
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None) or ""
        if name.endswith(".py") and not name.startswith(_LIBRARY):
            lines = linecache.getlines(name)
            linecache.cache[name] = (sum(map(len, lines)), None, lines, name)


# Where componentize-py keeps what is not the project's.
_LIBRARY = ("/python/", "/bundled/")
