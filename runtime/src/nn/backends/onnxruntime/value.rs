//! Tensors on both sides of the C API, without copies: ours as ONNX Runtime reads them, its outputs as ours.

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use bytes::Bytes;
use ort::AsPointer;
use ort::memory::MemoryInfo;
use ort::sys::{OrtTensorTypeAndShapeInfo, OrtValue};

use super::session::Loaded;
use super::{check, onnx_file};
use crate::nn::{ElementType, NnError, RANK_MAX, Tensor, TensorType};

/// An `OrtValue` that this process owns; released once, on drop.
pub(super) struct Value(pub(super) NonNull<OrtValue>);

// SAFETY: an `OrtValue` holds a shape and memory, with no ties to a thread. The CPU allocators, to which an output's
// memory returns on release, are thread-safe.
#[allow(unsafe_code)]
unsafe impl Send for Value {}
// SAFETY: after creation it is only read: shape and type once, then its bytes, which nobody writes any more.
#[allow(unsafe_code)]
unsafe impl Sync for Value {}

#[allow(unsafe_code)]
impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: owned by self alone, released here only.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

/// A tensor of ours as ONNX Runtime sees it: its bytes in place.
pub(super) struct InputValue {
    pub(super) value: Value,
    /// What `value` points into, kept as long as it.
    data: Bytes,
}

impl InputValue {
    #[allow(unsafe_code)]
    pub(super) fn new(tensor: &Tensor, element: ElementType, cpu: &MemoryInfo<'static>) -> Result<Self, NnError> {
        let data = aligned(tensor);
        let mut dims = [0i64; RANK_MAX];
        for (dim, &size) in dims.iter_mut().zip(tensor.dims()) {
            *dim = i64::from(size);
        }
        let mut value = ptr::null_mut();
        // SAFETY: `data` stays at its address as long as it lives, beside the value in the struct returned. Its length
        // is passed along, and ONNX Runtime refuses a shape that needs more. It is aligned for the element type. The
        // pointer is mutable for C's sake: an input is read only, its memory is never planned for reuse by the graph.
        // The shape array holds at least `dims().len()` entries, since a tensor's rank is at most RANK_MAX.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                cpu.ptr(),
                data.as_ptr().cast_mut().cast::<c_void>(),
                data.len(),
                dims.as_ptr(),
                tensor.dims().len(),
                ort_element(element).into(),
                &mut value,
            )
        };
        check(status)?;
        let value = NonNull::new(value).ok_or_else(|| NnError::runtime("ONNX Runtime returned no input value"))?;
        Ok(Self { value: Value(value), data })
    }
}

/// The tensor's bytes where its elements may be: as they are, or copied if a guest's allocator left them askew.
fn aligned(tensor: &Tensor) -> Bytes {
    let (data, alignment) = (tensor.data(), tensor.ty().size_bytes());
    if data.as_ptr().align_offset(alignment) == 0 || data.is_empty() {
        return data.clone();
    }
    let mut copy = vec![0; data.len() + alignment];
    let start = copy.as_ptr().align_offset(alignment);
    copy[start..start + data.len()].copy_from_slice(data);
    // The vector is moved, its memory is not.
    Bytes::from(copy).slice(start..start + data.len())
}

impl Value {
    /// An output without a copy: the tensor owns this value and with it the memory.
    #[allow(unsafe_code)]
    pub(super) fn into_tensor(self, inputs: &[InputValue], session: &Arc<Loaded>) -> Result<Tensor, NnError> {
        let (ty, dims) = self.signature()?;
        let length = crate::nn::tensor::size_bytes(ty, &dims).ok_or_else(|| NnError::runtime("its size overflows"))?;
        if length == 0 {
            // ONNX Runtime may give no address for nothing.
            return Tensor::new(ty, dims, Bytes::new());
        }
        let mut start = ptr::null_mut();
        // SAFETY: the value is a tensor (`signature` checked it) and the out pointer is valid for the call.
        check(unsafe { (ort::api().GetTensorMutableData)(self.0.as_ptr(), &mut start) })?;
        let start = NonNull::new(start).ok_or_else(|| NnError::runtime("it has no memory"))?.cast::<u8>();
        let output = Output { value: self, start, length, _session: session.clone() };
        // An output that is an input, passed through, shares that input's memory, which ONNX Runtime does not own and
        // which may be gone before this output is: so that one is copied.
        let (from, to) = (start.as_ptr().addr(), start.as_ptr().addr() + length);
        let borrowed = inputs.iter().any(|input| {
            let at = input.data.as_ptr().addr();
            at < to && from < at + input.data.len()
        });
        let data = if borrowed { Bytes::copy_from_slice(output.as_ref()) } else { Bytes::from_owner(output) };
        Tensor::new(ty, dims, data)
    }

    /// Type and shape, if it is a tensor that can cross `wasi:nn`.
    #[allow(unsafe_code)]
    fn signature(&self) -> Result<(TensorType, Vec<u32>), NnError> {
        let api = ort::api();
        let mut is_tensor = 0;
        // SAFETY: the value lives as long as self and the out pointer is valid for the call.
        check(unsafe { (api.IsTensor)(self.0.as_ptr(), &mut is_tensor) })?;
        if is_tensor == 0 {
            return Err(NnError::unsupported("it is not a tensor, which is all that can cross wasi:nn"));
        }
        let mut shape = ptr::null_mut();
        // SAFETY: as above; the description returned is owned by the guard made of it.
        check(unsafe { (api.GetTensorTypeAndShape)(self.0.as_ptr(), &mut shape) })?;
        let shape = Shape(NonNull::new(shape).ok_or_else(|| NnError::runtime("it has no shape"))?);

        let (mut element, mut rank, mut dims) = (0i32, 0, [0i64; RANK_MAX]);
        // SAFETY: the out pointers are valid for the calls. The element type is a C enum, an `int`: it is received as
        // one, since a newer library may write a value that the Rust enum does not have.
        check(unsafe { (api.GetTensorElementType)(shape.0.as_ptr(), (&raw mut element).cast()) })?;
        // SAFETY: as above.
        check(unsafe { (api.GetDimensionsCount)(shape.0.as_ptr(), &mut rank) })?;
        if rank > RANK_MAX {
            return Err(NnError::unsupported(format!("it has {rank} dimensions, the most is {RANK_MAX}")));
        }
        // SAFETY: `dims` has room for the `rank` entries asked for, just checked.
        check(unsafe { (api.GetDimensions)(shape.0.as_ptr(), dims.as_mut_ptr(), rank) })?;
        let dims = dims[..rank].iter().map(|&dim| u32::try_from(dim)).collect::<Result<Vec<u32>, _>>();
        let dims = dims.map_err(|_| NnError::unsupported("a dimension is larger than 2^32"))?;
        let element = onnx_file::element_type(u64::from(element.unsigned_abs()))
            .map_err(|found| NnError::unsupported(format!("it has elements of type {found}, which wasi:nn lacks")))?;
        Ok((element.travels_as(), dims))
    }
}

/// A value's shape, released on drop.
struct Shape(NonNull<OrtTensorTypeAndShapeInfo>);

#[allow(unsafe_code)]
impl Drop for Shape {
    fn drop(&mut self) {
        // SAFETY: owned by self alone, released here only.
        unsafe { (ort::api().ReleaseTensorTypeAndShapeInfo)(self.0.as_ptr()) }
    }
}

/// An output's bytes, owned: they stay where they are until this is dropped, which releases the value once, and then the
/// session, whose allocator the bytes come from (fields drop in order).
struct Output {
    value: Value,
    start: NonNull<u8>,
    length: usize,
    _session: Arc<Loaded>,
}

// SAFETY: `start` points into `value`, which may itself be sent and shared, and the bytes are only read.
#[allow(unsafe_code)]
unsafe impl Send for Output {}
// SAFETY: as for Send.
#[allow(unsafe_code)]
unsafe impl Sync for Output {}

#[allow(unsafe_code)]
impl AsRef<[u8]> for Output {
    fn as_ref(&self) -> &[u8] {
        let _owner: &Value = &self.value;
        // SAFETY: ONNX Runtime gave this address for a dense CPU tensor of `length` bytes, computed from its own shape and
        // type, all written by the run that made it. The memory is the value's, so it lives as long as self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

fn ort_element(element: ElementType) -> ort::value::TensorElementType {
    use ort::value::TensorElementType as Ort;
    match element {
        ElementType::Fp16 => Ort::Float16,
        ElementType::Fp32 => Ort::Float32,
        ElementType::Fp64 => Ort::Float64,
        ElementType::Bf16 => Ort::Bfloat16,
        ElementType::U8 => Ort::Uint8,
        ElementType::I32 => Ort::Int32,
        ElementType::I64 => Ort::Int64,
        ElementType::Bool => Ort::Bool,
        ElementType::Int8 => Ort::Int8,
    }
}
