//! Writes JSON as Python's `json` does: `1.0` stays a float, `1e-05` has two digits, `NaN` is a bare token.
//!
//! `NaN` and `Infinity` are not JSON, but they are what MLflow's server sends and its clients read; `null` would say that
//! there is no prediction, which is something else.

use crate::tensor::{Output, Scalar};

/// Appends a float, in the shortest form that reads back the same.
pub(crate) fn push_float(out: &mut Vec<u8>, value: f64) {
    if value.is_nan() {
        return out.extend_from_slice(b"NaN");
    }
    if value.is_infinite() {
        return out.extend_from_slice(if value > 0.0 { b"Infinity" } else { b"-Infinity" });
    }
    let magnitude = value.abs();
    let mut buffer = zmij::Buffer::new();
    let shortest = buffer.format_finite(value);
    // Where Python and the formatter choose the same form there is nothing to do; that is nearly always.
    if (1e-4..1e16).contains(&magnitude) && !shortest.contains('e') || magnitude == 0.0 {
        return out.extend_from_slice(shortest.as_bytes());
    }
    push_python_form(out, shortest);
}

/// Rewrites a decimal number into the form Python chooses: an exponent, of at least two digits and with its sign, when
/// it is below -4 or above 15. Probabilities are often that small, so that nothing is allocated here.
fn push_python_form(out: &mut Vec<u8>, shortest: &str) {
    let unsigned = shortest.strip_prefix('-').unwrap_or(shortest);
    let (mantissa, exponent) = unsigned.split_once('e').unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let written = || whole.bytes().chain(fraction.bytes());
    let leading_zeros = written().take_while(|digit| *digit == b'0').count();
    let trailing_zeros = written().rev().take_while(|digit| *digit == b'0').count();
    let count = (whole.len() + fraction.len()).saturating_sub(leading_zeros + trailing_zeros);
    let digits = written().skip(leading_zeros).take(count);
    // The power of ten of the first digit that counts.
    let power = exponent.parse::<i32>().unwrap_or(0) + whole.len() as i32 - 1 - leading_zeros as i32;
    let (digits_before, exponent) = match power {
        0..16 => (power as usize + 1, None),
        -4..0 => (0, None),
        _ => (1, Some(power)),
    };
    if unsigned.len() < shortest.len() {
        out.push(b'-');
    }
    if digits_before == 0 {
        out.extend_from_slice(b"0.");
        out.extend(std::iter::repeat_n(b'0', (-power - 1).unsigned_abs() as usize));
        return out.extend(digits);
    }
    out.extend(digits.clone().take(digits_before));
    out.extend(std::iter::repeat_n(b'0', digits_before.saturating_sub(count)));
    if count > digits_before {
        out.push(b'.');
        out.extend(digits.skip(digits_before));
    } else if exponent.is_none() {
        out.extend_from_slice(b".0");
    }
    if let Some(exponent) = exponent {
        out.extend_from_slice(if exponent < 0 { b"e-" } else { b"e+" });
        if exponent.abs() < 10 {
            out.push(b'0');
        }
        out.extend_from_slice(itoa::Buffer::new().format(exponent.unsigned_abs()).as_bytes());
    }
}

/// Appends a number of an output.
pub(crate) fn push_scalar(out: &mut Vec<u8>, scalar: Scalar) {
    match scalar {
        Scalar::Bool(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
        Scalar::Int(value) => push_int(out, value),
        Scalar::Float(value) => push_float(out, value),
    }
}

/// Appends an integer.
pub(crate) fn push_int(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends text with its quotes.
pub(crate) fn push_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text;
    // Quotes, backslashes and control characters are ASCII, so that this cuts between characters.
    while let Some(plain) = rest.bytes().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)) {
        let (before, after) = rest.split_at(plain);
        out.extend_from_slice(before.as_bytes());
        let mut characters = after.chars();
        match characters.next() {
            Some('\n') => out.extend_from_slice(b"\\n"),
            Some(special @ ('"' | '\\')) => out.extend_from_slice(&[b'\\', special as u8]),
            control => out.extend_from_slice(format!("\\u{:04x}", control.map_or(0, u32::from)).as_bytes()),
        }
        rest = characters.as_str();
    }
    out.extend_from_slice(rest.as_bytes());
    out.push(b'"');
}

/// Appends items with commas between them.
pub(crate) fn push_joined<T>(out: &mut Vec<u8>, items: impl IntoIterator<Item = T>, push: impl Fn(&mut Vec<u8>, T)) {
    for (position, item) in items.into_iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        push(out, item);
    }
}

/// Appends an output as nested lists; as a bare number when it has no axes.
pub(crate) fn push_nested(out: &mut Vec<u8>, output: &Output<'_>) {
    push_nested_with(out, output, &push_scalar);
}

/// The same, with the elements written by `push`.
pub(crate) fn push_nested_with(out: &mut Vec<u8>, output: &Output<'_>, push: &impl Fn(&mut Vec<u8>, Scalar)) {
    push_axis(out, output.tensor.dims(), &mut output.scalars(), push);
}

/// The rest of the elements below one axis. The depth is the rank of an output of the model, which the host bounds.
fn push_axis(
    out: &mut Vec<u8>,
    dims: &[u32],
    scalars: &mut impl Iterator<Item = Scalar>,
    push: &impl Fn(&mut Vec<u8>, Scalar),
) {
    let Some((size, inner)) = dims.split_first() else {
        if let Some(scalar) = scalars.next() {
            push(out, scalar);
        }
        return;
    };
    out.push(b'[');
    for position in 0..*size {
        if position > 0 {
            out.push(b',');
        }
        push_axis(out, inner, scalars, push);
    }
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(value: f64) -> String {
        let mut out = Vec::new();
        push_float(&mut out, value);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn floats_look_like_pythons() {
        for (value, expected) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.0, "0.0"),
            (1e-5, "1e-05"),
            (1.5e-5, "1.5e-05"),
            (1e-4, "0.0001"),
            (0.00012345, "0.00012345"),
            (f64::from(0.678_088_3_f32), "0.6780883073806763"),
            (1e15, "1000000000000000.0"),
            (5e15, "5000000000000000.0"),
            (1e16, "1e+16"),
            (1.2345678901234567e16, "1.2345678901234568e+16"),
            (123456789.125, "123456789.125"),
            (1e22, "1e+22"),
            (5e-324, "5e-324"),
            (-1e300, "-1e+300"),
            (1.7976931348623157e308, "1.7976931348623157e+308"),
            (9007199254740993.0, "9007199254740992.0"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "Infinity"),
            (f64::NEG_INFINITY, "-Infinity"),
            (100.0, "100.0"),
            (1e-7, "1e-07"),
            (-2.5e-10, "-2.5e-10"),
            (34.20000076293945, "34.20000076293945"),
        ] {
            assert_eq!(printed(value), expected);
        }
    }

    #[test]
    fn floats_read_back_the_same() {
        // A fixed walk through the bit patterns, 61 bits apart in a cycle that visits every exponent.
        let mut bits = 0x0123_4567_89ab_cdef_u64;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let value = f64::from_bits(bits);
            if value.is_finite() {
                assert_eq!(printed(value).parse::<f64>().unwrap().to_bits(), value.to_bits());
            }
        }
    }

    #[test]
    fn text_is_escaped() {
        let mut out = Vec::new();
        push_text(&mut out, "a\"b\\c\n\u{1}é");
        assert_eq!(String::from_utf8(out).unwrap(), "\"a\\\"b\\\\c\\n\\u0001é\"");
    }
}
