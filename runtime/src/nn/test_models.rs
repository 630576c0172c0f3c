//! Small ONNX models for the tests, written byte by byte: just enough of onnx.proto3.

use std::path::PathBuf;

/// `TensorProto.DataType`, the ones tests use.
pub(crate) const FLOAT: u64 = 1;
pub(crate) const UINT8: u64 = 2;
pub(crate) const INT8: u64 = 3;
pub(crate) const INT32: u64 = 6;
pub(crate) const INT64: u64 = 7;
pub(crate) const STRING: u64 = 8;
pub(crate) const BOOL: u64 = 9;
pub(crate) const FLOAT16: u64 = 10;
pub(crate) const DOUBLE: u64 = 11;
pub(crate) const BFLOAT16: u64 = 16;

/// A protobuf message being written.
#[derive(Default, Clone)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    pub(crate) fn int(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    pub(crate) fn bytes(mut self, field: u64, bytes: impl AsRef<[u8]>) -> Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.as_ref().len() as u64);
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    pub(crate) fn all(self, field: u64, messages: &[Message]) -> Self {
        messages.iter().fold(self, |message, part| message.bytes(field, &part.0))
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// `batch` is any size, a number is that size.
pub(crate) fn value(name: &str, element: u64, dims: &[&str]) -> Message {
    let shape = dims.iter().fold(Message::default(), |shape, dim| {
        let dimension = match dim.parse() {
            Ok(size) => Message::default().int(1, size),
            Err(_) => Message::default().bytes(2, dim),
        };
        shape.bytes(1, dimension.0)
    });
    let tensor = Message::default().int(1, element).bytes(2, shape.0);
    Message::default().bytes(1, name).bytes(2, Message::default().bytes(1, tensor.0).0)
}

pub(crate) fn node(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[Message]) -> Message {
    let node = inputs.iter().fold(Message::default(), |node, input| node.bytes(1, input));
    let node = outputs.iter().fold(node, |node, output| node.bytes(2, output));
    node.bytes(4, op).all(5, attributes)
}

pub(crate) fn int_attribute(name: &str, value: u64) -> Message {
    Message::default().bytes(1, name).int(3, value).int(20, 2)
}

pub(crate) fn graph_attribute(name: &str, graph: &Message) -> Message {
    Message::default().bytes(1, name).bytes(6, &graph.0).int(20, 5)
}

pub(crate) fn tensor_attribute(name: &str, tensor: &Message) -> Message {
    Message::default().bytes(1, name).bytes(5, &tensor.0).int(20, 4)
}

pub(crate) fn tensor(name: &str, element: u64, dims: &[u64], data: &[u8]) -> Message {
    let tensor = dims.iter().fold(Message::default(), |tensor, &dim| tensor.int(1, dim));
    tensor.int(2, element).bytes(8, name).bytes(9, data)
}

pub(crate) fn external_tensor(name: &str, dims: &[u64], location: &str) -> Message {
    let entry = Message::default().bytes(1, "location").bytes(2, location);
    let tensor = dims.iter().fold(Message::default(), |tensor, &dim| tensor.int(1, dim));
    tensor.int(2, FLOAT).bytes(8, name).bytes(13, entry.0).int(14, 1)
}

pub(crate) fn graph(nodes: &[Message], inputs: &[Message], outputs: &[Message], initializers: &[Message]) -> Message {
    Message::default().all(1, nodes).bytes(2, "g").all(5, initializers).all(11, inputs).all(12, outputs)
}

/// A model file's bytes.
pub(crate) fn model(graph: &Message) -> Vec<u8> {
    let opset = Message::default().bytes(1, "").int(2, 13);
    Message::default().int(1, 8).bytes(7, &graph.0).bytes(8, opset.0).0
}

/// One operator from `x` to `y`.
pub(crate) fn unary(op: &str, from: u64, to: u64, dims: &[&str], attributes: &[Message]) -> Vec<u8> {
    let node = node(op, &["x"], &["y"], attributes);
    model(&graph(&[node], &[value("x", from, dims)], &[value("y", to, dims)], &[]))
}

/// `y = x · w + b`: x `[batch, 3]`, y `[batch, 2]`, with the weights below.
pub(crate) fn linear() -> Vec<u8> {
    let nodes = [node("MatMul", &["x", "w"], &["xw"], &[]), node("Add", &["xw", "b"], &["y"], &[])];
    let weights = [tensor("w", FLOAT, &[3, 2], &f32s(&LINEAR_W)), tensor("b", FLOAT, &[2], &f32s(&LINEAR_B))];
    // An older exporter's habit: an initializer listed among the inputs.
    let inputs = [value("w", FLOAT, &["3", "2"]), value("x", FLOAT, &["batch", "3"])];
    model(&graph(&nodes, &inputs, &[value("y", FLOAT, &["batch", "2"])], &weights))
}

/// `y = tanh(x · w)`: x `[batch, 512]`, y `[batch, 600]`, with random weights of more than a megabyte.
pub(crate) fn wide() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(3);
    let weights: Vec<f32> = (0..512 * 600).map(|_| random.f32() * 0.1 - 0.05).collect();
    let nodes = [node("MatMul", &["x", "w"], &["xw"], &[]), node("Tanh", &["xw"], &["y"], &[])];
    let weights = [tensor("w", FLOAT, &[512, 600], &f32s(&weights))];
    let (x, y) = (value("x", FLOAT, &["batch", "512"]), value("y", FLOAT, &["batch", "600"]));
    model(&graph(&nodes, &[x], &[y], &weights))
}

pub(crate) const LINEAR_W: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
pub(crate) const LINEAR_B: [f32; 2] = [0.5, -0.5];

pub(crate) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A model file that is gone with the folder.
pub(crate) struct ModelFile {
    folder: tempfile::TempDir,
}

impl ModelFile {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let file = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("model.onnx")
    }

    pub(crate) fn beside(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.folder.path().join(name), bytes).unwrap();
    }
}
