//! How llama.cpp divides a text into words before it looks for tokens. For most vocabularies it loops over the text; for
//! the others it uses the C++ library's regular expressions, which call themselves for each character of a match: a word of
//! some thousand letters takes megabytes of stack, and more than a thread has ends the process.

use crate::nn::NnError;
use crate::nn::backends::gguf_file::Gguf;

/// Most characters of a word, or of white space, where the stack grows with them: far over any text that is not made to
/// be one, and 64 MiB of stack.
const RUN_CHARS_MAX: usize = 1 << 16;

/// Stack for each character. A test measures it: all of the expressions take 330 bytes.
const STACK_BYTES_PER_CHAR: usize = 1 << 10;

/// Stack for everything else.
const STACK_BYTES: usize = 1 << 20;

/// How texts are divided for a vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Splitter {
    /// In loops: any stack will do.
    Loops,
    /// By expressions whose matches begin and end with words and with the white space between them.
    Words,
    /// By an expression that goes on over spaces.
    Texts,
}

/// Names (`tokenizer.ggml.pre`) of what llama.cpp divides in loops: all of their expressions have code of their own in its
/// unicode.cpp, or match a few characters at most.
#[rustfmt::skip]
pub(super) const LOOPS: [&str; 57] = [
    // As GPT-2.
    "gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum", "modern-bert",
    "jina-v1-en", "jina-v2-code", "roberta-bpe", "exaone4", "mpt", "olmo", "jais", "trillion", "granite-docling",
    // The same, digit by digit.
    "starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2",
    // As Llama 3.
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "dbrx",
    "smaug-bpe", "chatglm-bpe", "glm4", "glm5",
    // As Qwen.
    "qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2", "laguna",
    "qwen35",
    // By lines; and as Kimi.
    "gemma4", "granite-embed-multi-311m", "sarvam-moe", "mmbert", "kimi-k2",
];

impl Splitter {
    /// The one of a model. One that is not known counts as hungry.
    pub(super) fn of(gguf: &Gguf) -> Splitter {
        let fact = |key: &str| gguf.metadata.get(key).map_or("", String::as_str);
        match (fact("tokenizer.ggml.model"), fact("tokenizer.ggml.pre")) {
            // These look for tokens in the text itself, or in its lines.
            ("llama" | "bert" | "gemma4", _) => Splitter::Loops,
            (_, pre) if LOOPS.contains(&pre) => Splitter::Loops,
            (_, "exaone-moe") => Splitter::Texts,
            _ => Splitter::Words,
        }
    }

    /// Bytes of stack that dividing a text takes; none where any will do. `InvalidArgument` when it is too much.
    pub(super) fn stack_bytes(self, text: &str) -> Result<Option<usize>, NnError> {
        let (chars, what) = match self {
            Splitter::Loops => return Ok(None),
            Splitter::Words => (longest_match(text), "characters in a row without (or of) white space"),
            Splitter::Texts => (text.chars().count(), "characters"),
        };
        match chars > RUN_CHARS_MAX {
            false => Ok(Some(STACK_BYTES + chars * STACK_BYTES_PER_CHAR)),
            true => Err(NnError::invalid_argument(format!(
                "the prompt has {chars} {what}; this model's tokenizer takes {RUN_CHARS_MAX}"
            ))),
        }
    }
}

/// At least as many characters as an expression can match in a text: the longest word and the longest white space beside
/// each other, whichever comes first.
fn longest_match(text: &str) -> usize {
    let (mut word, mut space) = (0, 0);
    let (mut words_max, mut spaces_max) = (0, 0);
    for char in text.chars() {
        (word, space) = if char.is_whitespace() { (0, space + 1) } else { (word + 1, 0) };
        words_max = words_max.max(word);
        spaces_max = spaces_max.max(space);
    }
    words_max + spaces_max
}
