//! From the bytes of a file to the input of the model.

use crate::config::ModelConfig;

/// What becomes of a file.
#[derive(Debug, PartialEq)]
pub(crate) enum Features {
    /// There is too little in it to ask the model.
    Decided(&'static str),
    /// One number per byte of the beginning and of the end.
    ForModel(Vec<i32>),
}

pub(crate) fn of(file: &[u8], config: &ModelConfig) -> Features {
    if file.is_empty() {
        return Features::Decided("empty");
    }
    if file.len() < config.min_file_size_for_dl {
        return Features::Decided(text_or_unknown(file));
    }
    let block = file.len().min(config.block_size);
    let (first, last) = (&file[..block], &file[file.len() - block..]);
    let mut input = beginning(first, config);
    // Whitespace does not count: what is left may still be too little.
    if input[config.min_file_size_for_dl - 1] == config.padding_token {
        return Features::Decided(text_or_unknown(first));
    }
    input.extend(end(last, config));
    Features::ForModel(input)
}

/// As magika does, even where a block ends in the middle of a character and is therefore no text.
fn text_or_unknown(bytes: &[u8]) -> &'static str {
    if std::str::from_utf8(bytes).is_ok() { "txt" } else { "unknown" }
}

/// The first bytes after leading whitespace, padded behind.
fn beginning(block: &[u8], config: &ModelConfig) -> Vec<i32> {
    let start = block.iter().position(|byte| !is_whitespace(byte)).unwrap_or(block.len());
    let mut tokens: Vec<i32> = block[start..].iter().take(config.beg_size).map(|&byte| byte.into()).collect();
    tokens.resize(config.beg_size, config.padding_token);
    tokens
}

/// The last bytes before trailing whitespace, padded in front.
fn end(block: &[u8], config: &ModelConfig) -> Vec<i32> {
    let end = block.iter().rposition(|byte| !is_whitespace(byte)).map_or(0, |last| last + 1);
    let bytes = &block[end.saturating_sub(config.end_size)..end];
    let mut tokens = vec![config.padding_token; config.end_size - bytes.len()];
    tokens.extend(bytes.iter().map(|&byte| i32::from(byte)));
    tokens
}

/// Python's `bytes.strip`, which differs from Rust's `is_ascii_whitespace` in the vertical tab.
fn is_whitespace(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::config;

    fn input(file: &[u8]) -> Vec<i32> {
        match of(file, &config()) {
            Features::ForModel(input) => input,
            Features::Decided(label) => unreachable!("decided: {label}"),
        }
    }

    #[test]
    fn too_little_is_decided_without_the_model() {
        let decided = |file: &[u8]| of(file, &config());
        assert_eq!(decided(b""), Features::Decided("empty"));
        assert_eq!(decided(b"seven b"), Features::Decided("txt"));
        assert_eq!(decided(b"\xff\xfe"), Features::Decided("unknown"));
        assert_eq!(decided(b"   \n\x0b\x0c\t  only 7  ".trim_ascii_end()), Features::Decided("txt"));
        assert_eq!(decided(&[b' '; 10_000]), Features::Decided("txt"));
    }

    #[test]
    fn a_short_file_is_there_twice_and_padded_in_between() {
        let input = input(b"  12345678 \n");
        assert_eq!(input.len(), 2048);
        assert_eq!(&input[..9], [49, 50, 51, 52, 53, 54, 55, 56, b' '.into()]);
        assert_eq!(&input[9..12], [b'\n'.into(), 256, 256]);
        assert_eq!(&input[2036..], [256, 256, 32, 32, 49, 50, 51, 52, 53, 54, 55, 56]);
    }

    #[test]
    fn a_long_file_gives_its_two_ends() {
        let file: Vec<u8> = (0..10_000u32).map(|index| (index % 251) as u8).collect();
        let input = input(&file);
        assert_eq!(input[..1024], file[..1024].iter().map(|&byte| byte.into()).collect::<Vec<i32>>());
        assert_eq!(input[1024..], file[10_000 - 1024..].iter().map(|&byte| byte.into()).collect::<Vec<i32>>());
    }

    #[test]
    fn a_block_of_whitespace_hides_what_lies_behind() {
        let mut file = vec![b' '; 4096];
        file.extend(b"fn main() {}");
        assert_eq!(of(&file, &config()), Features::Decided("txt"));
    }
}
