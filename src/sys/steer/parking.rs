//! The filter that keeps requests out of one connection for a moment. The kernel drops a segment that begins like an HTTP/1
//! request, and the client's kernel sends it again until the filter is off. All else passes: TLS, HTTP/2, WebSocket.

use super::marked::{Mark, take_off};
use super::program::equal;
use super::socket::Socket;
use crate::sys::bpf::{jump, stmt};
use crate::sys::net::Moved;
use nix::libc;
use std::io;

/// By which the filter is known.
const PARKING: Mark = Mark(0x5E12_7E13);
/// How requests begin: the first four bytes of the methods of RFC 9110 and of WebDAV (RFC 4918). CONNECT is not among
/// them, since what follows it is no HTTP.
const METHODS: [&[u8; 4]; 15] = [
    b"GET ", b"POST", b"PUT ", b"HEAD", b"DELE", b"OPTI", b"PATC", b"TRAC", b"PROP", b"REPO", b"SEAR", b"MKCO",
    b"COPY", b"MOVE", b"LOCK",
];
/// How pieces of up to three bytes may begin.
const INITIALS: &[u8] = b"GPHDOTRSMCL";

/// Options and indexes that socket(7) does not name (asm-generic/socket.h, linux/sock_diag.h).
const SO_MEMINFO: i32 = 55;
const SK_MEMINFO_DROPS: usize = 8;
/// Bytes of `tcp_info` up to `tcpi_rcv_ooopack` (linux/tcp.h, Linux 5.4), whole words.
const INFO_LEN: usize = 232;

/// How often a look is taken again in whose midst something has come.
const LOOKS_MAX: u32 = 4;

/// A connection at one moment, as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Its state (linux/tcp_states.h).
    pub state: u8,
    /// Bytes that its process has not read yet (SIOCINQ, tcp(7)).
    pub unread: u32,
    /// Bytes that were written and that its peer has not acknowledged yet (SIOCOUTQ).
    pub unacknowledged: u32,
    /// What moved on it.
    pub moved: Moved,
    /// Bytes that were sent for the first time (`tcpi_bytes_sent` without `tcpi_bytes_retrans`).
    pub sent_first: u64,
    /// Segments that were dropped: by a filter, or because they brought nothing new (`sk_drops` of the kernel).
    pub drops: u32,
    /// Segments that came past the filter, those without data too (`tcpi_segs_in`, tcp_segs_in() of the kernel). The probe of
    /// a keep-alive is one, and the kernel drops it.
    pub segments: u32,
    /// How many of them came before others that were sent earlier (`tcpi_rcv_ooopack`).
    pub early: u32,
}

/// How much a server has read and said on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchanged {
    read: u64,
    sent: u64,
}

impl Look {
    /// How much the server has read and said.
    pub fn exchanged(&self) -> Exchanged {
        Exchanged { read: self.moved.bytes_received.saturating_sub(self.unread.into()), sent: self.sent_first }
    }
}

impl Socket {
    /// Drops what begins like a request from here on. `false` if the connection has a filter of the server's, which stays.
    pub fn park(&self) -> io::Result<bool> {
        self.put_filter(PARKING, &program())
    }

    /// Takes the filter of [`Socket::park`] off again, if it is there.
    pub fn unpark(&self) -> io::Result<()> {
        self.take_filter(PARKING)
    }

    /// Looks at a connection: a few calls of a microsecond together.
    pub fn look(&self) -> io::Result<Look> {
        let (drops, unread, info) = self.counts()?;
        let word = |at: usize| info[at / 4];
        let long = |at: usize| {
            let [low, high] = [word(at), word(at + 4)].map(u32::to_ne_bytes);
            u64::from_ne_bytes([low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]])
        };
        Ok(Look {
            state: info[0].to_ne_bytes()[0],
            unread,
            unacknowledged: self.queued(libc::TIOCOUTQ)?,
            moved: Moved { sent: word(44), received: word(52), bytes_sent: long(200), bytes_received: long(128) },
            sent_first: long(200).wrapping_sub(long(208)),
            drops,
            segments: word(140),
            early: word(224),
        })
    }

    /// What was dropped, what is unread, and the rest at the same moment, unless something comes at every try.
    fn counts(&self) -> io::Result<(u32, u32, [u32; INFO_LEN / 4])> {
        let now = || Ok::<_, io::Error>((self.dropped()?, self.queued(libc::FIONREAD)?));
        let mut before = now()?;
        let mut tries = 0;
        loop {
            let info = self.option(libc::IPPROTO_TCP, libc::TCP_INFO)?;
            let (drops, unread) = before;
            before = now()?;
            tries += 1;
            if before == (drops, unread) || tries == LOOKS_MAX {
                return Ok((drops, before.1, info));
            }
        }
    }

    fn dropped(&self) -> io::Result<u32> {
        let memory: [u32; SK_MEMINFO_DROPS + 1] = self.option(libc::SOL_SOCKET, SO_MEMINFO)?;
        Ok(memory[SK_MEMINFO_DROPS])
    }

    fn queued(&self, which: libc::Ioctl) -> io::Result<u32> {
        let mut bytes: libc::c_int = 0;
        // SAFETY: both requests write one int to the pointer, which is valid (tcp(7)).
        match unsafe { libc::ioctl(self.raw(), which, &raw mut bytes) } {
            0 => Ok(u32::try_from(bytes).unwrap_or(0)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Takes the filter off a connection. Async-signal-safe.
pub(in crate::sys) fn unpark_raw(fd: libc::c_int) {
    let _ = take_off(fd, PARKING);
}

/// A filter that drops a segment whose payload begins like a request. A load past its end would drop it too
/// (bpf_prog_run() of the kernel gives 0 then), so lengths are tested first.
fn program() -> Vec<libc::sock_filter> {
    let data = |size: u32| stmt(libc::BPF_LD | size | libc::BPF_IND, 0);
    let initials = 10;
    let long = initials + INITIALS.len();
    let pass = long + 1 + METHODS.len();
    let drop = pass + 1;
    // The distance of a jump from one instruction to another.
    let to = |from: usize, target: usize| (target - from - 1) as u8;
    let mut program = vec![
        PARKING.first(),
        // The length of the TCP header, in units of four bytes.
        stmt(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 12),
        stmt(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 4),
        stmt(libc::BPF_ALU | libc::BPF_LSH | libc::BPF_K, 2),
        stmt(libc::BPF_MISC | libc::BPF_TAX, 0),
        stmt(libc::BPF_LD | libc::BPF_W | libc::BPF_LEN, 0),
        stmt(libc::BPF_ALU | libc::BPF_SUB | libc::BPF_X, 0),
        jump(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 4, to(7, long), 0),
        equal(0, to(8, pass), 0),
        data(libc::BPF_B),
    ];
    for (at, initial) in (initials..).zip(INITIALS) {
        program.push(equal((*initial).into(), to(at, drop), if at + 1 < long { 0 } else { to(at, pass) }));
    }
    program.push(data(libc::BPF_W));
    for (at, method) in (long + 1..).zip(METHODS) {
        program.push(equal(u32::from_be_bytes(*method), to(at, drop), 0));
    }
    program.extend([stmt(libc::BPF_RET | libc::BPF_K, u32::MAX), stmt(libc::BPF_RET | libc::BPF_K, 0)]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::time::{Duration, Instant};

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A connection: the client's end, the server's, and a handle on the latter.
    fn connection() -> (TcpStream, TcpStream, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nodelay(true).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let handle = Socket::new(OwnedFd::from(server.try_clone().unwrap()));
        (client, server, handle)
    }

    fn until(handle: &Socket, what: &str, is: impl Fn(&Look) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is(&handle.look().unwrap()) {
            assert!(Instant::now() < deadline, "{what}: {:?}", handle.look());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn what_begins_like_a_request_is_dropped_and_counted_until_the_filter_is_off() {
        for request in
            ["GET / HTTP/1.1\r\n\r\n", "POST /", "PUT /x", "HEAD /", "DELETE /", "OPTIONS *", "PATCH /", "G", "PO"]
        {
            let (mut client, mut server, handle) = connection();
            assert!(handle.park().unwrap());
            let before = handle.look().unwrap();
            client.write_all(request.as_bytes()).unwrap();
            until(&handle, "it is dropped", |look| look.drops > before.drops);
            let after = handle.look().unwrap();
            let is_same = after.segments == before.segments;
            assert!(after.unread == 0 && is_same && after.moved.bytes_received == 0, "{request}: {after:?}");
            handle.unpark().unwrap();
            let mut read = vec![0; request.len()];
            server.read_exact(&mut read).unwrap();
            assert_eq!(read, request.as_bytes());
        }
    }

    #[test]
    fn what_does_not_begin_like_a_request_passes_at_once() {
        let others: [&[u8]; 8] = [
            b"\x16\x03\x01\x02",
            b"PRI * HTTP/2.0",
            b"\x81\x85abcd",
            b"\0\0\x04\x01\0",
            b"g",
            b"GETX",
            b"\0",
            b"hello",
        ];
        for other in others {
            let (mut client, _server, handle) = connection();
            assert!(handle.park().unwrap());
            client.write_all(other).unwrap();
            until(&handle, "it passes", |look| look.unread as usize == other.len());
            assert_eq!(handle.look().unwrap().drops, 0);
            handle.unpark().unwrap();
        }
    }

    #[test]
    fn a_filter_of_the_servers_own_stays() {
        let (_client, _server, handle) = connection();
        let own = [stmt(libc::BPF_RET | libc::BPF_K, u32::MAX)];
        handle.attach(libc::SO_ATTACH_FILTER, &own).unwrap();
        assert!(!handle.park().unwrap());
        handle.unpark().unwrap();
        unpark_raw(handle.raw());
        assert_eq!(handle.filter().unwrap(), own);
    }

    #[test]
    fn the_guards_way_takes_a_filter_of_ours_off() {
        let (_client, _server, handle) = connection();
        assert!(handle.park().unwrap() && handle.park().unwrap());
        unpark_raw(handle.raw());
        assert_eq!(handle.filter().unwrap(), []);
    }

    /// What brings nothing new is dropped by the kernel too, and has come past the filter.
    #[test]
    fn what_was_sent_is_counted_once() {
        let (mut client, mut server, handle) = connection();
        server.write_all(b"12345").unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
        let look = handle.look().unwrap();
        assert_eq!((look.sent_first, look.moved.bytes_sent, look.state), (5, 5, 1));
        client.write_all(b"123").unwrap();
        until(&handle, "it comes", |look| look.unread == 3);
        let after = handle.look().unwrap();
        assert!(after.segments > look.segments);
        assert_eq!((after.early, after.drops), (0, 0));
    }

    #[test]
    fn the_probe_of_a_keep_alive_is_dropped_and_counted_as_a_segment() {
        let (client, _server, handle) = connection();
        assert!(handle.park().unwrap());
        let before = handle.look().unwrap();
        let client = Socket::new(OwnedFd::from(client));
        client.set_option(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, &1i32).unwrap();
        client.set_option(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, &1i32).unwrap();
        client.set_option(libc::SOL_SOCKET, libc::SO_KEEPALIVE, &1i32).unwrap();
        until(&handle, "a probe is dropped", |look| look.drops > before.drops);
        let after = handle.look().unwrap();
        assert!(after.segments - before.segments >= after.drops - before.drops, "{before:?} {after:?}");
    }
}
