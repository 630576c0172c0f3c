"""The class that is the endpoint."""

_marked: list[type] = []

# CO_COROUTINE and CO_ASYNC_GENERATOR of the module `inspect`, which would be frozen into every component.
_IS_ASYNC = 0x80 | 0x200


def endpoint(cls: type) -> type:
    """Marks the class that answers the requests of this component: once in a project.

    It has `predict(self, request)`, and may have `init(self, package)`, which runs once, at deploy. It is made without
    arguments. A class that is derived from a marked one and marked itself takes its place.
    """
    if not callable(getattr(cls, "predict", None)):
        raise TypeError(f"{cls.__name__} is no endpoint: it needs a method `predict(self, request)`")
    for name in ("init", "predict"):
        # Nothing would run it: the host calls, and wants an answer.
        if getattr(getattr(getattr(cls, name, None), "__code__", None), "co_flags", 0) & _IS_ASYNC:
            reason = "make it a plain method, for there is nothing to wait for"
            raise TypeError(f"{cls.__name__}.{name} is `async def`: {reason}")
    _marked[:] = [other for other in _marked if not issubclass(cls, other)] + [cls]
    return cls


def forget() -> None:
    """As if none were marked."""
    _marked.clear()


def marked() -> type:
    """The class of this component."""
    match _marked:
        case [cls]:
            return cls
        case []:
            raise RuntimeError("no class is marked as the endpoint: put `@tessera_guest.endpoint` before it")
        case _:
            names = ", ".join(cls.__name__ for cls in _marked)
            raise RuntimeError(f"more than one class is marked with `@tessera_guest.endpoint`: {names}")
