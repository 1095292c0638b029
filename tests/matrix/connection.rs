//! A connection to a server of HTTP/1 as a client sees it, and how a request over it can fail.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    Refused,
    Reset,
    /// The connection was closed before the first byte of an answer.
    Empty,
    TimedOut,
    /// An answer that was cut, or is none, or is that of another request.
    Other,
}

impl Failure {
    /// What the system says of a failed call.
    pub fn of(e: &io::Error) -> Failure {
        match e.kind() {
            io::ErrorKind::ConnectionRefused => Failure::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Failure::Reset,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Failure::TimedOut,
            _ => Failure::Other,
        }
    }
}

/// A connection that may stay open.
pub struct Connection {
    stream: BufReader<TcpStream>,
    /// How many requests it has carried.
    pub asked: usize,
    /// The server will take no other request.
    pub closing: bool,
}

impl Connection {
    /// The patience is for the connection, and for each read of an answer.
    pub fn open(address: SocketAddr, patience: Duration) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream: BufReader::new(stream), asked: 0, closing: false })
    }

    /// One request: the body of the answer. Empty and Reset mean that not a byte of an answer came.
    pub fn ask(&mut self, request: &str) -> Result<String, Failure> {
        self.asked += 1;
        self.closing |= request.contains("\r\nConnection: close\r\n");
        let stream = self.stream.get_mut();
        let written = stream.write_all(request.as_bytes());
        let started = written.and_then(|()| self.stream.fill_buf());
        if started.map_err(|e| Failure::of(&e))?.is_empty() {
            return Err(Failure::Empty);
        }
        self.answer().map_err(|e| match Failure::of(&e) {
            Failure::TimedOut => Failure::TimedOut,
            _ => Failure::Other,
        })
    }

    /// The body of an answer, which has a length or comes in chunks.
    fn answer(&mut self) -> io::Result<String> {
        let (mut length, mut line, mut first, mut chunked) = (None, String::new(), true, false);
        let mut old = false;
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let lower = line.trim_end().to_ascii_lowercase();
            if first && !(lower.starts_with("http/1.1 200") || lower.starts_with("http/1.0 200")) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            old |= first && lower.starts_with("http/1.0");
            first = false;
            match lower.split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse().ok(),
                Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
                Some(("connection", value)) => {
                    self.closing |= value.trim() == "close";
                    old &= value.trim() != "keep-alive";
                }
                Some(_) | None => {}
            }
            if lower.is_empty() {
                break;
            }
        }
        self.closing |= old;
        let body = if chunked { self.chunks()? } else { self.bytes(length.ok_or(io::ErrorKind::InvalidData)?)? };
        String::from_utf8(body).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    fn bytes(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(body)
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let length = usize::from_str_radix(line.trim(), 16).map_err(|_| io::ErrorKind::InvalidData)?;
            let chunk = self.bytes(length + 2)?;
            body.extend(&chunk[..length]);
            if length == 0 {
                return Ok(body);
            }
        }
    }
}
