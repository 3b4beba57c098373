//! Bytes as lower-case hex digits, for keys and digests in files and answers.

/// Lower-case hex digits of `bytes`.
pub fn encode(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes that exactly `2 * N` hex digits stand for; `None` for anything else.
pub fn decode_array<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        let digit = |d: &u8| char::from(*d).to_digit(16);
        *byte = u8::try_from(digit(high)? * 16 + digit(low)?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_refusals() {
        assert_eq!(decode_array::<3>(&encode(&[0, 171, 255])), Some([0, 171, 255]));
        assert_eq!(decode_array::<2>("00f"), None);
        assert_eq!(decode_array::<2>("00fg"), None);
        assert_eq!(decode_array::<2>("00f\u{e9}"), None);
    }
}
