"""`tessera dev`: changed modules of the project take the place of those that were imported when the component was built.

Imported only where `tessera dev` builds. A component that `tessera build` makes has no such module in it, hence no way to
run other code than its own.
"""

import importlib.util
import json
import sys
import traceback
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec

from componentize_py_types import Err

from . import component, host
from .marking import forget

# The asset with the project's modules as they are now: their text by their path in `src`, as JSON.
ASSET = "tessera-dev-code"

# How the reason of a failed `init` begins where the change cannot be swapped in, but may be built.
NEEDS_BUILD = "this change needs a whole build: "


class _Missing(MetaPathFinder):
    """Asked last: notes what was imported and not found."""

    def __init__(self):
        self.names = set()

    def find_spec(self, name, path=None, target=None):
        self.names.add(name)


class _Sources(MetaPathFinder, ExecutionLoader):
    """Finds and runs modules that are there as text."""

    def __init__(self, sources: dict[str, str]):
        self._sources = sources

    def _file(self, name: str) -> str | None:
        stem = name.replace(".", "/")
        return next((file for file in (f"{stem}/__init__.py", f"{stem}.py") if file in self._sources), None)

    def find_spec(self, name, path=None, target=None):
        if self._file(name):
            return importlib.util.spec_from_loader(name, self)
        folder = name.replace(".", "/") + "/"
        if any(file.startswith(folder) for file in self._sources):
            return ModuleSpec(name, None, is_package=True)

    def is_package(self, name):
        return self._file(name).endswith("/__init__.py")

    def get_filename(self, name):
        """As a person finds it from the project's folder: tracebacks show it."""
        return f"src/{self._file(name)}"

    def get_source(self, name):
        return self._sources[self._file(name)]


class WitWorld(component.WitWorld):
    """The exports of the component, of the project as it is now."""

    def init(self) -> None:
        """Swaps the project's modules in, then does what every component does."""
        _missing.names.clear()
        try:
            _swap_in(host.assets.read(ASSET).decode())
        except Exception as error:
            # Before the traceback is made, which looks for modules of its own.
            may_be_built = _missed() or isinstance(error, OSError)
            reason = "".join(_traceback(error)).rstrip()
            raise Err(NEEDS_BUILD + reason if may_be_built else reason) from None
        if missed := _missed():
            raise Err(f"{NEEDS_BUILD}it imports {', '.join(sorted(missed))}")
        super().init()


def prepare(module: str, sources: str) -> None:
    """What is done at the end of the build; `sources` is what the asset would be now."""
    _built.update(module=module, sources=sources, missing=frozenset(_missing.names))


def _swap_in(sources: str) -> None:
    if sources == _built["sources"]:
        return
    files = json.loads(sources)
    _ours.update(_top(file) for file in (*files, *json.loads(_built["sources"])))
    for name in [name for name in sys.modules if _top(name) in _ours]:
        del sys.modules[name]
    forget()
    sys.meta_path.insert(0, _Sources(files))
    importlib.import_module(_built["module"])


def _missed() -> set[str]:
    """What was not found now, and might be if the component were built again: then there are files."""
    return {name for name in _missing.names - _built["missing"] if _top(name) not in {*_ours, __package__}}


def _top(name: str) -> str:
    return name.partition("/")[0].removesuffix(".py").partition(".")[0]


def _traceback(error: Exception) -> list[str]:
    """From the project's first line on."""
    inner = error.__traceback__
    while inner and not inner.tb_frame.f_code.co_filename.startswith("src/"):
        inner = inner.tb_next
    return traceback.format_exception(type(error), error, inner)


_built = {}
# The project's own modules and packages.
_ours = set()
_missing = _Missing()
# From here on: the project is imported after this module.
sys.meta_path.append(_missing)
