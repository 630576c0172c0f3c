//! What dependencies take for randomness, such as tokenizers that seed their hash maps with it.
//!
//! A guest has none, on purpose: it would be frozen into the snapshot anyway. Whoever crafts texts that collide in a map
//! slows his own request, which has a deadline.

/// Called by `getrandom` where it is built with its `custom` backend, as `tessera build` and `sdk/build-guests.sh` do.
#[unsafe(no_mangle)]
#[allow(unsafe_code, reason = "the name and the signature are prescribed by getrandom")]
unsafe extern "Rust" fn __getrandom_v03_custom(dest: *mut u8, len: usize) -> Result<(), getrandom::Error> {
    for offset in 0..len {
        // Any bytes that are not all alike: the multiplier is that of Fibonacci hashing.
        let byte = (offset as u32 + 1).wrapping_mul(0x9e37_79b9) >> 24;
        // SAFETY: the caller owns `len` bytes from `dest` on.
        unsafe { dest.add(offset).write(byte as u8) };
    }
    Ok(())
}
