//! Reads an ONNX file's signature without a backend and without its weights: what a deploy shows and checks before any
//! library sees the file, and the gate in front of every load.
//!
//! It walks the protobuf wire format and seeks over what it does not need, so a file of gigabytes costs its node list.
//! The file is hostile until proven otherwise: every length is checked against the message around it, nesting and the
//! memory kept are bounded, and each byte is read at most once.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek};
use std::path::Path;
use std::sync::Arc;

use crate::nn::{Dim, ElementType, GraphInfo, NnError, NnErrorKind, RANK_MAX, TensorInfo};

/// Deepest nesting of messages, as in Google's own parser: subgraphs in attributes in nodes count three each.
const DEPTH_MAX: u32 = 100;

/// Longest name of an input, output, dimension or external file, in bytes.
const NAME_BYTES_MAX: u64 = 4096;

/// Most bytes of names kept while reading: a model of 100,000 initializers needs about 10 MB.
const KEPT_BYTES_MAX: u64 = 64 << 20;

/// What keeping one name costs beside its bytes, about.
const KEPT_ENTRY_BYTES: u64 = 64;

/// Most inputs, and most outputs. Decoders with a cache per layer have some 200.
const TENSORS_MAX: usize = 4096;

/// The signature of the ONNX model at `path`. `NotFound` without a file, `InvalidEncoding` when it is not an ONNX model,
/// `UnsupportedOperation` when an input or output cannot cross `wasi:nn`, `Security` when it reads weights from a file
/// that is not in `external_files` (plain names, beside the model), `TooLarge` past the limits above.
pub fn inspect(path: &Path, external_files: &[String]) -> Result<GraphInfo, NnError> {
    let file = File::open(path).map_err(unreadable)?;
    let end = file.metadata().map_err(unreadable)?.len();
    Ok(inspect_reader(Box::new(file), end, external_files)?.0)
}

/// The same for a model that is not a plain file, with those of the `external_files` that it names, in the order of their
/// names; `end` is its length in bytes.
pub fn inspect_reader(
    model: Box<dyn ReadSeek>,
    end: u64,
    external_files: &[String],
) -> Result<(GraphInfo, Vec<String>), NnError> {
    let mut inspector = Inspector {
        wire: Wire { input: BufReader::new(model), at: 0 },
        external_files,
        weights: BTreeSet::new(),
        depth: 0,
        kept_bytes: 0,
        graphs: 0,
        inputs: Vec::new(),
        outputs: Vec::new(),
        metadata: BTreeMap::new(),
        initializers: HashSet::new(),
    };
    inspector.model(end)?;
    let weights = std::mem::take(&mut inspector.weights).into_iter().collect();
    Ok((inspector.finish()?, weights))
}

/// What a model can be read from.
pub trait ReadSeek: Read + Seek {}

impl<T: Read + Seek> ReadSeek for T {}

fn unreadable(error: std::io::Error) -> NnError {
    match error.kind() {
        ErrorKind::NotFound => NnError::new(NnErrorKind::NotFound, "the model file does not exist"),
        ErrorKind::UnexpectedEof => malformed("it is cut off"),
        kind => NnError::runtime(format!("failed to read the model file: {kind}")),
    }
}

fn malformed(why: &str) -> NnError {
    NnError::invalid_encoding(format!("not a valid ONNX model: {why}"))
}

struct Inspector<'a> {
    wire: Wire,
    external_files: &'a [String],
    /// Those of them that were met.
    weights: BTreeSet<String>,
    depth: u32,
    kept_bytes: u64,
    graphs: u32,
    inputs: Vec<Declared>,
    outputs: Vec<Declared>,
    metadata: BTreeMap<String, String>,
    initializers: HashSet<String>,
}

/// An input or output before it is known whether it counts: older files list the initializers among the inputs.
#[derive(Default)]
struct Declared {
    name: String,
    ty: DeclaredType,
    dims: Option<Vec<Dim>>,
}

#[derive(Default)]
enum DeclaredType {
    #[default]
    Absent,
    /// `TensorProto.DataType`
    Tensor(u64),
    NotATensor(&'static str),
}

/// Which graph is read: only the model's own has the signature.
#[derive(Clone, Copy, PartialEq)]
enum GraphRole {
    Main,
    Nested,
}

/// Field numbers below are those of onnx.proto3. A field of another wire type than its own is skipped like an unknown
/// one, as Google's parser does; a message that comes twice is merged, likewise.
impl Inspector<'_> {
    fn model(&mut self, end: u64) -> Result<(), NnError> {
        while let Some(field) = self.wire.field(end)? {
            match field {
                (7, Value::Bytes(end)) => {
                    self.graphs += 1;
                    self.graph(end, GraphRole::Main)?;
                }
                (14, Value::Bytes(end)) => self.property(end)?,
                (20, Value::Bytes(end)) => self.nested(end, Self::training)?,
                (25, Value::Bytes(end)) => self.nested(end, Self::function)?,
                (_, value) => self.wire.skip(value)?,
            }
        }
        Ok(())
    }

    /// One of the model's own facts. One that is too long to be a name is not kept.
    fn property(&mut self, end: u64) -> Result<(), NnError> {
        let (mut key, mut fact) = (None, None);
        while let Some(field) = self.wire.field(end)? {
            match field {
                (1, Value::Bytes(end)) if end - self.wire.at <= NAME_BYTES_MAX => key = Some(self.text(end)?),
                (2, Value::Bytes(end)) if end - self.wire.at <= NAME_BYTES_MAX => fact = Some(self.text(end)?),
                (_, value) => self.wire.skip(value)?,
            }
        }
        self.metadata.extend(key.zip(fact));
        Ok(())
    }

    fn training(&mut self, end: u64) -> Result<(), NnError> {
        while let Some(field) = self.wire.field(end)? {
            match field {
                (1 | 2, Value::Bytes(end)) => self.nested(end, |it, end| it.graph(end, GraphRole::Nested))?,
                (_, value) => self.wire.skip(value)?,
            }
        }
        Ok(())
    }

    fn function(&mut self, end: u64) -> Result<(), NnError> {
        while let Some(field) = self.wire.field(end)? {
            match field {
                (7, Value::Bytes(end)) => self.nested(end, Self::node)?,
                (11, Value::Bytes(end)) => self.nested(end, Self::attribute)?,
                (_, value) => self.wire.skip(value)?,
            }
        }
        Ok(())
    }

    fn graph(&mut self, end: u64, role: GraphRole) -> Result<(), NnError> {
        let main = role == GraphRole::Main;
        while let Some(field) = self.wire.field(end)? {
            match field {
                (1, Value::Bytes(end)) => self.nested(end, Self::node)?,
                (5, Value::Bytes(end)) => {
                    let name = self.tensor(end)?;
                    self.initializers.extend(name.filter(|_| main));
                }
                (15, Value::Bytes(end)) => {
                    let name = self.sparse_tensor(end)?;
                    self.initializers.extend(name.filter(|_| main));
                }
                (11, Value::Bytes(end)) if main => {
                    let input = self.value_info(end)?;
                    self.inputs.push(input);
                }
                (12, Value::Bytes(end)) if main => {
                    let output = self.value_info(end)?;
                    self.outputs.push(output);
                }
                (_, value) => self.wire.skip(value)?,
            }
        }
        Ok(())
    }

    fn node(&mut self, end: u64) -> Result<(), NnError> {
        while let Some(field) = self.wire.field(end)? {
            match field {
                (5, Value::Bytes(end)) => self.nested(end, Self::attribute)?,
                (_, value) => self.wire.skip(value)?,
            }
        }
        Ok(())
    }

    fn attribute(&mut self, end: u64) -> Result<(), NnError> {
        while let Some(field) = self.wire.field(end)? {
            match field {
                (5 | 10, Value::Bytes(end)) => drop(self.tensor(end)?),
                (22 | 23, Value::Bytes(end)) => drop(self.sparse_tensor(end)?),
                (6 | 11, Value::Bytes(end)) => self.nested(end, |it, end| it.graph(end, GraphRole::Nested))?,
                (_, value) => self.wire.skip(value)?,
            }
        }
        Ok(())
    }

    /// A tensor's name, after making sure that its data is in this file or in one that is allowed.
    fn tensor(&mut self, end: u64) -> Result<Option<String>, NnError> {
        let (mut name, mut external, mut located) = (None, false, false);
        while let Some(field) = self.wire.field(end)? {
            match field {
                (8, Value::Bytes(end)) => name = Some(self.text(end)?),
                (13, Value::Bytes(end)) => {
                    external = true;
                    located |= self.external_entry(end)?;
                }
                (14, Value::Varint(location)) => external |= location != 0,
                (_, value) => self.wire.skip(value)?,
            }
        }
        if external && !located {
            return Err(malformed("a tensor's data is in another file that is not named"));
        }
        Ok(name)
    }

    /// One key and value of a tensor's external data; true when it is the location, and that is allowed.
    fn external_entry(&mut self, end: u64) -> Result<bool, NnError> {
        let (mut key, mut value) = (String::new(), String::new());
        while let Some(field) = self.wire.field(end)? {
            match field {
                (1, Value::Bytes(end)) => key = self.text(end)?,
                (2, Value::Bytes(end)) => value = self.text(end)?,
                (_, other) => self.wire.skip(other)?,
            }
        }
        // Whatever the list says, a name with a separator could lead out of the model's folder.
        let plain = !value.contains(['/', '\\', '\0']) && !matches!(value.as_str(), "" | "." | "..");
        match key.as_str() {
            "location" if plain && self.external_files.contains(&value) => {
                self.weights.insert(value);
                Ok(true)
            }
            "location" => Err(NnError::new(
                NnErrorKind::Security,
                format!(
                    "the model reads weights from the file {value:?}, which is not part of the package: add it beside \
                     the model, or save the model in one file"
                ),
            )),
            _ => Ok(false),
        }
    }

    fn sparse_tensor(&mut self, end: u64) -> Result<Option<String>, NnError> {
        let mut name = None;
        while let Some(field) = self.wire.field(end)? {
            match field {
                (1, Value::Bytes(end)) => name = self.tensor(end)?,
                (2, Value::Bytes(end)) => drop(self.tensor(end)?),
                (_, value) => self.wire.skip(value)?,
            }
        }
        Ok(name)
    }

    fn value_info(&mut self, end: u64) -> Result<Declared, NnError> {
        let mut declared = Declared::default();
        while let Some(field) = self.wire.field(end)? {
            match field {
                (1, Value::Bytes(end)) => declared.name = self.text(end)?,
                (2, Value::Bytes(end)) => self.type_proto(end, &mut declared)?,
                (_, value) => self.wire.skip(value)?,
            }
        }
        // Counted before initializers are taken out, so that the list stays bounded while it is read; the larger part
        // of a pre-2020 file's inputs are initializers, hence the factor.
        if self.inputs.len().max(self.outputs.len()) >= TENSORS_MAX * 64 {
            return Err(too_many("declared inputs or outputs", TENSORS_MAX * 64));
        }
        Ok(declared)
    }

    fn type_proto(&mut self, end: u64, declared: &mut Declared) -> Result<(), NnError> {
        while let Some(field) = self.wire.field(end)? {
            let other = match field {
                (1, Value::Bytes(end)) => {
                    self.tensor_type(end, declared)?;
                    continue;
                }
                (4, Value::Bytes(_)) => "a sequence",
                (5, Value::Bytes(_)) => "a map",
                (7, Value::Bytes(_)) => "an opaque value",
                (8, Value::Bytes(_)) => "a sparse tensor",
                (9, Value::Bytes(_)) => "an optional value",
                (_, value) => {
                    self.wire.skip(value)?;
                    continue;
                }
            };
            self.wire.skip(field.1)?;
            declared.ty = DeclaredType::NotATensor(other);
        }
        Ok(())
    }

    fn tensor_type(&mut self, end: u64, declared: &mut Declared) -> Result<(), NnError> {
        declared.ty = DeclaredType::Tensor(0);
        while let Some(field) = self.wire.field(end)? {
            match field {
                (1, Value::Varint(code)) => declared.ty = DeclaredType::Tensor(code),
                (2, Value::Bytes(end)) => self.shape(end, declared.dims.get_or_insert_default())?,
                (_, value) => self.wire.skip(value)?,
            }
        }
        Ok(())
    }

    fn shape(&mut self, end: u64, dims: &mut Vec<Dim>) -> Result<(), NnError> {
        while let Some(field) = self.wire.field(end)? {
            match field {
                (1, Value::Bytes(_)) if dims.len() == RANK_MAX => return Err(too_many("dimensions", RANK_MAX)),
                (1, Value::Bytes(end)) => {
                    let dim = self.dimension(end)?;
                    dims.push(dim);
                }
                (_, value) => self.wire.skip(value)?,
            }
        }
        Ok(())
    }

    fn dimension(&mut self, end: u64) -> Result<Dim, NnError> {
        let mut dim = Dim::Free(None);
        while let Some(field) = self.wire.field(end)? {
            match field {
                // Some exporters write "any size" as -1 instead of leaving the value out.
                (1, Value::Varint(size)) if (size as i64) < 0 => dim = Dim::Free(None),
                (1, Value::Varint(size)) => {
                    let size = u32::try_from(size).map_err(|_| malformed("a dimension is larger than 2^32"))?;
                    dim = Dim::Fixed(size);
                }
                (2, Value::Bytes(end)) => dim = Dim::Free(Some(self.text(end)?).filter(|symbol| !symbol.is_empty())),
                (_, value) => self.wire.skip(value)?,
            }
        }
        Ok(dim)
    }

    fn nested(&mut self, end: u64, read: impl FnOnce(&mut Self, u64) -> Result<(), NnError>) -> Result<(), NnError> {
        if self.depth == DEPTH_MAX {
            return Err(malformed("its graphs are nested too deeply"));
        }
        self.depth += 1;
        read(self, end)?;
        self.depth -= 1;
        Ok(())
    }

    fn text(&mut self, end: u64) -> Result<String, NnError> {
        let length = end - self.wire.at;
        self.kept_bytes += length + KEPT_ENTRY_BYTES;
        if length > NAME_BYTES_MAX || self.kept_bytes > KEPT_BYTES_MAX {
            return Err(NnError::new(
                NnErrorKind::TooLarge,
                format!("the model's names are longer than {NAME_BYTES_MAX} bytes, or {KEPT_BYTES_MAX} together"),
            ));
        }
        let text = String::from_utf8(self.wire.take(end)?).map_err(|_| malformed("a name is not UTF-8"))?;
        match text.contains('\0') {
            true => Err(malformed("a name contains a zero byte")),
            false => Ok(text),
        }
    }

    fn finish(mut self) -> Result<GraphInfo, NnError> {
        if self.graphs == 0 {
            return Err(malformed("it holds no graph"));
        }
        self.inputs.retain(|input| !self.initializers.contains(&input.name));
        if self.outputs.is_empty() {
            return Err(malformed("its graph has no outputs"));
        }
        let inputs = signature("input", self.inputs)?;
        Ok(GraphInfo { inputs, outputs: signature("output", self.outputs)?, metadata: Arc::new(self.metadata) })
    }
}

fn too_many(what: &str, most: usize) -> NnError {
    NnError::new(NnErrorKind::TooLarge, format!("the model has too many {what}, the most is {most}"))
}

fn signature(what: &str, declared: Vec<Declared>) -> Result<Vec<TensorInfo>, NnError> {
    if declared.len() > TENSORS_MAX {
        return Err(too_many(&format!("{what}s"), TENSORS_MAX));
    }
    let mut names = HashSet::new();
    let mut infos = Vec::with_capacity(declared.len());
    for Declared { name, ty, dims } in declared {
        if name.is_empty() || !names.insert(name.clone()) {
            return Err(malformed(&format!("the name {name:?} is not that of exactly one {what}")));
        }
        let code = match ty {
            DeclaredType::Tensor(code) => code,
            DeclaredType::Absent => return Err(malformed(&format!("{what} {name:?} has no type"))),
            DeclaredType::NotATensor(kind) => {
                return Err(NnError::unsupported(format!(
                    "{what} {name:?} is {kind}, and only tensors can cross wasi:nn: export the model with tensor \
                     inputs and outputs (for scikit-learn classifiers, with zipmap=False)"
                )));
            }
        };
        let element = element_type(code).map_err(|found| {
            NnError::unsupported(format!("{what} {name:?} has elements of type {found}, which wasi:nn does not have"))
        })?;
        infos.push(TensorInfo { name, element, dims });
    }
    Ok(infos)
}

/// `TensorProto.DataType`, or the name of one that cannot cross `wasi:nn`.
pub(super) fn element_type(code: u64) -> Result<ElementType, String> {
    Ok(match code {
        1 => ElementType::Fp32,
        2 => ElementType::U8,
        3 => ElementType::Int8,
        6 => ElementType::I32,
        7 => ElementType::I64,
        9 => ElementType::Bool,
        10 => ElementType::Fp16,
        11 => ElementType::Fp64,
        16 => ElementType::Bf16,
        4 => return Err("UINT16".to_owned()),
        5 => return Err("INT16".to_owned()),
        8 => return Err("STRING".to_owned()),
        12 => return Err("UINT32".to_owned()),
        13 => return Err("UINT64".to_owned()),
        other => return Err(format!("{other} (onnx.TensorProto.DataType)")),
    })
}

/// A cursor over the protobuf wire format. `at` never passes the `end` of the message being read.
struct Wire {
    input: BufReader<Box<dyn ReadSeek>>,
    at: u64,
}

#[derive(Clone, Copy)]
enum Value {
    Varint(u64),
    /// Four or eight bytes, not read yet: nothing here needs them.
    Fixed(u64),
    /// A string, bytes or message, up to this position.
    Bytes(u64),
}

impl Wire {
    /// The next field of the message that ends at `end`: its number and value.
    fn field(&mut self, end: u64) -> Result<Option<(u64, Value)>, NnError> {
        if self.at == end {
            return Ok(None);
        }
        let key = self.varint(end)?;
        let number = key >> 3;
        if number == 0 || number > (1 << 29) - 1 {
            return Err(malformed("a field has an impossible number"));
        }
        let value = match key & 7 {
            0 => Value::Varint(self.varint(end)?),
            1 => Value::Fixed(self.within(8, end)?),
            2 => {
                let length = self.varint(end)?;
                Value::Bytes(self.within(length, end)?)
            }
            5 => Value::Fixed(self.within(4, end)?),
            // Groups (3, 4) were never part of ONNX.
            _ => return Err(malformed("a field has an unknown wire type")),
        };
        Ok(Some((number, value)))
    }

    /// The position `length` bytes ahead, if the message that ends at `end` has them.
    fn within(&self, length: u64, end: u64) -> Result<u64, NnError> {
        let position = self.at.checked_add(length).filter(|&position| position <= end);
        position.ok_or_else(|| malformed("a field is longer than what contains it"))
    }

    fn varint(&mut self, end: u64) -> Result<u64, NnError> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            self.within(1, end)?;
            let mut byte = [0];
            self.input.read_exact(&mut byte).map_err(unreadable)?;
            self.at += 1;
            number |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(number);
            }
        }
        Err(malformed("a number is longer than 64 bits"))
    }

    fn skip(&mut self, value: Value) -> Result<(), NnError> {
        let (Value::Bytes(end) | Value::Fixed(end)) = value else { return Ok(()) };
        let distance = i64::try_from(end - self.at).map_err(|_| malformed("a field is longer than 2^63 bytes"))?;
        self.input.seek_relative(distance).map_err(unreadable)?;
        self.at = end;
        Ok(())
    }

    /// The bytes up to `end`, whose distance the caller has bounded.
    fn take(&mut self, end: u64) -> Result<Vec<u8>, NnError> {
        let mut bytes = vec![0; (end - self.at) as usize];
        self.input.read_exact(&mut bytes).map_err(unreadable)?;
        self.at = end;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::test_models::*;

    /// Rounds of random changes; raise it to look harder.
    const ROUNDS: u32 = 500;

    fn inspect_bytes(bytes: &[u8]) -> Result<GraphInfo, NnError> {
        inspect(&ModelFile::new(bytes).path(), &[])
    }

    fn with_input_type(input_type: Message) -> Vec<u8> {
        let input = Message::default().bytes(1, "x").bytes(2, input_type.0);
        model(&graph(&[], &[input], &[value("y", FLOAT, &["n"])], &[]))
    }

    #[test]
    fn a_signature_has_names_types_dimensions_and_symbols_in_order() {
        let info = inspect_bytes(&linear()).unwrap();
        let text = |infos: &[TensorInfo]| infos.iter().map(|info| format!("{} {info}", info.name)).collect::<Vec<_>>();
        assert_eq!(text(&info.inputs), ["x FP32 [batch, 3]"], "w is an initializer");
        assert_eq!(text(&info.outputs), ["y FP32 [batch, 2]"]);
        let scalar = inspect_bytes(&unary("Cast", INT8, BOOL, &[], &[])).unwrap();
        assert_eq!(text(&scalar.inputs), ["x INT8 (as U8) []"]);
        assert_eq!(text(&scalar.outputs), ["y BOOL (as U8) []"]);
    }

    #[test]
    fn a_dimension_without_a_size_is_free_and_a_shape_that_is_absent_is_no_shape() {
        let dims = Message::default().bytes(1, "").bytes(1, Message::default().int(1, u64::MAX).0);
        let tensor = Message::default().int(1, FLOAT).bytes(2, dims.0);
        let info = inspect_bytes(&with_input_type(Message::default().bytes(1, tensor.0))).unwrap();
        assert_eq!(info.inputs[0].dims, Some(vec![Dim::Free(None), Dim::Free(None)]));

        let unshaped = Message::default().bytes(1, Message::default().int(1, FLOAT).0);
        let info = inspect_bytes(&with_input_type(unshaped)).unwrap();
        assert_eq!(info.inputs[0].dims, None);
    }

    #[test]
    fn what_cannot_cross_wasi_nn_is_refused_with_the_way_out() {
        for field in [4, 5, 7, 8, 9] {
            let error = inspect_bytes(&with_input_type(Message::default().bytes(field, ""))).unwrap_err();
            assert_eq!(error.kind(), NnErrorKind::UnsupportedOperation);
            assert!(error.to_string().contains("zipmap=False"), "{error}");
        }
        let error = inspect_bytes(&unary("Identity", STRING, FLOAT, &["n"], &[])).unwrap_err();
        assert_eq!(error.kind(), NnErrorKind::UnsupportedOperation);
        assert!(error.to_string().contains(r#"input "x" has elements of type STRING"#), "{error}");
    }

    #[test]
    fn a_reference_to_another_file_is_found_wherever_it_hides() {
        let outside = external_tensor("w", &[2], "w.bin");
        let y = || [value("y", FLOAT, &["2"])];
        let constant = node("Constant", &[], &["y"], &[tensor_attribute("value", &outside)]);
        let hidden = graph(std::slice::from_ref(&constant), &[], &y(), &[]);
        let branch = node("If", &["c"], &["y"], &[graph_attribute("then_branch", &hidden)]);
        let sparse = Message::default().bytes(1, &outside.0);
        let function = Message::default().all(7, std::slice::from_ref(&constant));
        let plain = graph(&[], &[], &y(), &[]);
        let training = Message::default().bytes(2, &hidden.0);
        let models = [
            model(&graph(&[], &[], &y(), std::slice::from_ref(&outside))),
            model(&graph(&[constant], &[], &y(), &[])),
            model(&graph(&[branch], &[value("c", BOOL, &[])], &y(), &[])),
            model(&Message(plain.0.clone()).bytes(15, sparse.0)),
            [model(&plain), Message::default().bytes(25, function.0).0].concat(),
            [model(&plain), Message::default().bytes(20, training.0).0].concat(),
        ];
        for bytes in models {
            let file = ModelFile::new(&bytes);
            assert_eq!(inspect(&file.path(), &[]).unwrap_err().kind(), NnErrorKind::Security);
            assert!(inspect(&file.path(), &["w.bin".into()]).is_ok());
        }
        let unnamed = Message::default().int(14, 1);
        assert_eq!(
            inspect_bytes(&model(&graph(&[], &[], &y(), &[unnamed]))).unwrap_err().kind(),
            NnErrorKind::InvalidEncoding
        );
    }

    #[test]
    fn limits_hold() {
        let kind = |bytes: &[u8]| inspect_bytes(bytes).unwrap_err().kind();
        let long = "x".repeat(NAME_BYTES_MAX as usize + 1);
        assert_eq!(kind(&model(&graph(&[], &[], &[value(&long, FLOAT, &[])], &[]))), NnErrorKind::TooLarge);
        assert_eq!(kind(&unary("Neg", FLOAT, FLOAT, &["1"; RANK_MAX + 1], &[])), NnErrorKind::TooLarge);
        let many: Vec<_> = (0..=TENSORS_MAX).map(|index| value(&format!("x{index}"), FLOAT, &[])).collect();
        assert_eq!(kind(&model(&graph(&[], &many, &[value("y", FLOAT, &[])], &[]))), NnErrorKind::TooLarge);
        let twice = [value("y", FLOAT, &[]), value("y", FLOAT, &[])];
        assert_eq!(kind(&model(&graph(&[], &[], &twice, &[]))), NnErrorKind::InvalidEncoding);
        assert_eq!(kind(&model(&graph(&[], &[], &[], &[]))), NnErrorKind::InvalidEncoding);

        // Each level is an attribute in a node in a graph, so 50 levels are past 100 messages.
        let deep = (0..50).fold(graph(&[], &[], &[], &[]), |inner, _| {
            graph(&[node("If", &[], &[], &[graph_attribute("then_branch", &inner)])], &[], &[], &[])
        });
        assert_eq!(kind(&model(&deep)), NnErrorKind::InvalidEncoding);
    }

    #[test]
    fn a_file_that_is_cut_anywhere_or_changed_at_random_never_panics() {
        let whole = linear();
        let file = ModelFile::new(&whole);
        let try_bytes = |bytes: &[u8]| {
            file.beside("model.onnx", bytes);
            inspect(&file.path(), &[])
        };
        for end in 0..whole.len() {
            // Only a cut between two fields of the model itself leaves a good one.
            if let Err(error) = try_bytes(&whole[..end]) {
                assert_eq!(error.kind(), NnErrorKind::InvalidEncoding, "cut at {end}: {error}");
            }
        }
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..ROUNDS {
            let mut bytes = whole.clone();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            let _ = try_bytes(&bytes);
            let noise: Vec<u8> = (0..random.usize(..200)).map(|_| random.u8(..)).collect();
            let _ = try_bytes(&noise);
        }
        // A length of 2^63 must not be allocated, nor wrap around.
        let huge = [0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(try_bytes(&huge).unwrap_err().kind(), NnErrorKind::InvalidEncoding);
    }
}
