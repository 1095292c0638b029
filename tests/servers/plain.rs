//! A small server that starts at once, for tests with many servers: answers with its generation and
//! pid, speaks the control channel by hand. Arguments: the address to READY and bind, then any of
//! `takedown` (take TAKEDOWN and exit on it), `mute` (say nothing, just bind), `hang` (never READY).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["stamp"] {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
        println!("{}{:09}", now.tv_sec(), now.tv_nsec());
        return;
    }
    let (address, flags) = arguments.split_first().expect("an address");
    let has = |flag: &str| flags.iter().any(|f| f == flag);
    let fd = std::env::var("SERVERSWAP_FD").ok().and_then(|n| n.parse().ok());
    // SAFETY: serverswap passes this fd to us, and nobody else in this process uses it.
    let control = fd.map(|fd| unsafe { UnixStream::from_raw_fd(fd) });
    if has("hang") {
        std::thread::park();
    }
    let mut lines = None;
    if let (Some(control), false) = (&control, has("mute")) {
        if has("takedown") {
            writeln!(&*control, "TAKEDOWN {address}").expect("TAKEDOWN");
        }
        writeln!(&*control, "READY {address}").expect("READY");
        let mut reader = BufReader::new(control.try_clone().expect("clone")).lines();
        let go = reader.next().expect("an answer").expect("a line");
        assert!(go.starts_with("GO "), "{go}");
        lines = Some(reader);
    }
    let bind = if address.starts_with(':') { format!("0.0.0.0{address}") } else { address.clone() };
    let listener = TcpListener::bind(bind).expect("bind");
    let name = format!("{} {}", std::env::var("SERVERSWAP_GENERATION").unwrap_or_default(), std::process::id());
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{name}", name.len());
    if let (Some(mut lines), true) = (lines, has("takedown")) {
        std::thread::spawn(move || {
            if lines.next().is_some_and(|line| line.is_ok_and(|line| line.starts_with("TAKEDOWN"))) {
                std::process::exit(0);
            }
        });
    }
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let answer = answer.clone();
        std::thread::spawn(move || {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer.as_bytes());
        });
    }
}
