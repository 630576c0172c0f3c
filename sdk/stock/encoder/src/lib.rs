//! What the stock endpoints for text share: the [`tokenizer`], which runs in the guest; the [`graph`] that the host runs for
//! its tokens; and texts as a tensor of the [Open Inference Protocol](oip).

pub mod graph;
pub mod oip;
pub mod tokenizer;
