"""Writes ONNX graphs: what skl2onnx and the like leave to be added."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .errors import ConversionError

#: Operators that every server's ONNX Runtime has; converters get the same, so that graphs can be joined.
OPSETS = {"": 17, "ai.onnx.ml": 3}
#: The oldest file format that holds them.
IR_VERSION = 8
#: What the one output of a package's graph is called.
OUTPUT = "predictions"

#: Operators that look into text. The server's tensors hold none, so that text is only known by its place in a list.
_TEXT_OPERATORS = {"TfIdfVectorizer", "Tokenizer", "StringNormalizer", "StringSplit", "StringConcat", "RegexFullMatch"}


class Builder:
    """A graph while it is written: ``add`` returns the name of the node's output."""

    def __init__(self, onnx_model: onnx.ModelProto | None = None) -> None:
        self.inputs: list[onnx.ValueInfoProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._names = 0
        if onnx_model is not None:
            self.inputs = list(onnx_model.graph.input)
            self.nodes = list(onnx_model.graph.node)
            self.constants = list(onnx_model.graph.initializer)

    def input(self, name: str, dtype: np.dtype[Any], shape: list[int | None]) -> str:
        """Declares an input; ``None`` is an axis of any length."""
        axes = [f"{name}_axis{place}" if size is None and place else size or "rows" for place, size in enumerate(shape)]
        self.inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), axes))
        return name

    def constant(self, value: np.ndarray) -> str:
        name = self._name("constant")
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        output = self._name(operator)
        self.nodes.append(helper.make_node(operator, inputs, [output], output, domain=domain, **attributes))
        return output

    def cast(self, value: str, dtype: Any) -> str:
        return self.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def finish(self, output: str, dtype: np.dtype[Any], shape: list[int | None], name: str) -> onnx.ModelProto:
        """The model, with ``output`` as its only output."""
        called = OUTPUT
        while any(value.name == called for value in self.inputs):
            called += "_"
        self.nodes.append(helper.make_node("Identity", [output], [called]))
        axes = [size or f"axis{place}" for place, size in enumerate(shape)]
        described = helper.make_tensor_value_info(called, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), axes)
        graph = helper.make_graph(self.nodes, name, self.inputs, [described], self.constants)
        # Domains that a converter declares and no node uses would only ask for more of the server.
        domains = {node.domain for node in self.nodes} | {""}
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items() if domain in domains]
        unknown = domains - set(OPSETS)
        if unknown:
            raise ConversionError(f"the converter used operators of {sorted(unknown)}, which the server does not have")
        model = helper.make_model(graph, opset_imports=opsets, producer_name="tessera")
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model)
        return model

    def _name(self, kind: str) -> str:
        self._names += 1
        return f"tessera_{kind.lower()}_{self._names}"


def texts_of(model: onnx.ModelProto) -> list[str]:
    """All text that a graph compares with, in a fixed order."""
    found: set[bytes] = set()
    for node in model.graph.node:
        if node.op_type in _TEXT_OPERATORS:
            raise ConversionError(
                f"the model reads free text ({node.op_type}), and the server's tensors hold no text. Left are: compute "
                "the text's features in the client and package the rest of the pipeline, or write a component that does "
                "it (see sdk/rust)"
            )
        for attribute in node.attribute:
            found.update(attribute.strings if attribute.name in ("cats_strings", "keys_strings") else ())
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.STRING:
                found.update(attribute.t.string_data)
    for constant in model.graph.initializer:
        if constant.data_type == TensorProto.STRING:
            found.update(constant.string_data)
    return sorted(text.decode() for text in found)


def has_text_input(model: onnx.ModelProto) -> bool:
    return any(value.type.tensor_type.elem_type == TensorProto.STRING for value in model.graph.input)
