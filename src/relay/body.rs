//! The body of an HTTP/1 message: where it ends (RFC 9112, sections 6 and 7). Pure.

#![forbid(unsafe_code)]

/// Longest line between chunks, and most bytes of all trailers.
const LINES_MAX: usize = 16 * 1024;

/// What was read is no HTTP/1 message, or two readers could take it for two different ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// What is left of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunks),
    /// All until the sender closes.
    UntilEnd,
}

/// Where a reader is in chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunks {
    at: At,
    /// Bytes of the line, or of all trailers, so far.
    line: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In the size of a chunk, of which so many digits have come.
    Size(u64, u32),
    /// Behind the size, in what nobody reads.
    Extension(u64),
    /// At the LF behind a size.
    SizeEnd(u64),
    Data(u64),
    /// At the CR, and at the LF, behind the data.
    DataEnd,
    DataEnded,
    /// At the begin of a line of the trailers, in it, at its LF.
    Line,
    InLine,
    LineEnd,
    /// At the LF of the empty line.
    LastEnd,
    Done,
}

impl Body {
    /// A body of a known length.
    pub fn of(length: u64) -> Body {
        Body::Length(length)
    }

    /// A body in chunks.
    pub fn chunked() -> Body {
        Body::Chunked(Chunks { at: At::Size(0, 0), line: 0 })
    }

    /// Whether all of it was taken. Nobody knows that of one that lasts until the sender closes.
    pub fn is_done(&self) -> bool {
        match self {
            Body::Length(left) => *left == 0,
            Body::Chunked(chunks) => chunks.at == At::Done,
            Body::UntilEnd => false,
        }
    }

    /// Takes what belongs to it from the begin of what was read, and tells how many bytes that were.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        match self {
            Body::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                Ok(taken)
            }
            Body::Chunked(chunks) => chunks.take(bytes),
            Body::UntilEnd => Ok(bytes.len()),
        }
    }
}

impl Chunks {
    fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut taken = 0;
        while taken < bytes.len() && self.at != At::Done {
            if let At::Data(left) = self.at {
                let part = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - taken);
                taken += part;
                self.at = if part as u64 == left { At::DataEnd } else { At::Data(left - part as u64) };
                continue;
            }
            self.at = self.after(bytes[taken])?;
            self.line += 1;
            if self.line > LINES_MAX {
                return Err(Malformed);
            }
            if matches!(self.at, At::Data(_) | At::Size(_, 0)) {
                self.line = 0;
            }
            taken += 1;
        }
        Ok(taken)
    }

    /// Where a byte leads that is none of the data.
    fn after(&self, byte: u8) -> Result<At, Malformed> {
        Ok(match (self.at, byte) {
            // 15 digits: more than any body has, and no overflow.
            (At::Size(size, digits), _) if byte.is_ascii_hexdigit() && digits < 15 => {
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                At::Size(size * 16 + u64::from(digit), digits + 1)
            }
            (At::Size(size, 1..), b'\r') => At::SizeEnd(size),
            (At::Size(size, 1..), b';' | b' ' | b'\t') => At::Extension(size),
            (At::Extension(size), b'\r') => At::SizeEnd(size),
            (At::Extension(size), other) if other != b'\n' => At::Extension(size),
            (At::SizeEnd(0), b'\n') => At::Line,
            (At::SizeEnd(size), b'\n') => At::Data(size),
            (At::DataEnd, b'\r') => At::DataEnded,
            (At::DataEnded, b'\n') => At::Size(0, 0),
            (At::Line, b'\r') => At::LastEnd,
            (At::Line | At::InLine, other) if other != b'\r' && other != b'\n' => At::InLine,
            (At::InLine, b'\r') => At::LineEnd,
            (At::LineEnd, b'\n') => At::Line,
            (At::LastEnd, b'\n') => At::Done,
            _ => return Err(Malformed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taken(mut body: Body, parts: &[&[u8]]) -> Result<(usize, bool), Malformed> {
        let mut sum = 0;
        for part in parts {
            sum += body.take(part)?;
        }
        Ok((sum, body.is_done()))
    }

    #[test]
    fn a_body_takes_no_more_than_is_its_own() {
        assert_eq!(taken(Body::of(3), &[b"ab", b"cde"]), Ok((3, true)));
        assert_eq!(taken(Body::of(0), &[b"x"]), Ok((0, true)));
        assert_eq!(taken(Body::UntilEnd, &[b"ab", b"c"]), Ok((3, false)));
        assert_eq!(taken(Body::chunked(), &[b"3;a=b\r\nabc\r\n0\r\nT: x\r\n\r\nGET"]), Ok((23, true)));
        assert_eq!(taken(Body::chunked(), &[b"0\r\n\r\n"]), Ok((5, true)));
    }

    #[test]
    fn chunks_that_are_none_are_refused() {
        let many = [b"1;".as_slice(), &[b'x'; LINES_MAX]].concat();
        for bad in [
            b"\r\n".as_slice(),
            b"g\r\n",
            b"3\nabc",
            b"3\r\nabcd",
            b"-1\r\n",
            b"1000000000000000\r\n",
            b"0\r\nA\n",
            &many,
        ] {
            assert_eq!(taken(Body::chunked(), &[bad]), Err(Malformed), "{bad:?}");
        }
    }

    proptest! {
        /// Wherever what is read is cut.
        #[test]
        fn the_end_is_the_same_wherever_it_is_cut(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            cuts in prop::collection::vec(1..30usize, 1..60),
        ) {
            let mut whole = Vec::new();
            for chunk in &chunks {
                whole.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                whole.extend_from_slice(chunk);
                whole.extend_from_slice(b"\r\n");
            }
            whole.extend_from_slice(b"0\r\nA: b\r\n\r\n");
            let len = whole.len();
            whole.extend_from_slice(b"GET / HTTP/1.1\r\n");
            let (mut body, mut rest, mut sum) = (Body::chunked(), &whole[..], 0);
            for cut in cuts.iter().cycle() {
                let part = &rest[..rest.len().min(*cut)];
                let took = body.take(part).unwrap();
                sum += took;
                if took < part.len() || part.is_empty() {
                    break;
                }
                rest = &rest[took..];
            }
            prop_assert!(body.is_done());
            prop_assert_eq!(sum, len);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Body::chunked().take(&bytes);
        }
    }
}
