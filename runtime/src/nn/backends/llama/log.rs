//! llama.cpp's log, in this process's own. Its information is for developers of llama.cpp, so it counts as debug here.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};

use llama_cpp_sys_2 as sys;

use crate::nn::NnError;

/// Longest reason that is kept.
const REASON_BYTES_MAX: usize = 1 << 10;

thread_local! {
    /// What llama.cpp last said was wrong, on this thread: its functions return no more than that something is.
    static REASON: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Takes over llama.cpp's log.
pub(super) fn install() {
    // SAFETY: the function lives as long as the program, and needs no data.
    unsafe {
        sys::llama_log_set(Some(log), std::ptr::null_mut());
        sys::ggml_log_set(Some(log), std::ptr::null_mut());
    }
}

/// Forgets earlier reasons: before a call whose failure is to be explained.
pub(super) fn forget_reason() {
    REASON.with_borrow_mut(String::clear);
}

/// An error with the reason that llama.cpp gave on this thread, or another text.
pub(super) fn refusal(otherwise: &str) -> NnError {
    let reason = REASON.with_borrow(|reason| reason.trim().to_owned());
    let text = if reason.is_empty() { otherwise.to_owned() } else { format!("llama.cpp refuses the model: {reason}") };
    NnError::invalid_encoding(text)
}

unsafe extern "C" fn log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp hands over a text that ends with a zero and lives during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let text = text.trim_end();
    if text.is_empty() {
        return;
    }
    match level {
        sys::GGML_LOG_LEVEL_ERROR => {
            REASON.with_borrow_mut(|reason| {
                reason.clear();
                reason.push_str(&text[..text.floor_char_boundary(REASON_BYTES_MAX)]);
            });
            tracing::warn!(target: "llama.cpp", "{text}");
        }
        sys::GGML_LOG_LEVEL_WARN => tracing::debug!(target: "llama.cpp", "{text}"),
        _ => tracing::trace!(target: "llama.cpp", "{text}"),
    }
}
