"""Turns the all-MiniLM-L6-v2 weights (safetensors) into one fp32 ONNX graph, with pooling and normalisation inside.

    convert.py MODEL_DIR OUT.onnx

Inputs:  input_ids, attention_mask, token_type_ids   int64 [batch, sequence]
Output:  sentence_embedding                          float32 [batch, 384], of length 1

The graph is a BERT encoder, written out node by node: no torch, and only operators that every backend has.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

OPSET = 17  # the first with LayerNormalization
IR_VERSION = 8  # what goes with opset 17; older runtimes refuse newer files
MASKED = -1e9  # added to the score of a padding token: its softmax weight is then exactly 0


def main(model_dir, out):
    config = json.loads((model_dir / "config.json").read_text())
    assert config["hidden_act"] == "gelu" and config["position_embedding_type"] == "absolute", "not this kind of BERT"
    graph = Graph(load_file(model_dir / "model.safetensors"), config["layer_norm_eps"])

    mask = graph.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    hidden = embeddings(graph)
    for layer in range(config["num_hidden_layers"]):
        hidden = encoder_layer(graph, f"encoder.layer.{layer}", hidden, mask, config)
    mean_of_tokens(graph, hidden, mask)

    onnx.save(graph.model(config["hidden_size"]), out)


def embeddings(graph):
    """Word + token type + position, normalised."""
    words = graph.node("Gather", graph.weight("embeddings.word_embeddings.weight"), "input_ids")
    types = graph.node("Gather", graph.weight("embeddings.token_type_embeddings.weight"), "token_type_ids")
    length = graph.node("Slice", graph.node("Shape", "input_ids"), graph.ints(1), graph.ints(2))
    all_positions = graph.weight("embeddings.position_embeddings.weight")
    positions = graph.node("Slice", all_positions, graph.ints(0), length, graph.ints(0))
    return graph.layer_norm("embeddings.LayerNorm", graph.add(graph.add(words, types), positions))


def encoder_layer(graph, name, hidden, mask, config):
    """Self-attention and feed-forward, each added to its input and normalised after (post-norm)."""
    attended = self_attention(graph, f"{name}.attention.self", hidden, mask, config)
    attended = graph.linear(f"{name}.attention.output.dense", attended)
    hidden = graph.layer_norm(f"{name}.attention.output.LayerNorm", graph.add(attended, hidden))

    wide = gelu(graph, graph.linear(f"{name}.intermediate.dense", hidden))
    narrow = graph.linear(f"{name}.output.dense", wide)
    return graph.layer_norm(f"{name}.output.LayerNorm", graph.add(narrow, hidden))


def self_attention(graph, name, hidden, mask, config):
    heads, width = config["num_attention_heads"], config["hidden_size"]
    per_head = width // heads

    def split_heads(part, axes):
        rows = graph.linear(f"{name}.{part}", hidden)  # [batch, sequence, width]
        return graph.node("Transpose", graph.node("Reshape", rows, graph.ints(0, 0, heads, per_head)), perm=axes)

    query = split_heads("query", [0, 2, 1, 3])
    key = split_heads("key", [0, 2, 3, 1])  # already transposed for the product
    value = split_heads("value", [0, 2, 1, 3])

    scores = graph.mul(graph.node("MatMul", query, key), graph.float(per_head**-0.5))
    padding = graph.node("Sub", graph.float(1), graph.node("Unsqueeze", mask, graph.ints(1, 2)))
    scores = graph.add(scores, graph.mul(padding, graph.float(MASKED)))
    mixed = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
    return graph.node("Reshape", graph.node("Transpose", mixed, perm=[0, 2, 1, 3]), graph.ints(0, 0, width))


def gelu(graph, x):
    """x/2 · (1 + erf(x/√2)): the exact form, which this model was trained with."""
    erf = graph.node("Erf", graph.mul(x, graph.float(2**-0.5)))
    return graph.mul(graph.mul(x, graph.add(erf, graph.float(1))), graph.float(0.5))


def mean_of_tokens(graph, hidden, mask):
    """The mean over the tokens that are not padding, scaled to length 1."""
    mask = graph.node("Unsqueeze", mask, graph.ints(2))
    total = graph.node("ReduceSum", graph.mul(hidden, mask), graph.ints(1), keepdims=0)
    count = graph.node("ReduceSum", mask, graph.ints(1), keepdims=0)
    mean = graph.node("Div", total, graph.node("Max", count, graph.float(1e-9)))
    length = graph.node("ReduceL2", mean, axes=[1], keepdims=1)
    graph.node("Div", mean, graph.node("Max", length, graph.float(1e-12)), output="sentence_embedding")


class Graph:
    """An ONNX graph under construction. Every method returns the name of the tensor it adds."""

    def __init__(self, weights, layer_norm_epsilon):
        self.weights = {name.removeprefix("bert."): array for name, array in weights.items()}
        self.layer_norm_epsilon = layer_norm_epsilon
        self.nodes = []
        self.initializers = {}

    def node(self, operator, *inputs, output=None, **attributes):
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output or name], name=name, **attributes))
        return output or name

    def add(self, left, right):
        return self.node("Add", left, right)

    def mul(self, left, right):
        return self.node("Mul", left, right)

    def linear(self, name, x):
        # Stored as [out, in]; transposed once here rather than in every run.
        return self.add(
            self.node("MatMul", x, self.constant(f"{name}.weight.T", self.weights[f"{name}.weight"].T)),
            self.weight(f"{name}.bias"),
        )

    def layer_norm(self, name, x):
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=self.layer_norm_epsilon)

    def weight(self, name):
        return self.constant(name, self.weights[name])

    def float(self, value):
        return self.constant(f"float_{value}", np.float32(value))

    def ints(self, *values):
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def constant(self, name, array):
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.array(array, order="C"), name)
        return name

    def model(self, width):
        tokens = ["batch", "sequence"]
        inputs = ("input_ids", "attention_mask", "token_type_ids")
        graph = helper.make_graph(
            self.nodes,
            "all-MiniLM-L6-v2",
            [helper.make_tensor_value_info(name, TensorProto.INT64, tokens) for name in inputs],
            [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", width])],
            list(self.initializers.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="tessera")
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return model


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
