//! Tensors on their way in and out: a numpy-like array of typed values, what the graph is fed, what it gave.

use half::{bf16, f16};
use tessera_sdk::{ElementType, Tensor, TensorInfo, TensorType};

/// numpy's element types, as far as JSON and a signature can produce them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dtype {
    Bool,
    Int8,
    Int16,
    Int32,
    Int64,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Float16,
    Float32,
    Float64,
    Text,
    Bytes,
    Datetime,
    Object,
}

impl Dtype {
    /// numpy's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int8 => "int8",
            Self::Int16 => "int16",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Uint8 => "uint8",
            Self::Uint16 => "uint16",
            Self::Uint32 => "uint32",
            Self::Uint64 => "uint64",
            Self::Float16 => "float16",
            Self::Float32 => "float32",
            Self::Float64 => "float64",
            Self::Text => "str",
            Self::Bytes => "bytes",
            Self::Datetime => "datetime64[ns]",
            Self::Object => "object",
        }
    }

    /// The type of this name in a tensor signature; one that JSON cannot fill (complex, timedelta) is an object.
    pub(crate) fn from_name(name: &str) -> Self {
        const NAMED: [Dtype; 13] = [
            Dtype::Bool,
            Dtype::Int8,
            Dtype::Int16,
            Dtype::Int32,
            Dtype::Int64,
            Dtype::Uint8,
            Dtype::Uint16,
            Dtype::Uint32,
            Dtype::Uint64,
            Dtype::Float16,
            Dtype::Float32,
            Dtype::Float64,
            Dtype::Text,
        ];
        match name {
            "bytes" => Self::Bytes,
            _ if name.starts_with("datetime64") => Self::Datetime,
            _ => NAMED.into_iter().find(|dtype| dtype.name() == name).unwrap_or(Self::Object),
        }
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::Float16 | Self::Float32 | Self::Float64)
    }

    /// Integers, their sizes in bytes and signs; none for all else, `Bool` included.
    pub(crate) fn integer(self) -> Option<(u32, Sign)> {
        match self {
            Self::Int8 => Some((1, Sign::Signed)),
            Self::Int16 => Some((2, Sign::Signed)),
            Self::Int32 => Some((4, Sign::Signed)),
            Self::Int64 => Some((8, Sign::Signed)),
            Self::Uint8 => Some((1, Sign::Unsigned)),
            Self::Uint16 => Some((2, Sign::Unsigned)),
            Self::Uint32 => Some((4, Sign::Unsigned)),
            Self::Uint64 => Some((8, Sign::Unsigned)),
            _ => None,
        }
    }
}

/// Whether an integer type has negative values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    Signed,
    Unsigned,
}

/// An n-dimensional array in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Array {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Values,
}

/// The elements, wide enough for every type: only the dtype says how narrow they are.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Values {
    /// Booleans as 0 and 1, and integers; `Uint64` by its bits.
    Ints(Vec<i64>),
    Floats(Vec<f64>),
    /// Text, and what stands in its place in such a column: no graph takes it, but a model's categories do.
    Texts(Vec<Option<String>>),
    /// Bytes, dates and objects. No graph takes them, so that only their number is kept.
    Opaque(usize),
}

impl Array {
    /// An array of one axis.
    pub(crate) fn column(dtype: Dtype, values: Values) -> Self {
        Self { dtype, shape: vec![values.len()], values }
    }

    /// The same values as another, wider type.
    pub(crate) fn widen(self, dtype: Dtype) -> Self {
        let values = match self.values {
            Values::Ints(ints) if dtype.is_float() => {
                let float = |value| narrow_float(int_to_float(value, self.dtype), dtype);
                Values::Floats(ints.into_iter().map(float).collect())
            }
            values => values,
        };
        Self { dtype, shape: self.shape, values }
    }
}

impl Values {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Ints(values) => values.len(),
            Self::Floats(values) => values.len(),
            Self::Texts(values) => values.len(),
            Self::Opaque(count) => *count,
        }
    }
}

/// An integer of this type as a float.
pub(crate) fn int_to_float(value: i64, dtype: Dtype) -> f64 {
    if dtype == Dtype::Uint64 { value as u64 as f64 } else { value as f64 }
}

/// Rounds to what the type can hold.
pub(crate) fn narrow_float(value: f64, dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Float16 => f16::from_f64(value).to_f64(),
        Dtype::Float32 => f64::from(value as f32),
        _ => value,
    }
}

/// A tensor for one input of the graph.
#[derive(Debug, PartialEq)]
pub(crate) struct Feed<'a> {
    pub(crate) name: &'a str,
    pub(crate) tensor: Tensor<'a>,
}

/// One output of the graph.
#[derive(Debug, PartialEq)]
pub(crate) struct Output<'a> {
    pub(crate) name: &'a str,
    pub(crate) element: ElementType,
    pub(crate) tensor: &'a Tensor<'static>,
}

/// Whether an axis of the graph takes this size, for all axes. A graph without dimensions has not declared any.
pub(crate) fn fits(dims: &[Option<u32>], shape: &[usize]) -> bool {
    dims.is_empty()
        || dims.len() == shape.len()
            && dims.iter().zip(shape).all(|(dim, size)| dim.is_none_or(|dim| dim as usize == *size))
}

/// The values as the graph's element type, little-endian. Values are taken to be in range: converting narrows, as
/// numpy's `astype` does.
pub(crate) fn bytes_of(values: &Values, element: ElementType) -> Vec<u8> {
    match values {
        Values::Ints(values) => ints_to_bytes(values, element),
        Values::Floats(values) => floats_to_bytes(values, element),
        Values::Texts(_) | Values::Opaque(_) => Vec::new(),
    }
}

fn ints_to_bytes(values: &[i64], element: ElementType) -> Vec<u8> {
    match element {
        ElementType::Bool => values.iter().map(|value| u8::from(*value != 0)).collect(),
        ElementType::U8 | ElementType::Int8 => values.iter().map(|value| *value as u8).collect(),
        ElementType::I32 => pack(values, |value| (value as i32).to_le_bytes()),
        ElementType::I64 => pack(values, |value| value.to_le_bytes()),
        ElementType::Fp16 | ElementType::Bf16 | ElementType::Fp32 | ElementType::Fp64 => {
            floats_to_bytes(&values.iter().map(|value| *value as f64).collect::<Vec<_>>(), element)
        }
    }
}

fn floats_to_bytes(values: &[f64], element: ElementType) -> Vec<u8> {
    match element {
        ElementType::Fp16 => pack(values, |value| f16::from_f64(value).to_le_bytes()),
        ElementType::Bf16 => pack(values, |value| bf16::from_f64(value).to_le_bytes()),
        ElementType::Fp32 => pack(values, |value| (value as f32).to_le_bytes()),
        ElementType::Fp64 => pack(values, |value| value.to_le_bytes()),
        ElementType::Bool | ElementType::U8 | ElementType::Int8 | ElementType::I32 | ElementType::I64 => {
            ints_to_bytes(&values.iter().map(|value| *value as i64).collect::<Vec<_>>(), element)
        }
    }
}

/// One copy per element into a buffer of the right size, which the compiler makes wide moves of.
fn pack<T: Copy, const BYTES: usize>(values: &[T], to_bytes: impl Fn(T) -> [u8; BYTES]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * BYTES];
    for (place, value) in bytes.chunks_exact_mut(BYTES).zip(values) {
        place.copy_from_slice(&to_bytes(*value));
    }
    bytes
}

/// A number of an output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scalar {
    Bool(bool),
    Int(i64),
    Float(f64),
}

impl<'a> Output<'a> {
    /// The elements in row-major order.
    pub(crate) fn scalars(&self) -> impl Iterator<Item = Scalar> + use<'a> {
        let element = self.element;
        self.tensor.bytes().chunks_exact(element_bytes(element)).map(move |bytes| scalar(bytes, element))
    }
}

pub(crate) fn element_bytes(element: ElementType) -> usize {
    match element {
        ElementType::U8 | ElementType::Bool | ElementType::Int8 => 1,
        ElementType::Fp16 | ElementType::Bf16 => 2,
        ElementType::Fp32 | ElementType::I32 => 4,
        ElementType::Fp64 | ElementType::I64 => 8,
    }
}

fn scalar(bytes: &[u8], element: ElementType) -> Scalar {
    match (element, bytes) {
        (ElementType::Bool, [byte]) => Scalar::Bool(*byte != 0),
        (ElementType::U8, [byte]) => Scalar::Int(i64::from(*byte)),
        (ElementType::Int8, [byte]) => Scalar::Int(i64::from(*byte as i8)),
        (ElementType::Fp16, &[a, b]) => Scalar::Float(f16::from_le_bytes([a, b]).to_f64()),
        (ElementType::Bf16, &[a, b]) => Scalar::Float(bf16::from_le_bytes([a, b]).to_f64()),
        (ElementType::Fp32, &[a, b, c, d]) => Scalar::Float(f64::from(f32::from_le_bytes([a, b, c, d]))),
        (ElementType::I32, &[a, b, c, d]) => Scalar::Int(i64::from(i32::from_le_bytes([a, b, c, d]))),
        (ElementType::I64, &[a, b, c, d, e, f, g, h]) => Scalar::Int(i64::from_le_bytes([a, b, c, d, e, f, g, h])),
        (_, &[a, b, c, d, e, f, g, h]) => Scalar::Float(f64::from_le_bytes([a, b, c, d, e, f, g, h])),
        // `chunks_exact` of the element's own size leaves no other pair.
        _ => Scalar::Float(f64::NAN),
    }
}

/// The element type of an output: the graph's description tells `bool` and `int8` from the bytes they travel as.
pub(crate) fn element_of(described: &TensorInfo, ty: TensorType) -> ElementType {
    match ty {
        _ if described.element.tensor_type() == ty => described.element,
        TensorType::Fp16 => ElementType::Fp16,
        TensorType::Fp32 => ElementType::Fp32,
        TensorType::Fp64 => ElementType::Fp64,
        TensorType::Bf16 => ElementType::Bf16,
        TensorType::U8 => ElementType::U8,
        TensorType::I32 => ElementType::I32,
        TensorType::I64 => ElementType::I64,
    }
}
