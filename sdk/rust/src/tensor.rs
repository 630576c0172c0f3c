//! Tensors: dimensions, element type and bytes, checked against each other when they are made.

use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::Error;
/// The element types of `wasi:nn`.
pub use crate::bindings::wasi::nn::tensor::TensorType;

/// A dense tensor in row-major order and little-endian bytes, as `wasi:nn` wants it.
///
/// It borrows the values it is made from, so that they are copied once, into the host. `Tensor<'static>` owns them.
#[derive(Clone, PartialEq)]
pub struct Tensor<'a> {
    dims: Vec<u32>,
    ty: TensorType,
    bytes: Values<'a>,
}

/// Where the values of a tensor lie.
#[derive(Clone)]
pub(crate) enum Values<'a> {
    Borrowed(&'a [u8]),
    Owned(Vec<u8>),
    /// Values of some element type, as they were made.
    Typed(Arc<dyn TypedValues>),
    /// A part of what the host gave, which may have several outputs. Lies within.
    Shared(Arc<Vec<u8>>, Range<usize>),
}

/// A `Vec` of any element type. It cannot become a `Vec<u8>`, for it is freed with the alignment it was made with.
pub(crate) trait TypedValues {
    fn bytes(&self) -> &[u8];
}

impl<T: Element> TypedValues for Vec<T> {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self)
    }
}

impl Deref for Values<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
            Self::Typed(values) => values.bytes(),
            Self::Shared(data, range) => &data[range.clone()],
        }
    }
}

impl PartialEq for Values<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<'a> Tensor<'a> {
    /// A tensor of these values. A single value has the dimensions `[1]`, or `[]` where the graph asks for rank 0.
    pub fn new<T: Element>(dims: &[u32], values: &'a [T]) -> Result<Self, Error> {
        Self::from_bytes(dims, T::TYPE, bytemuck::cast_slice::<T, u8>(values))
    }

    /// A tensor that keeps these values, without a copy of them.
    pub fn from_vec<T: Element>(dims: &[u32], values: Vec<T>) -> Result<Tensor<'static>, Error> {
        Tensor::from_values(dims, T::TYPE, Values::Typed(Arc::new(values)))
    }

    /// A tensor of raw bytes: for fp16 and bf16, which Rust has no type for.
    pub fn from_bytes(dims: &[u32], ty: TensorType, bytes: impl Into<Cow<'a, [u8]>>) -> Result<Self, Error> {
        let values = match bytes.into() {
            Cow::Borrowed(bytes) => Values::Borrowed(bytes),
            Cow::Owned(bytes) => Values::Owned(bytes),
        };
        Self::from_values(dims, ty, values)
    }

    pub(crate) fn from_values(dims: &[u32], ty: TensorType, bytes: Values<'a>) -> Result<Self, Error> {
        let size = byte_len(dims, ty);
        if size != Some(bytes.len()) {
            let elements = bytes.len() / ty.element_bytes();
            return Err(Error::invalid_input(format!(
                "a tensor of shape {dims:?} needs {}, but {elements} values ({} bytes of {}) were given",
                size.map_or("more memory than there is".into(), |size| format!("{} values", size / ty.element_bytes())),
                bytes.len(),
                ty.name(),
            )));
        }
        Ok(Self { dims: dims.to_vec(), ty, bytes })
    }

    /// The size of each axis.
    pub fn dims(&self) -> &[u32] {
        &self.dims
    }

    /// The element type.
    pub fn ty(&self) -> TensorType {
        self.ty
    }

    /// The elements as bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.ty.element_bytes()
    }

    /// Whether there are no elements, because an axis is 0.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements as values of `T`, in row-major order. Copies only if the bytes are not aligned for `T`, which does
    /// not happen to what comes from the host: the guest's allocator aligns every block for every element type.
    pub fn as_slice<T: Element>(&self) -> Result<Cow<'_, [T]>, Error> {
        if self.ty != T::TYPE {
            let (have, want) = (self.ty.name(), T::TYPE.name());
            return Err(Error::model(format!("the tensor holds {have} values and was read as {want}")));
        }
        Ok(match bytemuck::try_cast_slice(&self.bytes) {
            Ok(values) => Cow::Borrowed(values),
            Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(&self.bytes)),
        })
    }

    /// The same tensor, free of the borrow: with its own copy of the values if it borrowed them.
    pub fn into_owned(self) -> Tensor<'static> {
        let bytes = match self.bytes {
            Values::Borrowed(bytes) => Values::Owned(bytes.to_vec()),
            Values::Owned(bytes) => Values::Owned(bytes),
            Values::Typed(values) => Values::Typed(values),
            Values::Shared(data, range) => Values::Shared(data, range),
        };
        Tensor { dims: self.dims, ty: self.ty, bytes }
    }
}

impl fmt::Debug for Tensor<'_> {
    /// Shape and type only: the values may be many, and are the caller's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {:?})", self.ty.name(), self.dims)
    }
}

/// A Rust type that can be an element. `i8` is the two's complement of the model's `int8`, which travels as bytes.
pub trait Element: bytemuck::Pod + sealed::Sealed {
    /// Its name in `wasi:nn`.
    const TYPE: TensorType;

    /// What stands for a number that is not known, as in pandas: NaN. Integers have none.
    const MISSING: Option<Self>;
}

mod sealed {
    /// Closed: `wasi:nn` has these types and no others.
    pub trait Sealed {}
}

macro_rules! element {
    ($($rust:ty => $ty:ident $missing:expr),*) => {$(
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const TYPE: TensorType = TensorType::$ty;
            const MISSING: Option<Self> = $missing;
        }
    )*};
}
element!(f32 => Fp32 Some(f32::NAN), f64 => Fp64 Some(f64::NAN));
element!(u8 => U8 None, i8 => U8 None, i32 => I32 None, i64 => I64 None);

/// None when the size exceeds what the guest can address.
fn byte_len(dims: &[u32], ty: TensorType) -> Option<usize> {
    dims.iter().try_fold(ty.element_bytes(), |size, &dim| size.checked_mul(dim as usize))
}

impl TensorType {
    /// In the order of `wasi:nn`.
    pub(crate) const ALL: [Self; 7] = [Self::Fp16, Self::Fp32, Self::Fp64, Self::Bf16, Self::U8, Self::I32, Self::I64];

    /// The size of one element.
    pub fn element_bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::Fp16 | Self::Bf16 => 2,
            Self::Fp32 | Self::I32 => 4,
            Self::Fp64 | Self::I64 => 8,
        }
    }

    /// The name as `wasi:nn` spells it, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp16 => "fp16",
            Self::Fp32 => "fp32",
            Self::Fp64 => "fp64",
            Self::Bf16 => "bf16",
            Self::U8 => "u8",
            Self::I32 => "i32",
            Self::I64 => "i64",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_they_went_in() {
        fn check<T: Element + PartialEq + fmt::Debug>(values: [T; 2]) {
            let tensor = Tensor::new(&[2, 1], &values).unwrap();
            assert_eq!((tensor.dims(), tensor.ty(), tensor.len()), ([2, 1].as_slice(), T::TYPE, 2));
            assert_eq!(tensor.into_owned().as_slice::<T>().unwrap().as_ref(), values);
            let kept = Tensor::from_vec(&[2, 1], values.to_vec()).unwrap();
            assert_eq!(kept.into_owned().as_slice::<T>().unwrap().as_ref(), values);
        }
        check([1.5f32, f32::NEG_INFINITY]);
        check([1.5f64, 1e300]);
        check([0u8, 255]);
        check([-128i8, 127]);
        check([i32::MIN, i32::MAX]);
        check([i64::MIN, i64::MAX]);
    }

    #[test]
    fn the_shape_must_fit_the_values() {
        let error = Tensor::new(&[2, 3], &[0f32; 5]).unwrap_err();
        let expected = "a tensor of shape [2, 3] needs 6 values, but 5 values (20 bytes of fp32) were given";
        assert_eq!(error.message, expected);
    }

    #[test]
    fn a_shape_that_overflows_is_refused() {
        let error = Tensor::new(&[u32::MAX, u32::MAX, u32::MAX], &[0u8; 5]).unwrap_err();
        assert!(error.message.contains("more memory than there is"), "{}", error.message);
    }

    #[test]
    fn rank_0_has_one_element_and_an_axis_of_0_none() {
        assert_eq!(Tensor::new(&[], &[16_000i64]).unwrap().len(), 1);
        assert!(Tensor::new::<f32>(&[0, 384], &[]).unwrap().is_empty());
    }

    #[test]
    fn half_precision_is_given_as_bytes() {
        assert_eq!(Tensor::from_bytes(&[2], TensorType::Bf16, vec![0; 4]).unwrap().len(), 2);
        assert!(Tensor::from_bytes(&[2], TensorType::Fp16, vec![0; 3]).is_err());
    }

    #[test]
    fn reading_as_another_type_is_an_error() {
        let error = Tensor::new(&[1], &[1i64]).unwrap().as_slice::<f32>().unwrap_err();
        assert_eq!(error.message, "the tensor holds i64 values and was read as fp32");
    }

    #[test]
    fn types_are_numbered_as_in_the_contract() {
        assert!(TensorType::ALL.into_iter().zip(0..).all(|(ty, number)| ty as u32 == number));
    }

    #[test]
    fn unaligned_bytes_can_be_read() {
        let storage: Vec<u8> = [0u8].into_iter().chain([7i64.to_le_bytes(); 2].concat()).collect();
        for start in [0, 1] {
            let tensor = Tensor::from_bytes(&[2], TensorType::I64, &storage[start..start + 16]).unwrap();
            assert_eq!(tensor.as_slice::<i64>().unwrap().len(), 2);
        }
    }
}
