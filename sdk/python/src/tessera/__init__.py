"""From a trained model to an endpoint of Tessera.

>>> import tessera
>>> tessera.package(model, "my_model", input_example=table)   # then: tessera model push my_model --name main.default.my_model
"""

from .client import Client
from .errors import ConversionError, MissingDependencyError, ParityError, ServerError, TesseraError
from .packaging import Packaged, package
from .parity import Parity
from .signature import Column, Signature, Tensor

__all__ = [
    "Client",
    "Column",
    "ConversionError",
    "MissingDependencyError",
    "Packaged",
    "Parity",
    "ParityError",
    "ServerError",
    "Signature",
    "Tensor",
    "TesseraError",
    "package",
]
