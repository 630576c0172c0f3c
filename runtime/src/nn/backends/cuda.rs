//! What NVIDIA's driver says about this machine: asked only when a GPU is asked for.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::sync::OnceLock;

use libloading::Library;

/// The driver's library, which comes with the driver and not with CUDA.
const DRIVER_LIBRARY: &str = "libcuda.so.1";

/// Longest name of a device that is read, with its closing zero.
const NAME_BYTES_MAX: usize = 256;

/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: c_int = 100;

/// A driver that works, with at least one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaDriver {
    /// The newest CUDA that it supports, like `13.0`.
    pub cuda_version: String,
    /// In the driver's order; graphs run on the first.
    pub devices: Vec<GpuDevice>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuDevice {
    /// The vendor's name for it.
    pub name: String,
    /// Its memory.
    pub memory_bytes: u64,
}

/// The driver of this machine, or why there is none to work with. Asked once: neither comes or goes while a process runs.
pub fn driver() -> Result<&'static CudaDriver, &'static str> {
    static DRIVER: OnceLock<Result<CudaDriver, String>> = OnceLock::new();
    DRIVER.get_or_init(ask).as_ref().map_err(String::as_str)
}

#[allow(unsafe_code)]
fn ask() -> Result<CudaDriver, String> {
    // SAFETY: loading runs the library's initialisers; the name is that of NVIDIA's driver, which the administrator
    // installed and every CUDA program loads the same way.
    let library = unsafe { Library::new(DRIVER_LIBRARY) };
    let library = library.map_err(|_| format!("there is no NVIDIA driver: {DRIVER_LIBRARY} cannot be loaded"))?;
    let (mut version, mut count) = (0, 0);
    // SAFETY: each symbol is called with the signature that cuda.h gives it; the out pointers are valid for the calls, and
    // `cuInit` comes before the others, as the driver asks. The same holds for those in `device`.
    unsafe {
        let init = library.get::<unsafe extern "C" fn(c_uint) -> c_int>(b"cuInit").map_err(odd)?;
        check(init(0))?;
        let get_version =
            library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDriverGetVersion").map_err(odd)?;
        check(get_version(&mut version))?;
        let get_count = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDeviceGetCount").map_err(odd)?;
        check(get_count(&mut count))?;
    }
    if count == 0 {
        check(NO_DEVICE)?;
    }
    let devices = (0..count).map(|ordinal| device(&library, ordinal)).collect::<Result<_, _>>()?;
    // Never unloaded: the driver keeps threads and state of its own.
    std::mem::forget(library);
    Ok(CudaDriver { cuda_version: format!("{}.{}", version / 1000, version % 1000 / 10), devices })
}

#[allow(unsafe_code)]
fn device(library: &Library, ordinal: c_int) -> Result<GpuDevice, String> {
    let (mut handle, mut memory_bytes, mut name) = (0, 0usize, [0u8; NAME_BYTES_MAX]);
    // SAFETY: see `ask`. The name's length is passed with it, and what the driver writes ends in a zero.
    unsafe {
        type GetName = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
        let get = library.get::<unsafe extern "C" fn(*mut c_int, c_int) -> c_int>(b"cuDeviceGet").map_err(odd)?;
        check(get(&mut handle, ordinal))?;
        let get_name = library.get::<GetName>(b"cuDeviceGetName").map_err(odd)?;
        check(get_name(name.as_mut_ptr().cast(), NAME_BYTES_MAX as c_int, handle))?;
        let get_memory =
            library.get::<unsafe extern "C" fn(*mut usize, c_int) -> c_int>(b"cuDeviceTotalMem_v2").map_err(odd)?;
        check(get_memory(&mut memory_bytes, handle))?;
    }
    let name = CStr::from_bytes_until_nul(&name).map_or("unnamed".into(), CStr::to_string_lossy);
    Ok(GpuDevice { name: name.into_owned(), memory_bytes: memory_bytes as u64 })
}

fn odd(error: libloading::Error) -> String {
    format!("{DRIVER_LIBRARY} is not NVIDIA's driver: {error}")
}

fn check(code: c_int) -> Result<(), String> {
    match code {
        0 => Ok(()),
        NO_DEVICE => Err("the NVIDIA driver finds no GPU".to_owned()),
        code => Err(format!("the NVIDIA driver does not work: CUDA error {code}")),
    }
}
