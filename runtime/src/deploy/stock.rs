//! The stock components: built with the public SDK, carried by the binary.

use std::sync::OnceLock;

/// Names as a manifest writes them after `stock:`.
pub const NAMES: [&str; 4] = ["scoring", "embeddings", "classification", "chat"];

/// Digest of a stock component's bytes, made once: it takes milliseconds.
pub fn digest(name: &str) -> blake3::Hash {
    static DIGESTS: OnceLock<[blake3::Hash; NAMES.len()]> = OnceLock::new();
    let digests = DIGESTS.get_or_init(|| NAMES.map(|name| blake3::hash(component(name).unwrap_or_default())));
    NAMES.iter().position(|known| *known == name).map_or(blake3::hash(b""), |index| digests[index])
}

/// The bytes of a stock component.
pub fn component(name: &str) -> Option<&'static [u8]> {
    match name {
        "scoring" => Some(include_bytes!(env!("TESSERA_STOCK_SCORING"))),
        "embeddings" => Some(include_bytes!(env!("TESSERA_STOCK_EMBEDDINGS"))),
        "classification" => Some(include_bytes!(env!("TESSERA_STOCK_CLASSIFICATION"))),
        "chat" => Some(include_bytes!(env!("TESSERA_STOCK_CHAT"))),
        _ => None,
    }
}
