//! Where characters of UTF-8 are split.

/// Returns whether bytes end within a character: `last` are the bytes from the last one backwards, of which at most three are
/// read. `next` is the byte that follows, if there is one. It may not continue the character.
pub(super) fn is_within_character<'a>(last: impl Iterator<Item = &'a u8>, next: Option<u8>) -> bool {
    let mut length = 1;
    let mut last = last.take(3);
    let lead = loop {
        match last.next() {
            // A continuation byte.
            Some(0x80..0xc0) => length += 1,
            Some(lead) => break *lead,
            None => return false,
        }
    };
    let needed = match lead {
        0xc2..0xe0 => 2,
        0xe0..0xf0 => 3,
        0xf0..0xf5 => 4,
        _ => 1,
    };
    length < needed && next.is_none_or(|next| (0x80..0xc0).contains(&next))
}
