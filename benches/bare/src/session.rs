//! One ONNX Runtime session, run by all threads at once through the raw C API, as the server's backend does it.

use std::ffi::{CString, c_char, c_void};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use ort::AsPointer;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::SharedSessionInner;
use ort::session::builder::GraphOptimizationLevel;
use ort::sys::{OrtStatusPtr, OrtTensorTypeAndShapeInfo, OrtValue};
use ort::value::{TensorElementType, ValueType};

/// A loaded model on the CPU provider, without a thread pool of its own.
pub(crate) struct Session {
    inner: Arc<SharedSessionInner>,
    cpu: MemoryInfo<'static>,
    inputs: Vec<CString>,
    outputs: Vec<Output>,
}

struct Output {
    name: CString,
    element: TensorElementType,
}

/// An input, `[rows, data.len() / rows]`.
pub(crate) enum Input<'a> {
    F32(&'a [f32]),
    I64(&'a [i64]),
}

/// The values of an output, in its row-major order.
pub(crate) enum Values {
    F32(Vec<f32>),
    I64(Vec<i64>),
}

impl Session {
    pub(crate) fn load(library: &Path, model: &Path) -> Result<Session> {
        let environment = ort::init_from(library)
            .with_context(|| format!("failed to load {}", library.display()))?
            .with_telemetry(false)
            .build()?;
        let session = ort::session::Session::builder(&environment)
            .and_then(|builder| {
                builder
                    .with_intra_threads(1)?
                    .with_inter_threads(1)?
                    .with_parallel_execution(false)?
                    .with_intra_op_spinning(false)?
                    .with_inter_op_spinning(false)?
                    .with_optimization_level(GraphOptimizationLevel::All)?
                    .commit_from_file(model)
            })
            .with_context(|| format!("failed to load {}", model.display()))?;
        let outputs = session.outputs().iter().map(|output| match output.dtype() {
            ValueType::Tensor { ty, .. } => Ok(Output { name: CString::new(output.name())?, element: *ty }),
            other => bail!("output {} is {other}, not a tensor", output.name()),
        });
        Ok(Session {
            inputs: session.inputs().iter().map(|input| CString::new(input.name())).collect::<Result<_, _>>()?,
            outputs: outputs.collect::<Result<_>>()?,
            cpu: MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?,
            inner: session.inner(),
        })
    }

    /// Names of the inputs, in the model's order.
    pub(crate) fn inputs(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().filter_map(|name| name.to_str().ok())
    }

    /// Runs the model on inputs of `rows` rows, given in the model's order; its outputs with their names.
    #[allow(unsafe_code)]
    pub(crate) fn run(&self, rows: usize, inputs: &[Input<'_>]) -> Result<Vec<(&str, Values)>> {
        ensure!(inputs.len() == self.inputs.len(), "the model has {} inputs", self.inputs.len());
        let inputs = inputs.iter().map(|input| self.value(rows, input)).collect::<Result<Vec<_>>>()?;
        let input_names: Vec<*const c_char> = self.inputs.iter().map(|name| name.as_ptr()).collect();
        let output_names: Vec<*const c_char> = self.outputs.iter().map(|output| output.name.as_ptr()).collect();
        let input_values: Vec<*const OrtValue> = inputs.iter().map(|input| input.0.as_ptr().cast_const()).collect();
        let mut output_values: Vec<*mut OrtValue> = vec![ptr::null_mut(); output_names.len()];
        // SAFETY: the session lives as long as `self.inner`; ONNX Runtime documents Run as thread-safe for the CPU
        // provider, the only one here. Names and input values live until the end of this function, the data of the inputs
        // is borrowed by the caller for longer. Each array has the length passed with it; null run options and null outputs
        // are allowed. Exceptions come back as a status.
        let status = unsafe {
            (ort::api().Run)(
                self.inner.ptr().cast_mut(),
                ptr::null(),
                input_names.as_ptr(),
                input_values.as_ptr(),
                input_values.len(),
                output_names.as_ptr(),
                output_names.len(),
                output_values.as_mut_ptr(),
            )
        };
        // Owned at once, so that a failed run leaks nothing.
        let values: Vec<Option<Value>> =
            output_values.into_iter().map(|value| NonNull::new(value).map(Value)).collect();
        check(status)?;
        let outputs = values.into_iter().zip(&self.outputs).map(|(value, output)| {
            let value = value.context("an output was not computed")?;
            Ok((output.name.to_str()?, value.read(output.element)?))
        });
        outputs.collect()
    }

    #[allow(unsafe_code)]
    fn value(&self, rows: usize, input: &Input<'_>) -> Result<Value> {
        let (data, len, bytes, element): (*const c_void, _, _, _) = match input {
            Input::F32(data) => (data.as_ptr().cast(), data.len(), size_of_val(*data), TensorElementType::Float32),
            Input::I64(data) => (data.as_ptr().cast(), data.len(), size_of_val(*data), TensorElementType::Int64),
        };
        ensure!(rows > 0 && len % rows == 0, "the rows differ in length");
        let dims = [i64::try_from(rows)?, i64::try_from(len / rows)?];
        let mut value = ptr::null_mut();
        // SAFETY: `data` holds `bytes` bytes, aligned for their type, which the caller borrows for longer than the run.
        // ONNX Runtime only reads an input. `dims` has the two entries announced, the out pointer is valid for the call.
        check(unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                self.cpu.ptr(),
                data.cast_mut(),
                bytes,
                dims.as_ptr(),
                dims.len(),
                element.into(),
                &mut value,
            )
        })?;
        NonNull::new(value).map(Value).context("no input value")
    }
}

/// An error of the C API.
#[allow(unsafe_code)]
fn check(status: OrtStatusPtr) -> Result<()> {
    // SAFETY: every status comes straight from the call that returned it, and is released once, by this error.
    unsafe { ort::Error::<()>::result_from_status(status) }.map_err(|error| anyhow::anyhow!("{}", error.message()))
}

/// A tensor that this process owns.
struct Value(NonNull<OrtValue>);

#[allow(unsafe_code)]
impl Value {
    /// Copies the values out: there are few of them in an answer.
    fn read(&self, element: TensorElementType) -> Result<Values> {
        let (mut shape, mut len, mut data) = (ptr::null_mut(), 0, ptr::null_mut());
        // SAFETY: the value lives as long as self and is a tensor, as the model declares. The out pointers are valid for
        // the calls; the description of the shape is released by its guard.
        unsafe {
            check((ort::api().GetTensorTypeAndShape)(self.0.as_ptr(), &mut shape))?;
            let shape = Shape(NonNull::new(shape).context("an output without a shape")?);
            check((ort::api().GetTensorShapeElementCount)(shape.0.as_ptr(), &mut len))?;
            check((ort::api().GetTensorMutableData)(self.0.as_ptr(), &mut data))?;
        }
        ensure!(!data.is_null(), "an output without data");
        // SAFETY: ONNX Runtime gave the address of a dense tensor of `len` elements of the type that the model declares.
        Ok(match element {
            TensorElementType::Float32 => Values::F32(unsafe { std::slice::from_raw_parts(data.cast(), len) }.to_vec()),
            TensorElementType::Int64 => Values::I64(unsafe { std::slice::from_raw_parts(data.cast(), len) }.to_vec()),
            other => bail!("an output is {other}; only f32 and i64 are known here"),
        })
    }
}

#[allow(unsafe_code)]
impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: owned by self alone, released here only.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
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
