//! Reads the header of a GGUF file without trusting it: llama.cpp, which reads it afterwards, is C++ that was written for
//! files of friends. What is checked: every count and length against the file's own, names, element types, and that each
//! tensor lies inside the file, and that the vocabulary is of a kind that llama.cpp reads without fail. What is kept: the
//! model's facts (strings and numbers), not its vocabulary.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use super::onnx_file::ReadSeek;
use crate::nn::{Dim, ElementType, GraphInfo, NnError, NnErrorKind, TensorInfo};

/// The first bytes of every GGUF file.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";

/// Most keys, and most tensors; models have some dozens and some thousands.
const KEYS_MAX: u64 = 1 << 12;
const TENSORS_MAX: u64 = 1 << 16;

/// Longest key, and longest name of a tensor with its end: llama.cpp's own limits.
const KEY_BYTES_MAX: u64 = 1 << 16;
const NAME_BYTES_MAX: u64 = 63;

/// Longest text that is kept (a chat template), and most of all texts together.
const TEXT_BYTES_MAX: u64 = 1 << 20;
const TEXTS_BYTES_MAX: u64 = 4 << 20;

/// Kinds of vocabularies (`tokenizer.ggml.model`) that are served. Of others llama.cpp's reader trusts the file (`t5`), or
/// never ends for some texts (`rwkv`).
const TOKENIZERS: [&str; 5] = ["llama", "gpt2", "gemma4", "bert", "whitespace"];

/// Longest name of a kind of vocabulary.
const TOKENIZER_BYTES_MAX: u64 = 64;

/// Longest array of numbers that is kept: one number a layer.
const NUMBERS_MAX: u64 = 1 << 10;

/// Most axes of a tensor.
const AXES_MAX: u32 = 4;

/// Most layers, and the widest layer: far over any model, far below what overflows.
const LAYERS_MAX: u64 = 1 << 12;
const WIDTH_MAX: u64 = 1 << 20;

/// What a model file says of itself.
#[derive(Debug, Clone)]
pub struct Gguf {
    /// Texts and numbers by their keys.
    pub metadata: BTreeMap<String, String>,
    numbers: BTreeMap<String, Vec<u64>>,
}

/// Reads the header of a model file.
///
/// # Errors
/// `NotFound`, or `InvalidEncoding` with what is wrong.
#[cfg_attr(not(feature = "llama"), allow(dead_code, reason = "only llama.cpp asks"))]
pub fn read(path: &Path) -> Result<Gguf, NnError> {
    let file = File::open(path).map_err(unreadable)?;
    let end = file.metadata().map_err(unreadable)?.len();
    read_from(Box::new(file), end)
}

/// The same for a file that is not plain; `end` is its length in bytes.
pub fn read_from(file: Box<dyn ReadSeek>, end: u64) -> Result<Gguf, NnError> {
    let mut reader = Reader { input: BufReader::new(file), at: 0, end };
    let mut header = Header::default();
    header.read(&mut reader)?;
    header.derive(&mut reader)?;
    header.check_tokenizer(&mut reader)?;
    let gguf = Gguf { metadata: header.metadata, numbers: header.numbers };
    gguf.check()?;
    Ok(gguf)
}

impl Gguf {
    /// A number by its key below the architecture's name: `context_length` is `llama.context_length` for a Llama.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.numbers(key).first().copied()
    }

    /// Numbers, one for each layer where the model has them so.
    fn numbers(&self, key: &str) -> &[u64] {
        self.numbers.get(&format!("{}.{key}", self.architecture())).map(Vec::as_slice).unwrap_or_default()
    }

    /// What kind of model it is: `llama`, `qwen3`, …
    pub fn architecture(&self) -> &str {
        self.metadata.get("general.architecture").map_or("", String::as_str)
    }

    /// Bytes that the keys and values of one token take in all layers, at two bytes a number. For models that keep less
    /// (windows, compressed or recurrent states) it is too much.
    #[cfg_attr(not(feature = "llama"), allow(dead_code, reason = "only llama.cpp asks"))]
    pub fn kv_bytes_per_token(&self) -> u64 {
        let layers = self.number("block_count").unwrap_or(0);
        let heads = self.numbers("attention.head_count");
        let kv_heads = Some(self.numbers("attention.head_count_kv")).filter(|heads| !heads.is_empty()).unwrap_or(heads);
        let of_layer = |heads: &[u64], layer: u64| heads.get(layer as usize).or(heads.last()).copied().unwrap_or(1);
        let width = self.number("embedding_length").unwrap_or(0);
        let kv_width = |layer: u64| {
            let head_width = width / of_layer(heads, layer).max(1);
            let keys = self.number("attention.key_length").unwrap_or(head_width);
            let values = self.number("attention.value_length").unwrap_or(head_width);
            of_layer(kv_heads, layer).saturating_mul(keys.saturating_add(values))
        };
        (0..layers).map(kv_width).fold(0u64, u64::saturating_add).saturating_mul(2)
    }

    /// What a guest is told of the graph: what goes into the first call of a sequence and what comes out of each.
    pub fn info(&self) -> GraphInfo {
        let tensor = |name: &str, element| TensorInfo { name: name.into(), element, dims: Some(vec![Dim::Free(None)]) };
        GraphInfo {
            inputs: vec![tensor("prompt", ElementType::U8)],
            outputs: vec![
                tensor("text", ElementType::U8),
                tensor("tokens", ElementType::I32),
                tensor("offsets", ElementType::I32),
                tensor("end", ElementType::U8),
            ],
            metadata: Arc::new(self.metadata.clone()),
        }
    }

    /// Numbers that llama.cpp divides by, or allocates by, before it looks at them.
    fn check(&self) -> Result<(), NnError> {
        let architecture = self.architecture();
        if architecture.is_empty() || !architecture.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(malformed("general.architecture is not there, or not a name"));
        }
        let within = |key: &str, max: u64| match self.numbers(key) {
            [] => Ok(()),
            numbers if numbers.iter().all(|number| (1..=max).contains(number)) => Ok(()),
            _ => Err(malformed(&format!("{architecture}.{key} is not between 1 and {max}"))),
        };
        within("block_count", LAYERS_MAX)?;
        within("embedding_length", WIDTH_MAX)?;
        within("context_length", 1 << 31)?;
        if self.number("attention.head_count") == Some(0) {
            return Err(malformed(&format!("{architecture}.attention.head_count is 0")));
        }
        Ok(())
    }
}

#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    numbers: BTreeMap<String, Vec<u64>>,
    texts_bytes: u64,
    alignment: u64,
    /// Where the vocabulary's texts are, and how many.
    tokens: Option<(u64, u64)>,
}

impl Header {
    fn read(&mut self, reader: &mut Reader) -> Result<(), NnError> {
        if reader.array::<4>()? != MAGIC {
            return Err(malformed("it does not begin with GGUF"));
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return Err(malformed(&format!("its version is {version}; 2 and 3 are read, with the low byte first")));
        }
        let tensors = reader.count("tensors", TENSORS_MAX)?;
        let keys = reader.count("keys", KEYS_MAX)?;
        self.alignment = 32;
        for _ in 0..keys {
            let key = reader.text(KEY_BYTES_MAX)?;
            let kind = reader.u32()?;
            self.value(reader, key, kind)?;
        }
        self.tensors(reader, tensors)
    }

    fn value(&mut self, reader: &mut Reader, key: String, kind: u32) -> Result<(), NnError> {
        match kind {
            // Never left out: what it says is checked.
            STRING if key == "tokenizer.ggml.model" || key == "tokenizer.ggml.pre" => {
                let text = reader.text(TOKENIZER_BYTES_MAX)?;
                self.metadata.insert(key, text);
                Ok(())
            }
            STRING => {
                let length = reader.u64()?;
                if length > TEXT_BYTES_MAX || self.texts_bytes + length > TEXTS_BYTES_MAX {
                    return reader.skip(length);
                }
                self.texts_bytes += length;
                // Not all that calls itself text is: such a value is not shown.
                if let Ok(text) = String::from_utf8(reader.bytes(length)?) {
                    self.metadata.insert(key, text);
                }
                Ok(())
            }
            ARRAY => self.array(reader, key),
            kind => {
                let number = reader.number(kind)?;
                if key == "general.alignment" {
                    self.alignment = number
                        .unsigned()
                        .filter(|n| n.is_power_of_two() && *n <= 1 << 20)
                        .ok_or_else(|| malformed("general.alignment is not a power of two below a mebibyte"))?;
                }
                self.metadata.insert(key.clone(), number.to_string());
                self.numbers.extend(number.unsigned().map(|number| (key, vec![number])));
                Ok(())
            }
        }
    }

    fn array(&mut self, reader: &mut Reader, key: String) -> Result<(), NnError> {
        let (kind, length) = (reader.u32()?, reader.u64()?);
        match kind {
            ARRAY => Err(malformed(&format!("'{key}' is an array of arrays"))),
            STRING => {
                // Each has eight bytes of length at least.
                reader.room(length.checked_mul(8))?;
                if key == "tokenizer.ggml.tokens" {
                    self.tokens = Some((reader.at, length));
                }
                for _ in 0..length {
                    let bytes = reader.u64()?;
                    reader.skip(bytes)?;
                }
                Ok(())
            }
            kind => {
                let bytes = reader.room(length.checked_mul(number_bytes(kind)?))?;
                if length > NUMBERS_MAX {
                    return reader.skip(bytes);
                }
                let numbers = (0..length).map(|_| reader.number(kind)).collect::<Result<Vec<_>, _>>()?;
                let unsigned: Option<Vec<u64>> = numbers.iter().map(Number::unsigned).collect();
                self.numbers.extend(unsigned.map(|numbers| (key, numbers)));
                Ok(())
            }
        }
    }

    fn tensors(&mut self, reader: &mut Reader, count: u64) -> Result<(), NnError> {
        let mut last = 0;
        for _ in 0..count {
            let name = reader.text(NAME_BYTES_MAX)?;
            let bytes = tensor_bytes(reader).map_err(|error| in_tensor(&name, error))?;
            let offset = reader.u64()?;
            if offset % self.alignment != 0 {
                return Err(malformed(&format!("tensor '{name}' is not aligned")));
            }
            let end = offset.checked_add(bytes).ok_or_else(|| malformed(&format!("tensor '{name}' is too large")))?;
            last = last.max(end);
        }
        let data = reader.at.checked_next_multiple_of(self.alignment);
        match data.and_then(|data| data.checked_add(last)) {
            Some(end) if count == 0 || end <= reader.end => Ok(()),
            _ => Err(malformed("it is cut off: tensors lie behind its end")),
        }
    }

    /// That every text can be made tokens: where llama.cpp finds none for a byte it throws an exception, which ends the
    /// process.
    fn check_tokenizer(&self, reader: &mut Reader) -> Result<(), NnError> {
        let fact = |key: &str| self.metadata.get(key).map_or("", String::as_str);
        match (fact("tokenizer.ggml.model"), fact("tokenizer.ggml.pre")) {
            // llama.cpp says what is missing.
            ("", _) => Ok(()),
            ("gpt2", "whitespace") => Err(malformed("its vocabulary is 'gpt2' and divides texts as 'whitespace' does")),
            ("llama", _) => self.check_bytes(reader),
            (model, _) if TOKENIZERS.contains(&model) => Ok(()),
            (model, _) => {
                let served = TOKENIZERS.join(", ");
                let text =
                    format!("vocabularies of the kind '{model}' (tokenizer.ggml.model) are not served: {served} are");
                Err(NnError::invalid_encoding(text))
            }
        }
    }

    /// That there is a token for each byte: `<0x41>`, or else the byte itself.
    fn check_bytes(&self, reader: &mut Reader) -> Result<(), NnError> {
        let (at, count) = self.tokens.unwrap_or((reader.at, 0));
        let mut there = [false; 256];
        reader.seek(at)?;
        for _ in 0..count {
            let length = reader.u64()?;
            let byte = match length {
                // A zero byte is the end of a text to llama.cpp: a token of it alone is an empty one.
                1 => Some(reader.array::<1>()?[0]).filter(|&byte| byte != 0),
                6 => byte_of(reader.array()?),
                _ => {
                    reader.skip(length)?;
                    None
                }
            };
            if let Some(byte) = byte {
                there[usize::from(byte)] = true;
            }
        }
        match there.iter().position(|there| !there) {
            None => Ok(()),
            Some(byte) => Err(malformed(&format!(
                "its vocabulary has no token for the byte {byte} ('<0x{byte:02X}>'), so that some texts would have none"
            ))),
        }
    }

    /// The texts of special tokens, which the file has as numbers, and whether prompts begin with one.
    fn derive(&mut self, reader: &mut Reader) -> Result<(), NnError> {
        for (name, id) in [("bos", "bos_token_id"), ("eos", "eos_token_id")] {
            let Some(&[id]) = self.numbers.get(&format!("tokenizer.ggml.{id}")).map(Vec::as_slice) else { continue };
            let Some((at, count)) = self.tokens.filter(|&(_, count)| id < count) else { continue };
            reader.seek(at)?;
            for _ in 0..id.min(count) {
                let bytes = reader.u64()?;
                reader.skip(bytes)?;
            }
            if let Ok(text) = reader.text(TEXT_BYTES_MAX) {
                self.metadata.insert(format!("tokenizer.{name}_token"), text);
            }
        }
        let adds_bos = match self.metadata.get("tokenizer.ggml.add_bos_token") {
            Some(said) => said == "true",
            None => adds_bos(
                self.metadata.get("tokenizer.ggml.model").map_or("", String::as_str),
                self.metadata.get("tokenizer.ggml.pre").map_or("", String::as_str),
            ),
        };
        self.metadata.insert("tokenizer.add_bos_token".to_owned(), adds_bos.to_string());
        Ok(())
    }
}

/// The byte that a token of a byte stands for.
fn byte_of(token: [u8; 6]) -> Option<u8> {
    let digits = token.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let value = |digit: u8| char::from(digit).to_digit(16).filter(|_| !digit.is_ascii_lowercase());
    u8::try_from(value(digits[0])? << 4 | value(digits[1])?).ok()
}

/// What llama.cpp does where a file does not say.
fn adds_bos(model: &str, pre: &str) -> bool {
    const PRE: [&str; 11] = [
        "llama3",
        "llama-v3",
        "llama-bpe",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
        "jina-v5-nano",
        "tekken",
        "chameleon",
    ];
    match model {
        "llama" | "bert" => true,
        "gpt2" => PRE.contains(&pre),
        _ => false,
    }
}

/// Axes, sizes and element type of a tensor: the bytes that it takes.
fn tensor_bytes(reader: &mut Reader) -> Result<u64, NnError> {
    let axes = reader.u32()?;
    if axes > AXES_MAX {
        return Err(malformed(&format!("it has {axes} axes; {AXES_MAX} are allowed")));
    }
    let sizes = (0..axes).map(|_| reader.u64()).collect::<Result<Vec<_>, _>>()?;
    let kind = reader.u32()?;
    let (block, bytes) = block(kind).ok_or_else(|| malformed(&format!("its element type {kind} is not known")))?;
    let row = sizes.first().copied().unwrap_or(1);
    if row % block != 0 {
        return Err(malformed(&format!("its rows of {row} are not in blocks of {block}")));
    }
    let elements = sizes.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
    let bytes = elements.and_then(|elements| (elements / block).checked_mul(bytes));
    bytes.filter(|&bytes| bytes <= i64::MAX as u64).ok_or_else(|| malformed("it is too large"))
}

/// Elements of a block of a ggml type, and its bytes.
fn block(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        0 | 26 => (1, 4),      // F32, I32
        1 | 25 | 30 => (1, 2), // F16, I16, BF16
        24 => (1, 1),          // I8
        27 | 28 => (1, 8),     // I64, F64
        2 | 20 => (32, 18),    // Q4_0, IQ4_NL
        3 => (32, 20),         // Q4_1
        6 => (32, 22),         // Q5_0
        7 => (32, 24),         // Q5_1
        8 => (32, 34),         // Q8_0
        9 => (32, 36),         // Q8_1
        39 => (32, 17),        // MXFP4
        40 => (64, 36),        // NVFP4
        41 => (128, 18),       // Q1_0
        42 => (64, 18),        // Q2_0
        10 => (256, 84),       // Q2_K
        11 | 21 => (256, 110), // Q3_K, IQ3_S
        12 => (256, 144),      // Q4_K
        13 => (256, 176),      // Q5_K
        14 => (256, 210),      // Q6_K
        15 => (256, 292),      // Q8_K
        16 | 35 => (256, 66),  // IQ2_XXS, TQ2_0
        17 => (256, 74),       // IQ2_XS
        18 => (256, 98),       // IQ3_XXS
        19 => (256, 50),       // IQ1_S
        22 => (256, 82),       // IQ2_S
        23 => (256, 136),      // IQ4_XS
        29 => (256, 56),       // IQ1_M
        34 => (256, 54),       // TQ1_0
        _ => return None,
    })
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

fn number_bytes(kind: u32) -> Result<u64, NnError> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => Err(malformed(&format!("value type {kind} is not known"))),
    }
}

#[derive(Clone, Copy)]
enum Number {
    Whole(i128),
    Real(f64),
    Bool(bool),
}

impl Number {
    fn unsigned(&self) -> Option<u64> {
        match self {
            Number::Whole(whole) => u64::try_from(*whole).ok(),
            Number::Real(_) | Number::Bool(_) => None,
        }
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Number::Whole(whole) => whole.fmt(f),
            Number::Real(real) => real.fmt(f),
            Number::Bool(bool) => bool.fmt(f),
        }
    }
}

struct Reader {
    input: BufReader<Box<dyn ReadSeek>>,
    at: u64,
    end: u64,
}

impl Reader {
    /// That so many bytes are left.
    fn room(&self, bytes: Option<u64>) -> Result<u64, NnError> {
        bytes.filter(|&bytes| bytes <= self.end - self.at).ok_or_else(|| malformed("it is cut off"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], NnError> {
        self.room(Some(N as u64))?;
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(unreadable)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn bytes(&mut self, length: u64) -> Result<Vec<u8>, NnError> {
        self.room(Some(length))?;
        let mut bytes = vec![0; length as usize];
        self.input.read_exact(&mut bytes).map_err(unreadable)?;
        self.at += length;
        Ok(bytes)
    }

    fn skip(&mut self, length: u64) -> Result<(), NnError> {
        self.room(Some(length))?;
        let relative = i64::try_from(length).map_err(|_| malformed("it is cut off"))?;
        self.input.seek_relative(relative).map_err(unreadable)?;
        self.at += length;
        Ok(())
    }

    fn seek(&mut self, at: u64) -> Result<(), NnError> {
        self.input.seek(SeekFrom::Start(at)).map_err(unreadable)?;
        self.at = at;
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, NnError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, NnError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn count(&mut self, what: &str, max: u64) -> Result<u64, NnError> {
        let count = self.u64()?;
        if count > max {
            return Err(malformed(&format!("it has {count} {what}; {max} are allowed")));
        }
        Ok(count)
    }

    /// A name. To llama.cpp it would end at a zero byte: what was checked would not be what it reads.
    fn text(&mut self, bytes_max: u64) -> Result<String, NnError> {
        let length = self.u64()?;
        if length > bytes_max {
            return Err(malformed(&format!("a name has {length} bytes; {bytes_max} are allowed")));
        }
        let text = String::from_utf8(self.bytes(length)?).map_err(|_| malformed("a name is not UTF-8"))?;
        match text.contains('\0') {
            true => Err(malformed("a name has a zero byte in it")),
            false => Ok(text),
        }
    }

    fn number(&mut self, kind: u32) -> Result<Number, NnError> {
        Ok(match kind {
            0 => Number::Whole(u8::from_le_bytes(self.array()?).into()),
            1 => Number::Whole(i8::from_le_bytes(self.array()?).into()),
            2 => Number::Whole(u16::from_le_bytes(self.array()?).into()),
            3 => Number::Whole(i16::from_le_bytes(self.array()?).into()),
            4 => Number::Whole(self.u32()?.into()),
            5 => Number::Whole(i32::from_le_bytes(self.array()?).into()),
            6 => Number::Real(f32::from_le_bytes(self.array()?).into()),
            7 => Number::Bool(self.array::<1>()? != [0]),
            10 => Number::Whole(self.u64()?.into()),
            11 => Number::Whole(i64::from_le_bytes(self.array()?).into()),
            12 => Number::Real(f64::from_le_bytes(self.array()?)),
            kind => return Err(malformed(&format!("value type {kind} is not known"))),
        })
    }
}

fn unreadable(error: std::io::Error) -> NnError {
    match error.kind() {
        ErrorKind::NotFound => NnError::new(NnErrorKind::NotFound, "the model file does not exist"),
        ErrorKind::UnexpectedEof => malformed("it is cut off"),
        kind => NnError::runtime(format!("failed to read the model file: {kind}")),
    }
}

fn malformed(why: &str) -> NnError {
    NnError::invalid_encoding(format!("not a valid GGUF model: {why}"))
}

fn in_tensor(name: &str, error: NnError) -> NnError {
    NnError::new(error.kind(), format!("{error} (tensor '{name}')"))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A file made by hand.
    #[derive(Default)]
    struct Made {
        keys: Vec<Vec<u8>>,
        tensors: Vec<Vec<u8>>,
        data_bytes: usize,
    }

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        [&text(name)[..], &kind.to_le_bytes(), value].concat()
    }

    fn tensor(name: &str, sizes: &[u64], kind: u32, offset: u64) -> Vec<u8> {
        let sizes: Vec<u8> = sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
        let axes = (sizes.len() as u32 / 8).to_le_bytes();
        [&text(name)[..], &axes, &sizes, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
    }

    fn vocabulary(tokens: &[Vec<u8>]) -> Vec<u8> {
        let value = [&STRING.to_le_bytes()[..], &(tokens.len() as u64).to_le_bytes(), &tokens.concat()];
        key("tokenizer.ggml.tokens", ARRAY, &value.concat())
    }

    impl Made {
        fn good() -> Made {
            let mut tokens = vec![text("<s>"), text("</s>"), text("a")];
            tokens.extend((0..=255).map(|byte| text(&format!("<0x{byte:02X}>"))));
            let kv_heads = [&4u32.to_le_bytes()[..], &2u64.to_le_bytes(), &2u32.to_le_bytes(), &1u32.to_le_bytes()];
            Made {
                keys: vec![
                    key("general.architecture", STRING, &text("llama")),
                    key("llama.block_count", 4, &2u32.to_le_bytes()),
                    key("llama.embedding_length", 4, &64u32.to_le_bytes()),
                    key("llama.attention.head_count", 4, &4u32.to_le_bytes()),
                    key("llama.attention.head_count_kv", ARRAY, &kv_heads.concat()),
                    key("llama.rope.freq_base", 6, &1e4f32.to_le_bytes()),
                    key("tokenizer.ggml.model", STRING, &text("llama")),
                    vocabulary(&tokens),
                    key("tokenizer.ggml.bos_token_id", 4, &0u32.to_le_bytes()),
                    key("tokenizer.ggml.eos_token_id", 4, &1u32.to_le_bytes()),
                ],
                tensors: vec![tensor("a", &[32, 2], 2, 0), tensor("b", &[3], 0, 64)],
                data_bytes: 76,
            }
        }

        fn bytes(&self) -> Vec<u8> {
            let counts = [self.tensors.len() as u64, self.keys.len() as u64].map(u64::to_le_bytes).concat();
            let mut bytes = [&MAGIC[..], &3u32.to_le_bytes(), &counts].concat();
            bytes.extend(self.keys.concat());
            bytes.extend(self.tensors.concat());
            bytes.resize(bytes.len().next_multiple_of(32) + self.data_bytes, 0);
            bytes
        }

        fn read(&self) -> Result<Gguf, NnError> {
            read_bytes(self.bytes())
        }
    }

    fn read_bytes(bytes: Vec<u8>) -> Result<Gguf, NnError> {
        let end = bytes.len() as u64;
        read_from(Box::new(Cursor::new(bytes)), end)
    }

    #[test]
    fn the_facts_of_a_model_are_read() {
        let gguf = Made::good().read().unwrap();
        let fact = |key: &str| gguf.metadata.get(key).map(String::as_str);
        assert_eq!(fact("general.architecture"), Some("llama"));
        assert_eq!(fact("llama.rope.freq_base"), Some("10000"));
        assert_eq!((fact("tokenizer.bos_token"), fact("tokenizer.eos_token")), (Some("<s>"), Some("</s>")));
        assert_eq!(fact("tokenizer.add_bos_token"), Some("true"));
        assert_eq!(gguf.number("block_count"), Some(2));
        // Heads are 16 wide; two layers with 2 and 1 of them, keys and values, two bytes each.
        assert_eq!(gguf.kv_bytes_per_token(), (2 + 1) * (16 + 16) * 2);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |change: &dyn Fn(&mut Made)| {
            let mut made = Made::good();
            change(&mut made);
            let error = made.read().unwrap_err();
            assert_eq!(error.kind(), NnErrorKind::InvalidEncoding);
            error.to_string()
        };
        let says = |error: String, what: &str| assert!(error.contains(what), "{error}");
        says(refused(&|made| made.data_bytes = 75), "cut off");
        says(refused(&|made| made.tensors[0] = tensor("a", &[33], 2, 0)), "blocks of 32");
        says(refused(&|made| made.tensors[0] = tensor("a", &[1 << 40, 1 << 40], 0, 0)), "too large");
        says(refused(&|made| made.tensors[0] = tensor("a", &[32], 99, 0)), "type 99");
        says(refused(&|made| made.tensors[0] = tensor("a", &[32], 0, 8)), "aligned");
        says(refused(&|made| made.tensors[0] = tensor("a", &[1; 5], 0, 0)), "5 axes");
        says(refused(&|made| made.tensors[0] = tensor(&"a".repeat(64), &[1], 0, 0)), "64 bytes");
        says(refused(&|made| made.tensors[0] = tensor("a", &[4], 0, u64::MAX - 31)), "cut off");
        says(refused(&|made| drop(made.keys.remove(0))), "general.architecture");
        says(refused(&|made| made.keys[1] = key("llama.block_count", 4, &0u32.to_le_bytes())), "block_count");
        says(refused(&|made| made.keys[1] = key("x", 99, &[])), "99");
        says(refused(&|made| made.tensors[0] = tensor("a\0b", &[32], 2, 0)), "zero byte");
        says(refused(&|made| made.keys[1] = key("general.alignment", 4, &3u32.to_le_bytes())), "alignment");
        let nested = [&ARRAY.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
        says(refused(&|made| made.keys[1] = key("x", ARRAY, &nested)), "array of arrays");
        let endless = [&STRING.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
        says(refused(&|made| made.keys[1] = key("x", ARRAY, &endless)), "cut off");
        assert!(read_bytes(b"GGUF".to_vec()).is_err());
        assert!(read_bytes([&MAGIC[..], &1u32.to_le_bytes()].concat()).unwrap_err().to_string().contains("version"));
    }

    #[test]
    fn vocabularies_that_could_end_the_process_are_refused() {
        let read = |model: &str, tokens: &[Vec<u8>]| {
            let mut made = Made::good();
            // More texts than are kept, before it.
            let filler = text(&"x".repeat(TEXT_BYTES_MAX as usize));
            made.keys.splice(6..6, (0..5).map(|index| key(&format!("filler.{index}"), STRING, &filler)));
            made.keys[11] = key("tokenizer.ggml.model", STRING, &text(model));
            made.keys[12] = vocabulary(tokens);
            made.read().map(drop).map_err(|error| error.to_string())
        };
        let bytes = |except: u8| -> Vec<Vec<u8>> {
            (0..=255).filter(|&byte| byte != except).map(|byte| text(&format!("<0x{byte:02X}>"))).collect()
        };
        let says =
            |error: Result<(), String>, what: &str| assert!(error.clone().unwrap_err().contains(what), "{error:?}");
        says(read("llama", &bytes(0xab)), "no token for the byte 171 ('<0xAB>')");
        says(read("llama", &[bytes(0xab), vec![text("<0xab>")]].concat()), "'<0xAB>'");
        says(read("llama", &[]), "'<0x00>'");
        read("llama", &[bytes(b'a'), vec![text("a")]].concat()).unwrap();
        says(read("llama", &[bytes(0), vec![text("\0")]].concat()), "'<0x00>'");
        for model in ["gpt2", "bert", "gemma4"] {
            read(model, &[text("a")]).unwrap();
        }
        for model in ["t5", "rwkv", "plamo2", "none"] {
            says(read(model, &bytes(0)), "are not served: llama, gpt2,");
        }
        says(read(&"x".repeat(65), &[]), "65 bytes");
    }

    #[test]
    fn names_that_llama_cpp_would_read_otherwise_are_refused() {
        let refused = |name: &str, value: &str| {
            let mut made = Made::good();
            made.keys.push(key(name, STRING, &text(value)));
            let error = made.read().unwrap_err().to_string();
            assert!(error.contains("zero byte"), "{name:?} is {value:?}: {error}");
        };
        // To llama.cpp these are the keys that are checked, or values that are refused.
        refused("tokenizer.ggml.model\0", "t5");
        refused("tokenizer.ggml.pre\0x", "whitespace");
        refused("tokenizer.ggml.pre", "whitespace\0");
        let mut made = Made::good();
        made.keys[6] = key("tokenizer.ggml.model", STRING, &text("bert\0 and more"));
        let error = made.read().unwrap_err().to_string();
        assert!(error.contains("zero byte"), "{error}");
        // Other values are not compared with anything.
        let mut made = Made::good();
        made.keys.push(key("general.name", STRING, &text("a\0b")));
        made.read().unwrap();
    }

    #[test]
    fn a_changed_or_shortened_file_is_read_or_refused_and_never_more() {
        let good = Made::good().bytes();
        for length in 0..good.len() {
            assert!(read_bytes(good[..length].to_vec()).is_err(), "cut off at {length}");
        }
        let mut random = fastrand::Rng::with_seed(4);
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            let _ = read_bytes(bytes);
        }
    }
}
