//! What the binary carries: the stock components, which `make guests` builds; the templates of `tessera new`; and the
//! guest library with its contract, which projects outside of this repository are built with.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() {
    if let Err(error) = copy_llama() {
        println!("cargo::error=llama.cpp's libraries cannot be copied beside the program: {error}");
    }
    println!("cargo::rerun-if-env-changed=TESSERA_GUESTS");
    let guests = guests_dir();
    for name in ["scoring", "embeddings", "classification", "chat"] {
        let path = guests.join(format!("tessera-{name}.wasm"));
        println!("cargo::rerun-if-changed={}", path.display());
        if !path.exists() {
            println!("cargo::error=the stock component {} is missing: run `make guests`", path.display());
        }
        println!("cargo::rustc-env=TESSERA_STOCK_{}={}", name.to_uppercase(), path.display());
    }
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let lists = [
        ("TEMPLATES", list(&here.join("templates"), &["."])),
        ("RUST_SDK", list(&here.join(".."), &["sdk/rust", "wit"])),
        ("PYTHON_SDK", list(&here.join(".."), &["sdk/python-guest/tessera_guest", "wit"])),
        ("JS_SDK", list(&here.join(".."), &["sdk/js-guest", "wit"])),
    ];
    let mut text = String::new();
    for (name, files) in lists {
        let files = files.unwrap_or_else(|error| {
            println!("cargo::error=the files of {name} cannot be listed: {error}");
            String::new()
        });
        let _ = writeln!(text, "/// Files by their paths.\npub(super) static {name}: &[(&str, &[u8])] = &[\n{files}];");
    }
    if let Err(error) = std::fs::write(out.join("embedded.rs"), text) {
        println!("cargo::error=embedded.rs cannot be written: {error}");
    }
}

/// The files of some folders below `root`, in order, as elements of a Rust array.
fn list(root: &Path, folders: &[&str]) -> std::io::Result<String> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    while let Some(folder) = folders.pop() {
        // A folder's time changes with the files in it, so that new ones are noticed.
        println!("cargo::rerun-if-changed={}", folder.display());
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path.canonicalize()?) }
        }
    }
    files.sort();
    let root = root.canonicalize()?;
    let element = |path: &PathBuf| {
        let name = path.strip_prefix(&root).unwrap_or(path).to_string_lossy().into_owned();
        format!("    ({name:?}, include_bytes!({:?})),\n", path.to_string_lossy())
    };
    Ok(files.iter().map(element).collect())
}

/// With feature `llama`: puts llama.cpp's libraries into the folder `llama` beside the program, and lets it find them
/// there. It links to some, and loads others by what the processor can do.
fn copy_llama() -> std::io::Result<()> {
    let Some(backends) = std::env::var_os("DEP_LLAMA_BACKENDS_DIR").map(PathBuf::from) else { return Ok(()) };
    let built = backends.parent().map(Path::to_path_buf).unwrap_or_default();
    let folder = profile_dir().join("llama");
    std::fs::create_dir_all(&folder)?;
    for dir in [built.join("lib"), built.join("build").join("bin"), backends] {
        for entry in std::fs::read_dir(&dir).into_iter().flatten() {
            let path = entry?.path();
            // Names of one library are links to one file: only the one that programs ask for is needed, `libllama.so.0`,
            // and `libggml-cpu-zen4.so` of those that are loaded.
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let wanted = name.starts_with("lib")
                && (name.ends_with(".so.0") || name.starts_with("libggml-cpu") && name.ends_with(".so"));
            if wanted {
                // Beside and moved, since a program that runs may have the old one mapped.
                let copy = folder.join(format!(".{name}"));
                std::fs::copy(&path, &copy)?;
                std::fs::rename(&copy, folder.join(&name))?;
            }
        }
    }
    // The old kind of path, which also holds for what the libraries themselves need. Tests run one folder below.
    println!("cargo::rustc-link-arg=-Wl,--disable-new-dtags,-rpath,$ORIGIN/llama,-rpath,$ORIGIN/../llama");
    Ok(())
}

/// TARGET/PROFILE: OUT_DIR is TARGET/PROFILE/build/PACKAGE/out.
fn profile_dir() -> PathBuf {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    out.ancestors().nth(3).map(Path::to_path_buf).unwrap_or_default()
}

/// `$TESSERA_GUESTS`, or `guests` in the target folder that this build writes to.
fn guests_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("TESSERA_GUESTS") {
        return PathBuf::from(dir);
    }
    profile_dir().parent().map(|target| target.join("guests")).unwrap_or_default()
}
