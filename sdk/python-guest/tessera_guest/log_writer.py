"""Standard output and error: whole lines for the endpoint's log."""

import io

from . import host


class LogWriter(io.TextIOBase):
    """A text stream whose lines go to the log at one level; `flush` ends a line that has no end."""

    def __init__(self, level: str):
        self._level = level
        self._begun = ""

    def writable(self) -> bool:
        """It is there to be written to."""
        return True

    def write(self, text: str) -> int:
        """Logs every line that is complete."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._log(line)
        return len(text)

    def flush(self) -> None:
        """Logs what is left."""
        if self._begun:
            self._log(self._begun)
            self._begun = ""

    def _log(self, line: str) -> None:
        host.logging.log(host.logging.Level[self._level], line)
