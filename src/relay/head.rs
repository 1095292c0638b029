//! The head of an HTTP/1 message: where it ends, which body follows, and what is changed in it (RFC 9112). Pure.

#![forbid(unsafe_code)]

use super::body::{Body, Malformed};

/// Longest head that is read, in bytes.
pub const HEAD_MAX: usize = 64 * 1024;

/// The end of a head: that of its last line, and the empty line.
const END: &[u8] = b"\r\n\r\n";

/// Headers that concern one connection only and are replaced by our own `Connection: close`.
const OF_CONNECTION: [&str; 3] = ["connection", "keep-alive", "proxy-connection"];
/// The one that is added.
const CLOSE: &[u8] = b"Connection: close\r\n";

/// A head that is read in parts.
#[derive(Debug, Default)]
pub struct Partial {
    read: Vec<u8>,
}

impl Partial {
    /// Takes what belongs to the head from the begin of what was read. Gives the head, with the empty line at its end, once
    /// it is whole, and how many bytes were taken.
    pub fn take(&mut self, part: &[u8]) -> Result<(Option<Vec<u8>>, usize), Malformed> {
        let before = self.read.len();
        self.read.extend_from_slice(part);
        // Its end may have begun in the part before.
        let from = before.saturating_sub(END.len() - 1);
        let end = self.read[from..].windows(END.len()).position(|four| four == END).map(|at| from + at + END.len());
        match end {
            None if self.read.len() > HEAD_MAX => Err(Malformed),
            Some(end) if end > HEAD_MAX => Err(Malformed),
            None => Ok((None, part.len())),
            Some(end) => {
                self.read.truncate(end);
                Ok((Some(std::mem::take(&mut self.read)), end - before))
            }
        }
    }

    /// What has come so far.
    pub fn so_far(&self) -> &[u8] {
        &self.read
    }
}

/// Whether the begin of a message may be that of a request. A request line that has not come to its end may be.
pub fn may_be_request(bytes: &[u8]) -> bool {
    match bytes.iter().position(|&byte| byte == b'\n') {
        Some(end) => bytes[..end].strip_suffix(b"\r").and_then(|line| method_of(line).ok()).is_some(),
        None => bytes.iter().all(|&byte| byte == b'\r' || byte == b'\t' || !byte.is_ascii_control()),
    }
}

/// A request, as it is sent on.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Its head, with `Connection: close`.
    pub head: Vec<u8>,
    /// What follows it.
    pub body: Body,
    /// Which answers have a body.
    pub asks: Asks,
}

/// What a request asks for, as far as it tells how long the answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// HEAD: a head alone.
    Head,
    /// Any other method.
    All,
}

/// An answer, as it is sent on.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// A status of 100 to 199: it goes on unchanged, and another answer follows.
    Interim,
    /// The answer: its head, with `Connection: close`, and what follows.
    Final(Vec<u8>, Body),
}

/// Reads the head of a request, which is complete.
pub fn request(head: &[u8]) -> Result<Request, Malformed> {
    let (line, headers) = split(head)?;
    let (method, version) = method_of(line)?;
    let mut lengths = Lengths::default();
    for &(name, value) in &headers {
        // It would not be HTTP/1 any more.
        if name.eq_ignore_ascii_case("upgrade") {
            return Err(Malformed);
        }
        if value.iter().any(|&byte| byte.is_ascii_control() && byte != b'\t') {
            return Err(Malformed);
        }
        lengths.note(name, value)?;
    }
    let body = match lengths {
        Lengths { coding: Some(Coding::Chunked), length: None } if version == Version::One => Body::chunked(),
        Lengths { coding: Some(_), .. } => return Err(Malformed),
        Lengths { coding: None, length } => Body::of(length.unwrap_or(0)),
    };
    let asks = if method == b"HEAD" { Asks::Head } else { Asks::All };
    Ok(Request { head: closing(line, &headers), body, asks })
}

/// Reads the head of an answer, which is complete.
pub fn answer(head: &[u8], asks: Asks) -> Result<Answer, Malformed> {
    let (line, headers) = split(head)?;
    let status = status_of(line)?;
    match status {
        // Nobody has asked for another protocol.
        101 => return Err(Malformed),
        100..=199 => return Ok(Answer::Interim),
        _ => {}
    }
    let mut lengths = Lengths::default();
    headers.iter().try_for_each(|(name, value)| lengths.note(name, value))?;
    let body = match lengths {
        _ if asks == Asks::Head || status == 204 || status == 304 => Body::of(0),
        Lengths { coding: Some(_), length: Some(_) } => return Err(Malformed),
        Lengths { coding: Some(Coding::Chunked), .. } => Body::chunked(),
        Lengths { coding: Some(Coding::Other), .. } | Lengths { coding: None, length: None } => Body::UntilEnd,
        Lengths { coding: None, length: Some(length) } => Body::of(length),
    };
    Ok(Answer::Final(closing(line, &headers), body))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Zero,
    One,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Chunked,
    Other,
}

/// What a head says of the length of its body.
#[derive(Debug, Default)]
struct Lengths {
    coding: Option<Coding>,
    length: Option<u64>,
}

impl Lengths {
    /// Takes a header in. A second one that says something about the length is malformed: readers differ in which counts.
    fn note(&mut self, name: &str, value: &[u8]) -> Result<(), Malformed> {
        if name.eq_ignore_ascii_case("transfer-encoding") {
            let coding = if value.eq_ignore_ascii_case(b"chunked") { Coding::Chunked } else { Coding::Other };
            return if self.coding.replace(coding).is_some() { Err(Malformed) } else { Ok(()) };
        }
        if name.eq_ignore_ascii_case("content-length") {
            let is_plain = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let text = std::str::from_utf8(value).map_err(|_| Malformed)?;
            let length = text.parse().ok().filter(|_| is_plain).ok_or(Malformed)?;
            return if self.length.replace(length).is_some() { Err(Malformed) } else { Ok(()) };
        }
        Ok(())
    }
}

/// The first line, and the headers with their values.
fn split(head: &[u8]) -> Result<(&[u8], Vec<Header<'_>>), Malformed> {
    let text = head.strip_suffix(b"\r\n\r\n").ok_or(Malformed)?;
    // A lone CR or LF is a line end for some readers and none for others.
    let is_whole = |(at, byte): (usize, &u8)| match byte {
        b'\r' => text.get(at + 1) == Some(&b'\n'),
        b'\n' => at > 0 && text[at - 1] == b'\r',
        _ => true,
    };
    if !text.iter().enumerate().all(is_whole) {
        return Err(Malformed);
    }
    let mut lines = text.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.next().ok_or(Malformed)?;
    let headers = lines.map(header).collect::<Option<Vec<Header>>>().ok_or(Malformed)?;
    Ok((first, headers))
}

/// Name and value of a header.
type Header<'a> = (&'a str, &'a [u8]);

/// Name and value of a header line.
fn header(line: &[u8]) -> Option<Header<'_>> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    let name = std::str::from_utf8(&line[..colon]).ok()?;
    let is_name = !name.is_empty() && name.bytes().all(is_token);
    is_name.then(|| (name, trimmed(&line[colon + 1..])))
}

/// A value without the blanks around it: no other byte is one (RFC 9110, section 5.5).
fn trimmed(value: &[u8]) -> &[u8] {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let begin = value.iter().position(|byte| !is_blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_blank(byte)).map_or(begin, |at| at + 1);
    &value[begin..end]
}

/// Whether a byte may stand in a name (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The method and the version of a request line.
fn method_of(line: &[u8]) -> Result<(&[u8], Version), Malformed> {
    let mut words = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Malformed);
    };
    let version = match version {
        b"HTTP/1.1" => Version::One,
        b"HTTP/1.0" => Version::Zero,
        _ => return Err(Malformed),
    };
    let is_sound = !method.is_empty() && method.iter().copied().all(is_token) && !target.is_empty();
    // What follows CONNECT is no HTTP.
    if is_sound && method != b"CONNECT" { Ok((method, version)) } else { Err(Malformed) }
}

fn status_of(line: &[u8]) -> Result<u16, Malformed> {
    let rest = line.strip_prefix(b"HTTP/1.1 ").or_else(|| line.strip_prefix(b"HTTP/1.0 ")).ok_or(Malformed)?;
    let digits = rest.split(|&byte| byte == b' ').next().filter(|digits| digits.len() == 3).ok_or(Malformed)?;
    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    number.filter(|number| (100..=999).contains(number)).ok_or(Malformed)
}

/// The head with `Connection: close` in place of what it says of its connection.
fn closing(line: &[u8], headers: &[Header<'_>]) -> Vec<u8> {
    let mut head = [line, b"\r\n"].concat();
    let is_ours = |name: &str| OF_CONNECTION.iter().any(|own| name.eq_ignore_ascii_case(own));
    for (name, value) in headers.iter().filter(|(name, _)| !is_ours(name)) {
        head.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    head.extend_from_slice(CLOSE);
    head.extend_from_slice(b"\r\n");
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_sent_on_with_its_headers_and_closes() {
        let head =
            b"POST /a?b HTTP/1.1\r\nHost: x\r\nKeep-Alive: 5\r\nconnection: Keep-Alive\r\nContent-Length: 12\r\n\r\n";
        let read = request(head).unwrap();
        assert_eq!(read.head, b"POST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\nConnection: close\r\n\r\n");
        assert_eq!((read.body, read.asks), (Body::of(12), Asks::All));
        assert_eq!(request(b"HEAD / HTTP/1.0\r\n\r\n").unwrap().asks, Asks::Head);
        let chunked = request(b"PUT / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\nExpect: 100-continue\r\n\r\n").unwrap();
        assert_eq!(chunked.body, Body::chunked());
        assert!(chunked.head.windows(6).any(|six| six == b"Expect"));
    }

    #[test]
    fn what_two_readers_could_understand_in_two_ways_is_refused() {
        for head in [
            "GET / HTTP/2.0\r\n\r\n",
            "GET /\r\n\r\n",
            "GET  / HTTP/1.1\r\n\r\n",
            "CONNECT x:1 HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: \r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length : 1\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\nA: b\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nnothing\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\0c\r\n\r\n",
            "GET / HTTP/1.1\r\nA: \x0c\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: \x0cchunked\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 1\x0c\r\n\r\n",
        ] {
            assert_eq!(request(head.as_bytes()), Err(Malformed), "{head:?}");
        }
    }

    #[test]
    fn the_body_of_an_answer_is_as_long_as_rfc_9112_says() {
        let body = |head: &str, asks| match answer(head.as_bytes(), asks) {
            Ok(Answer::Final(_, body)) => body,
            other => panic!("{head:?}: {other:?}"),
        };
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", Asks::All), Body::of(7));
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", Asks::Head), Body::of(0));
        assert_eq!(body("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", Asks::All), Body::of(0));
        assert_eq!(body("HTTP/1.1 204\r\n\r\n", Asks::All), Body::of(0));
        assert_eq!(body("HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n", Asks::All), Body::chunked());
        assert_eq!(body("HTTP/1.0 200 OK\r\n\r\n", Asks::All), Body::UntilEnd);
        assert_eq!(answer(b"HTTP/1.1 100 Continue\r\n\r\n", Asks::All), Ok(Answer::Interim));
        for bad in ["HTTP/1.1 101 Switching\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n", "ICY 200 OK\r\n\r\n"] {
            assert_eq!(answer(bad.as_bytes(), Asks::All), Err(Malformed));
        }
    }

    #[test]
    fn a_head_ends_with_its_empty_line_and_has_a_limit() {
        let take = |bytes: &[u8]| Partial::default().take(bytes);
        assert_eq!(take(b"GET / HTTP/1.1\r\n\r\nrest"), Ok((Some(b"GET / HTTP/1.1\r\n\r\n".to_vec()), 18)));
        assert_eq!(take(b"GET / HTTP/1.1\r\n\r"), Ok((None, 17)));
        assert_eq!(take(&vec![b'x'; HEAD_MAX + 1]), Err(Malformed));
        // Wherever it is cut.
        let whole = b"GET / HTTP/1.1\r\n\r\nrest";
        for at in 0..18 {
            let mut head = Partial::default();
            assert_eq!(head.take(&whole[..at]), Ok((None, at)));
            assert_eq!(head.take(&whole[at..]), Ok((Some(whole[..18].to_vec()), 18 - at)));
        }
        assert!(may_be_request(b"") && may_be_request(b"GE") && may_be_request(b"GET / HTTP/1.1\r\nA"));
        assert!(!may_be_request(b"\x16\x03\x01") && !may_be_request(b"GET key\r\n") && !may_be_request(b"GET a\nb"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut head = bytes;
            let _ = (may_be_request(&head), Partial::default().take(&head));
            head.extend_from_slice(b"\r\n\r\n");
            let _ = (request(&head), answer(&head, Asks::All));
        }

        /// What is sent on reads as the same message.
        #[test]
        fn what_is_sent_on_means_the_same(length in 0..100_000u64, extra in "[ -~]{0,20}") {
            let head = format!("POST /x HTTP/1.1\r\nX-Y: {extra}\r\nContent-Length: {length}\r\n\r\n");
            let first = request(head.as_bytes()).unwrap();
            let second = request(&first.head).unwrap();
            prop_assert_eq!(&first.head, &second.head);
            prop_assert_eq!(second.body, Body::of(length));
        }
    }
}
