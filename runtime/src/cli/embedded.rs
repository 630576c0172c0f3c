//! Files that the binary carries, listed by `build.rs`: the templates of `tessera new`, and the guest library.

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
