//! Finds where the head of a request may end.

/// The line that is being read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    /// Nothing of it yet.
    #[default]
    Empty,
    /// One carriage return.
    Return,
    Text,
}

/// Finds the empty line after a head, in any pieces. It may also find empty lines before one, which HTTP allows.
#[derive(Debug, Default)]
pub struct HeadScan(Line);

impl HeadScan {
    /// How many of these bytes belong to the head. None if it does not end in them.
    pub fn end_in(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut end = 0;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            end += line.len();
            let before = self.0;
            match line {
                b"\n" if before != Line::Text => {
                    self.0 = Line::Empty;
                    return Some(end);
                }
                b"\r\n" if before == Line::Empty => return Some(end),
                b"\r" if before == Line::Empty => self.0 = Line::Return,
                _ if line.ends_with(b"\n") => self.0 = Line::Empty,
                _ => self.0 = Line::Text,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_head_is_found_in_any_pieces() {
        let head = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        let next = b"GET /next HTTP/1.1\r\n";
        let stream = [head.as_slice(), next].concat();
        for size in 1..=stream.len() {
            let (mut scan, mut read, mut ends) = (HeadScan::default(), 0, Vec::new());
            for piece in stream.chunks(size) {
                let mut rest = piece;
                while let Some(end) = scan.end_in(rest) {
                    ends.push(read + end);
                    read += end;
                    rest = &rest[end..];
                }
                read += rest.len();
            }
            assert_eq!(ends, [head.len()], "pieces of {size}");
        }
    }

    #[test]
    fn lines_may_end_without_a_carriage_return() {
        for (text, end) in [
            ("GET / HTTP/1.1\n\nx", Some(16)),
            ("GET / HTTP/1.1\r\n\nx", Some(17)),
            ("a\n\r\nx", Some(4)),
            ("\r\nGET", Some(2)),
            ("a\r\nb\r\n", None),
            ("a\n\r\r\n", None),
            ("a\r\r\nb", None),
            ("", None),
        ] {
            assert_eq!(HeadScan::default().end_in(text.as_bytes()), end, "{text:?}");
        }
    }
}
