//! What stock endpoints share of OpenAI's API.

pub mod embeddings;
