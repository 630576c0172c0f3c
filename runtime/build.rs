//! Finds the stock components, which `make guests` builds and the binary carries.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=TESSERA_GUESTS");
    let guests = guests_dir();
    for name in ["scoring", "embeddings"] {
        let path = guests.join(format!("tessera-{name}.wasm"));
        println!("cargo::rerun-if-changed={}", path.display());
        if !path.exists() {
            println!("cargo::error=the stock component {} is missing: run `make guests`", path.display());
        }
        println!("cargo::rustc-env=TESSERA_STOCK_{}={}", name.to_uppercase(), path.display());
    }
}

/// `$TESSERA_GUESTS`, or `guests` in the target folder that this build writes to.
fn guests_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("TESSERA_GUESTS") {
        return PathBuf::from(dir);
    }
    // OUT_DIR is TARGET/PROFILE/build/PACKAGE/out.
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    out.ancestors().nth(4).map(|target| target.join("guests")).unwrap_or_default()
}
