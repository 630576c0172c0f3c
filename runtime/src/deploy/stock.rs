//! The stock components: built with the public SDK, carried by the binary.

/// Names as a manifest writes them after `stock:`.
pub const NAMES: [&str; 2] = ["scoring", "embeddings"];

/// The bytes of a stock component.
pub fn component(name: &str) -> Option<&'static [u8]> {
    match name {
        "scoring" => Some(include_bytes!(env!("TESSERA_STOCK_SCORING"))),
        "embeddings" => Some(include_bytes!(env!("TESSERA_STOCK_EMBEDDINGS"))),
        _ => None,
    }
}
