"""Turns the weights of EfficientNet-Lite0 (a PyTorch checkpoint) into one fp32 ONNX graph.

    convert.py CHECKPOINT.pth OUT.onnx

Input:   image    float32 [batch, 3, 224, 224], red first, (value - 127) / 128
Output:  logits   float32 [batch, 1000], in the order of ImageNet's classes

The network is written out layer by layer: no torch, only operators that every backend has, and the batch normalisations
folded into the convolutions before them.
"""

import collections
import pickle
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8  # what goes with opset 17; older runtimes refuse newer files
SIZE = 224
EPSILON = 1e-3  # of the batch normalisations

Stage = collections.namedtuple("Stage", "kernel stride expansion repeats")
STAGES = [
    Stage(kernel=3, stride=1, expansion=1, repeats=1),
    Stage(kernel=3, stride=2, expansion=6, repeats=2),
    Stage(kernel=5, stride=2, expansion=6, repeats=2),
    Stage(kernel=3, stride=2, expansion=6, repeats=3),
    Stage(kernel=5, stride=1, expansion=6, repeats=3),
    Stage(kernel=5, stride=2, expansion=6, repeats=4),
    Stage(kernel=3, stride=1, expansion=6, repeats=1),
]


def main(checkpoint, out):
    network = Network(read_checkpoint(checkpoint))
    x = network.convolution("_conv_stem", "_bn0", "image", kernel=3, stride=2, relu6=True)
    block = 0
    for stage in STAGES:
        for repeat in range(stage.repeats):
            x = inverted_bottleneck(network, f"_blocks.{block}", x, stage, is_first=repeat == 0)
            block += 1
    x = network.convolution("_conv_head", "_bn1", x, kernel=1, relu6=True)
    x = network.node("Flatten", network.node("GlobalAveragePool", x))
    network.node("Gemm", x, network.weight("_fc.weight"), network.weight("_fc.bias"), transB=1, output="logits")
    onnx.save(network.model(), out)


def inverted_bottleneck(network, name, before, stage, is_first):
    """Widened, filtered channel by channel, narrowed; added to what came before it where the shapes are the same."""
    x = before
    if stage.expansion != 1:
        x = network.convolution(f"{name}._expand_conv", f"{name}._bn0", x, kernel=1, relu6=True)
    stride = stage.stride if is_first else 1
    depthwise = {"kernel": stage.kernel, "stride": stride, "relu6": True, "is_depthwise": True}
    x = network.convolution(f"{name}._depthwise_conv", f"{name}._bn1", x, **depthwise)
    x = network.convolution(f"{name}._project_conv", f"{name}._bn2", x, kernel=1)
    return x if is_first else network.node("Add", x, before)


class Network:
    """An ONNX graph under construction. Every method returns the name of the tensor it adds."""

    def __init__(self, weights):
        self.weights = weights
        self.nodes = []
        self.initializers = {}
        self.size = SIZE  # of the picture at this point

    def convolution(self, name, norm, x, kernel, stride=1, relu6=False, is_depthwise=False):
        scale = self.weights[f"{norm}.weight"] / np.sqrt(self.weights[f"{norm}.running_var"] + EPSILON)
        weight = self.weights[f"{name}.weight"] * scale[:, None, None, None]
        bias = self.weights[f"{norm}.bias"] - self.weights[f"{norm}.running_mean"] * scale
        x = self.node(
            "Conv",
            x,
            self.constant(f"{name}.weight", weight),
            self.constant(f"{name}.bias", bias),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=self.padding(kernel, stride),
            group=len(weight) if is_depthwise else 1,
        )
        limits = self.constant("zero", np.float32(0)), self.constant("six", np.float32(6))
        return self.node("Clip", x, *limits) if relu6 else x

    def padding(self, kernel, stride):
        """TensorFlow's: of an odd sum the larger half is on the right and below."""
        after = -(-self.size // stride)
        total = max((after - 1) * stride + kernel - self.size, 0)
        self.size = after
        smaller = total // 2
        return [smaller, smaller, total - smaller, total - smaller]

    def node(self, operator, *inputs, output=None, **attributes):
        name = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name):
        return self.constant(name, self.weights[name])

    def constant(self, name, array):
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.array(array, np.float32, order="C"), name)
        return name

    def model(self):
        graph = helper.make_graph(
            self.nodes,
            "efficientnet-lite0",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1000])],
            list(self.initializers.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="tessera")
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return model


def read_checkpoint(path):
    """The tensors of a checkpoint in the form before PyTorch 1.6: five pickles, then the values of one storage after the
    other. What the pickles may call is listed here, so they can run nothing else."""
    known = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: (storage, offset, size, stride),
        ("torch", "FloatStorage"): np.float32,
        ("torch", "LongStorage"): np.int64,
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            return known[module, name]

        def persistent_load(self, saved):
            _, dtype, key, *_ = saved
            return key, dtype

    with open(path, "rb") as file:
        _magic, _version, _types, tensors, keys = (Unpickler(file).load() for _ in range(5))
        dtypes = {key: np.dtype(dtype) for (key, dtype), *_ in tensors.values()}
        storages = {}
        for key in keys:
            count = int.from_bytes(file.read(8), "little")
            storages[key] = np.frombuffer(file.read(count * dtypes[key].itemsize), dtypes[key])

    def tensor(storage, offset, size, stride):
        values = storages[storage[0]][offset:]
        return np.lib.stride_tricks.as_strided(values, size, [step * values.itemsize for step in stride])

    return {name: tensor(*saved) for name, saved in tensors.items()}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
