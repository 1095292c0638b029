//! A client of HTTP/1 that keeps its connection, tries nothing twice and does not look whether it was closed.

use crate::common::DEADLINE;
use nix::libc;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

/// A kept connection.
pub struct Client {
    pub stream: TcpStream,
    read: Vec<u8>,
}

/// An answer, without its interim ones.
#[derive(Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    /// The statuses of what came before it.
    pub interim: Vec<u16>,
}

impl Answer {
    pub fn generation(&self) -> u64 {
        self.headers.get("x-generation").map_or(0, |g| g.parse().unwrap())
    }

    pub fn closes(&self) -> bool {
        self.headers.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    pub fn connect(port: u16) -> Client {
        Client::to(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    pub fn to(address: SocketAddr) -> Client {
        let stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Client { stream, read: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// A request and its answer.
    pub fn ask(&mut self, head: &str, body: &[u8]) -> io::Result<Answer> {
        let method = head.split(' ').next().unwrap().to_owned();
        let head = format!("{head} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        self.send([head.as_bytes(), body].concat())?;
        self.answer(&method)
    }

    /// An id, which is to come back.
    pub fn post(&mut self, id: &str) -> io::Result<Answer> {
        let answer = self.ask("POST /", id.as_bytes())?;
        assert!(answer.status == 503 || answer.text().ends_with(id), "{answer:?}");
        Ok(answer)
    }

    /// The next answer.
    pub fn answer(&mut self, method: &str) -> io::Result<Answer> {
        let mut interim = Vec::new();
        loop {
            let mut answer = self.head()?;
            if answer.status < 200 {
                interim.push(answer.status);
                continue;
            }
            answer.interim = interim;
            let coding = answer.headers.get("transfer-encoding").map(String::as_str);
            let length = answer.headers.get("content-length").map(|length| length.parse().unwrap());
            answer.body = match (coding, length) {
                _ if method == "HEAD" || answer.status == 204 || answer.status == 304 => Vec::new(),
                (Some("chunked"), _) => self.chunks()?,
                (_, Some(length)) => self.take(length)?,
                (_, None) => {
                    let mut all = std::mem::take(&mut self.read);
                    self.stream.read_to_end(&mut all)?;
                    all
                }
            };
            return Ok(answer);
        }
    }

    fn head(&mut self) -> io::Result<Answer> {
        let text = String::from_utf8(self.line(b"\r\n\r\n")?).unwrap();
        let mut lines = text.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap().parse().unwrap();
        let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Ok(Answer { status, headers: lines.filter_map(header).collect(), ..Answer::default() })
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = String::from_utf8(self.line(b"\r\n")?).unwrap();
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            body.extend(self.take(size)?);
            self.line(b"\r\n")?;
            if size == 0 {
                return Ok(body);
            }
        }
    }

    /// All until this end, and it.
    fn line(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|part| part == end) {
                return self.take(at + end.len());
            }
            self.more()?;
        }
    }

    pub fn take(&mut self, len: usize) -> io::Result<Vec<u8>> {
        while self.read.len() < len {
            self.more()?;
        }
        Ok(self.read.drain(..len).collect())
    }

    fn more(&mut self) -> io::Result<()> {
        let mut part = [0; 64 * 1024];
        match self.stream.read(&mut part)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            len => {
                self.read.extend_from_slice(&part[..len]);
                Ok(())
            }
        }
    }

    /// How many segments were sent again (tcp(7), `TCP_INFO`).
    pub fn resent(&self) -> u32 {
        // SAFETY: all zero is a valid value, and both pointers are valid through the call.
        unsafe {
            let (mut info, mut size) = (std::mem::zeroed::<libc::tcp_info>(), size_of::<libc::tcp_info>() as u32);
            let (fd, to) = (self.stream.as_raw_fd(), (&raw mut info).cast());
            assert_eq!(libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, to, &raw mut size), 0);
            info.tcpi_total_retrans
        }
    }
}
