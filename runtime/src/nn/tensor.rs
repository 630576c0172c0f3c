//! Tensors as `wasi:nn` has them: an element type, dimensions and row-major bytes, always consistent with each other.

use bytes::Bytes;

use super::NnError;

/// The most dimensions a tensor may have. Models use at most 6; a bound keeps shape arithmetic and messages small.
pub const RANK_MAX: usize = 8;

/// Element types that can cross `wasi:nn`. Little-endian in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// IEEE 754 half precision.
    Fp16,
    /// IEEE 754 single precision.
    Fp32,
    /// IEEE 754 double precision.
    Fp64,
    /// Brain float: the upper half of an [`Fp32`](Self::Fp32).
    Bf16,
    /// Unsigned byte.
    U8,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer.
    I64,
}

impl TensorType {
    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::Fp16 | Self::Bf16 => 2,
            Self::Fp32 | Self::I32 => 4,
            Self::Fp64 | Self::I64 => 8,
        }
    }

    /// The name in the WIT, which is also the one for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp16 => "FP16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bf16 => "BF16",
            Self::U8 => "U8",
            Self::I32 => "I32",
            Self::I64 => "I64",
        }
    }
}

/// Element types of a graph's inputs and outputs: those of `wasi:nn`, and two that models use and the WIT lacks. These
/// travel as [`TensorType::U8`]: a bool as 0 or 1, an int8 as its bit pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// See [`TensorType::Fp16`].
    Fp16,
    /// See [`TensorType::Fp32`].
    Fp32,
    /// See [`TensorType::Fp64`].
    Fp64,
    /// See [`TensorType::Bf16`].
    Bf16,
    /// See [`TensorType::U8`].
    U8,
    /// See [`TensorType::I32`].
    I32,
    /// See [`TensorType::I64`].
    I64,
    /// One byte, 0 or 1; travels as U8.
    Bool,
    /// Signed byte; travels as U8.
    Int8,
}

impl ElementType {
    /// The type in which such elements cross `wasi:nn`.
    pub fn travels_as(self) -> TensorType {
        match self {
            Self::Fp16 => TensorType::Fp16,
            Self::Fp32 => TensorType::Fp32,
            Self::Fp64 => TensorType::Fp64,
            Self::Bf16 => TensorType::Bf16,
            Self::U8 | Self::Bool | Self::Int8 => TensorType::U8,
            Self::I32 => TensorType::I32,
            Self::I64 => TensorType::I64,
        }
    }

    /// The name for messages and descriptions.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Int8 => "INT8",
            other => other.travels_as().name(),
        }
    }
}

/// An immutable tensor; a clone shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    ty: TensorType,
    dims: Vec<u32>,
    data: Bytes,
}

impl Tensor {
    /// Checks that `data` holds exactly the elements that `dims` promise, at most [`RANK_MAX`] dimensions. No dimensions
    /// is a scalar: one element. Otherwise `InvalidArgument`.
    pub fn new(ty: TensorType, dims: Vec<u32>, data: impl Into<Bytes>) -> Result<Self, NnError> {
        let data = data.into();
        if dims.len() > RANK_MAX {
            return Err(NnError::invalid_argument(format!(
                "tensor has {} dimensions, the most is {RANK_MAX}",
                dims.len()
            )));
        }
        match size_bytes(ty, &dims) {
            Some(expected) if expected == data.len() => Ok(Self { ty, dims, data }),
            Some(expected) => Err(NnError::invalid_argument(format!(
                "tensor {} {dims:?} needs {expected} bytes, got {}",
                ty.name(),
                data.len()
            ))),
            None => Err(NnError::invalid_argument(format!(
                "tensor {} {dims:?} is larger than this machine can address",
                ty.name()
            ))),
        }
    }

    /// Type of the elements.
    pub fn ty(&self) -> TensorType {
        self.ty
    }

    /// Size of each dimension, outermost first; empty for a scalar.
    pub fn dims(&self) -> &[u32] {
        &self.dims
    }

    /// The elements, row-major, little-endian, not necessarily aligned.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The elements without the rest.
    pub fn into_data(self) -> Bytes {
        self.data
    }

    /// The same element under other dimensions: only between a scalar `[]` and `[1]`, which hold one element both.
    pub(super) fn with_scalar_dims(mut self, dims: Vec<u32>) -> Self {
        debug_assert_eq!(size_bytes(self.ty, &dims), Some(self.data.len()));
        self.dims = dims;
        self
    }
}

/// Bytes of a dense tensor; `None` when that overflows.
pub(super) fn size_bytes(ty: TensorType, dims: &[u32]) -> Option<usize> {
    // A zero anywhere makes the tensor empty, whatever the product of the others would overflow to.
    if dims.contains(&0) {
        return Some(0);
    }
    dims.iter().try_fold(ty.size_bytes(), |bytes, &dim| bytes.checked_mul(usize::try_from(dim).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::NnErrorKind;

    #[test]
    fn a_tensor_holds_exactly_what_its_dimensions_promise() {
        assert!(Tensor::new(TensorType::Fp32, vec![2, 3], vec![0; 24]).is_ok());
        assert!(Tensor::new(TensorType::I64, vec![], vec![0; 8]).is_ok(), "a scalar is one element");
        assert!(Tensor::new(TensorType::I64, vec![0, u32::MAX, u32::MAX, u32::MAX], vec![]).is_ok(), "empty");
        for (dims, len) in [(vec![2, 3], 23), (vec![2, 3], 25), (vec![], 0), (vec![1; RANK_MAX + 1], 4)] {
            let error = Tensor::new(TensorType::Fp32, dims, vec![0; len]).unwrap_err();
            assert_eq!(error.kind(), NnErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn a_product_that_overflows_is_an_error_not_a_small_number() {
        let error = Tensor::new(TensorType::U8, vec![u32::MAX; 3], vec![]).unwrap_err();
        assert!(error.to_string().contains("larger than"), "{error}");
        // 2^64 elements exactly: wraps to 0 in unchecked arithmetic.
        assert!(Tensor::new(TensorType::U8, vec![1 << 31, 1 << 31, 4], vec![]).is_err());
    }
}
