//! Rust text with comments and the insides of literals blanked, so that rules see code only.
//!
//! Not a parser: just enough lexing to know what is a comment, a string or a character. Lines and
//! columns stay where they were.

/// Replaces comments and literals' contents by spaces.
pub(super) fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out: Vec<u8> = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => line_end(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'*') => comment_end(bytes, at),
            b'"' => string_end(bytes, at),
            b'r' if !continues_a_word(bytes, at) => raw_string_end(bytes, at).unwrap_or(at),
            b'\'' => char_end(bytes, at).unwrap_or(at),
            _ => at,
        };
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |length| at + length)
}

fn comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut depth, mut at) = (0_usize, start);
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b'/', Some(b'*')) => (depth, at) = (depth + 1, at + 2),
            (b'*', Some(b'/')) => {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn continues_a_word(bytes: &[u8], at: usize) -> bool {
    // `br"..."` is a raw string too; any other letter before the `r` makes it part of a name.
    at > 0 && bytes[at - 1] != b'b' && is_word(bytes[at - 1])
}

fn raw_string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let hashes = bytes[start + 1..].iter().take_while(|byte| **byte == b'#').count();
    let open = start + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.extend(std::iter::repeat_n(b'#', hashes));
    let length = bytes[open + 1..].windows(close.len()).position(|window| window == close);
    Some(length.map_or(bytes.len(), |length| open + 1 + length + close.len()))
}

/// The end of a character literal; none for a lifetime.
fn char_end(bytes: &[u8], start: usize) -> Option<usize> {
    if bytes.get(start + 1) == Some(&b'\\') {
        let rest = bytes.get(start + 3..)?;
        return rest.iter().position(|byte| *byte == b'\'').map(|length| start + 4 + length);
    }
    // One character of up to four bytes, then the closing quote.
    let rest = bytes.get(start + 1..)?;
    let length = std::str::from_utf8(&rest[..rest.len().min(4)])
        .map_or_else(|error| std::str::from_utf8(&rest[..error.valid_up_to()]), Ok)
        .ok()?
        .chars()
        .next()?
        .len_utf8();
    (bytes.get(start + 1 + length) == Some(&b'\'')).then_some(start + 2 + length)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Whether the code names an identifier, not merely as a part of a longer one.
pub(super) fn names(code: &str, word: &str) -> bool {
    let bytes = code.as_bytes();
    code.match_indices(word).any(|(at, _)| {
        let after = at + word.len();
        (at == 0 || !is_word(bytes[at - 1])) && (after == bytes.len() || !is_word(bytes[after]))
    })
}

/// The lines of a file that belong to its own `mod tests { ... }`, as a cut: lines before it.
pub(super) fn lines_before_tests(code: &str) -> usize {
    let lines: Vec<&str> = code.lines().collect();
    let is_test_module = |at: usize| {
        lines[at].starts_with("#[cfg(test)]")
            && lines[at + 1..]
                .iter()
                .take(4)
                .any(|line| line.starts_with("mod ") && line.trim_end().ends_with('{'))
    };
    (0..lines.len()).find(|at| is_test_module(*at)).unwrap_or(lines.len())
}

/// Whether a file holds nothing but tests, by its place.
pub(super) fn is_test_file(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part == "tests.rs" || part == "benches")
        || path.ends_with("_test.rs")
        || path.ends_with("_tests.rs")
}

#[cfg(test)]
mod tests {
    use super::code_only;
    use super::lines_before_tests;
    use super::names;

    #[test]
    fn comments_and_literals_are_blanked_and_places_kept() {
        let text = "let a = \"x // \\\" y\"; // tail\n/* a /* b */ c */ let b = 'x';\n";
        let code = code_only(text);
        assert_eq!(code.len(), text.len());
        assert_eq!(code.trim_end().lines().count(), 2);
        assert!(!code.contains('x') && !code.contains("tail") && !code.contains('c'));
        assert!(code.contains("let b ="));
    }

    #[test]
    fn raw_strings_and_lifetimes() {
        let code =
            code_only("fn f<'a>(x: &'a str) { r#\"} \" tokio\"#; br\"{\"; '\\''; '}'; 'ä'; }");
        assert!(code.contains("fn f<'a>(x: &'a str) {"), "{code}");
        assert!(!code.contains("tokio"));
        assert_eq!(code.matches('{').count(), code.matches('}').count(), "{code}");
    }

    #[test]
    fn a_name_is_a_whole_word() {
        assert!(names("std::time::Instant::now()", "Instant"));
        assert!(!names("let InstantLike = operand;", "Instant"));
        assert!(!names("let operand = 1;", "rand"));
    }

    #[test]
    fn the_test_module_is_not_counted() {
        assert_eq!(lines_before_tests("a\nb\n#[cfg(test)]\nmod tests {\n}\n"), 2);
        assert_eq!(lines_before_tests("a\n#[cfg(test)]\nmod tests;\nb\n"), 4);
    }
}
