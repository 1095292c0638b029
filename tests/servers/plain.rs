//! A small server that starts at once, for tests with many servers: answers with its generation and
//! pid, speaks the control channel by hand. Arguments: the addresses to READY and bind (a word in lower
//! case is a flag), and any of
//!
//! - `takedown`: take TAKEDOWN; close, say RELEASED, exit when all is released and answered
//! - `mute`: say nothing, just bind; `hang`: neither READY nor bind; `stubborn`: ignore SIGTERM
//! - `exit=N`: exit at once; `die`: exit with 9 instead of binding; `fail`: say FAIL
//! - `babble`: write nonsense before anything else; `up`: say UP after READY
//! - `signals=FILE`: append the name of every signal that comes to the file, and die of none but TERM
//!   and INT, with the status that they give
//! - `pipe=FIFO`: write to the control channel whatever comes out of the fifo
//! - `echo`: no server at all, gives back every line of its standard input; `stamp`: prints the time;
//!   `talk=SOCKET`: writes its standard input to the socket and prints the answer
//! - `before-ready=FIFO`, `before-listen=FIFO`, `before-release=FIFO`, `before-exit=FIFO`: wait there
//!   until somebody has opened the fifo and closed it again
//! - `accept=FIFO`: listens, and accepts only then; `hold=FIFO`: answers a request for /hold only then
//! - `said=FILE`: make the file when the supervisor has taken READY in

use nix::sys::signal::{SigHandler, Signal, signal};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

#[derive(Clone)]
struct Flags(Vec<String>);

impl Flags {
    fn has(&self, flag: &str) -> bool {
        self.0.iter().any(|f| f == flag)
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.0.iter().find_map(|f| f.strip_prefix(key)?.strip_prefix('='))
    }

    /// Waits at a gate, if there is one of that name.
    fn pass(&self, gate: &str) {
        if let Some(fifo) = self.value(gate) {
            let mut all = Vec::new();
            File::open(fifo).and_then(|mut fifo| fifo.read_to_end(&mut all)).expect("a fifo");
        }
    }
}

fn main() {
    let is_flag = |word: &String| word.contains('=') || word.bytes().all(|b| b.is_ascii_lowercase());
    let (flags, addresses): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(is_flag);
    let flags = Flags(flags);
    // As the supervisor will say it.
    let addresses: Vec<String> =
        addresses.into_iter().map(|a| a.strip_prefix("0.0.0.0").map(str::to_owned).unwrap_or(a)).collect();
    if flags.has("echo") {
        return io::stdin().lines().for_each(|line| println!("{}", line.expect("a line")));
    }
    if let Some(path) = flags.value("talk") {
        let socket = UnixStream::connect(path).unwrap_or_else(|e| {
            println!("{e}");
            std::process::exit(1)
        });
        let _ = io::copy(&mut io::stdin(), &mut &socket);
        let _ = io::copy(&mut &socket, &mut io::stdout());
        return;
    }
    if flags.has("stamp") {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
        return println!("{}{:09}", now.tv_sec(), now.tv_nsec());
    }
    if flags.has("stubborn") {
        // SAFETY: no handler of ours runs.
        unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }.expect("signal");
    }
    if let Some(file) = flags.value("signals") {
        note_signals(file.to_owned(), flags.clone());
    }
    let fd = std::env::var("SERVERSWAP_FD").ok().and_then(|n| n.parse().ok());
    // SAFETY: serverswap passes this fd to us, and nobody else in this process uses it.
    let inherited = fd.map(|fd| unsafe { UnixStream::from_raw_fd(fd) });
    let connect = || std::env::var_os("SERVERSWAP_SOCKET").map(|path| UnixStream::connect(path).expect("a socket"));
    let control = inherited.or_else(connect);
    if flags.has("babble") {
        let mut out = control.as_ref().expect("a control channel");
        let noise: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        out.write_all(&noise)
            .and_then(|()| out.write_all(b"\nGO :1\n\nREADY\nREADY :99999\nREADY  x\n"))
            .expect("noise");
    }
    if let Some(status) = flags.value("exit") {
        std::process::exit(status.parse().expect("a status"));
    }
    if flags.has("fail") {
        let _ = writeln!(control.as_ref().expect("a control channel"), "FAIL no \"database\"");
        loop {
            std::thread::park();
        }
    }
    flags.pass("before-ready");
    if flags.has("hang") {
        loop {
            std::thread::park();
        }
    }
    match control {
        Some(control) if !flags.has("mute") => speak(&control, &addresses, &flags),
        _ => addresses.iter().for_each(|address| std::mem::forget(serve(address, &flags))),
    }
    loop {
        std::thread::park();
    }
}

fn speak(control: &UnixStream, addresses: &[String], flags: &Flags) {
    let say = |line: &str| {
        let mut control = control;
        // The supervisor may be dead: the server lives on.
        let _ = control.write_all(format!("{line}\n").as_bytes());
    };
    if let Some(fifo) = flags.value("pipe") {
        let (fifo, mut control) = (fifo.to_owned(), control.try_clone().expect("clone"));
        std::thread::spawn(move || io::copy(&mut File::open(fifo).expect("a fifo"), &mut control));
    }
    for address in addresses {
        if flags.has("takedown") {
            say(&format!("TAKEDOWN {address}"));
        }
        say(&format!("READY {address}"));
    }
    if flags.value("said").is_some() {
        say("PING");
    }
    if flags.has("up") {
        say("UP");
    }
    let mut listeners = BTreeMap::new();
    for line in BufReader::new(control).lines().map_while(Result::ok) {
        match line.split_once(' ').expect("a word and more") {
            ("GO", address) => {
                flags.pass("before-listen");
                if flags.has("die") {
                    std::process::exit(9);
                }
                let ours = addresses.iter().any(|own| own == address);
                if ours && !listeners.contains_key(address) {
                    listeners.insert(address.to_owned(), serve(address, flags));
                }
            }
            ("TAKEDOWN", address) => {
                flags.pass("before-release");
                drop(listeners.remove(address));
                say(&format!("RELEASED {address}"));
                if listeners.is_empty() {
                    flags.pass("before-exit");
                    while BUSY.load(Ordering::SeqCst) > 0 {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    std::process::exit(0);
                }
            }
            ("ERROR", "unknown word") => {
                if let Some(file) = flags.value("said") {
                    File::create(file).expect("a file");
                }
            }
            _ => {}
        }
    }
    // The supervisor is dead. Who serves lives on; who waits for GO would wait for ever.
    if listeners.is_empty() && !addresses.is_empty() {
        std::process::exit(1);
    }
    std::mem::forget(listeners);
}

/// Connections that have not had their answer. Who takes TAKEDOWN finishes them before it ends.
static BUSY: AtomicUsize = AtomicUsize::new(0);

/// One of them.
struct Busy;

impl Busy {
    fn new() -> Busy {
        BUSY.fetch_add(1, Ordering::SeqCst);
        Busy
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Closes the listening socket when it is dropped: the thread that accepts on it does not keep it open. What that has
/// accepted is busy then.
struct Listening(Option<(TcpListener, JoinHandle<()>)>);

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some((listener, accepting)) = self.0.take() {
            let _ = nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
            let _ = accepting.join();
        }
    }
}

fn serve(address: &str, flags: &Flags) -> Listening {
    if !address.contains(':') {
        return Listening(None);
    }
    let bind = if address.starts_with(':') { format!("0.0.0.0{address}") } else { address.to_owned() };
    let listener = TcpListener::bind(&bind).unwrap_or_else(|e| {
        eprintln!("plain-server: bind {bind}: {e}");
        std::process::exit(98)
    });
    let name = format!("{} {}", std::env::var("SERVERSWAP_GENERATION").unwrap_or_default(), std::process::id());
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
    let (accepting, flags) = (listener.try_clone().expect("clone"), flags.clone());
    let accepts = std::thread::spawn(move || {
        flags.pass("accept");
        while let Ok((mut stream, _)) = accepting.accept() {
            let (answer, flags) = (answer.clone(), flags.clone());
            let mut busy = Some(Busy::new());
            std::thread::spawn(move || {
                let mut request = [0; 1024];
                while let Ok(length @ 1..) = stream.read(&mut request) {
                    busy.get_or_insert_with(Busy::new);
                    let text = String::from_utf8_lossy(&request[..length]).into_owned();
                    if text.starts_with("GET /hold ") {
                        flags.pass("hold");
                    }
                    let last = text.contains("Connection: close");
                    let ill = text.starts_with("GET /ill ");
                    let answer = if ill { answer.replacen("200 OK", "500 Ill", 1) } else { answer.clone() };
                    if stream.write_all(answer.as_bytes()).is_err() || last {
                        break;
                    }
                    busy = None;
                }
            });
        }
    });
    Listening(Some((listener, accepts)))
}

fn note_signals(file: String, flags: Flags) {
    let all = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];
    let mut signals = signal_hook::iterator::Signals::new(all.map(|s| s as i32)).expect("signals");
    std::thread::spawn(move || {
        let mut file = File::options().append(true).create(true).open(file).expect("a file");
        for number in &mut signals {
            let signal = Signal::try_from(number).expect("a signal");
            writeln!(file, "{signal}").expect("write");
            if matches!(signal, Signal::SIGTERM | Signal::SIGINT) {
                let flags = flags.clone();
                std::thread::spawn(move || {
                    flags.pass("before-exit");
                    std::process::exit(128 + number);
                });
            }
        }
    });
}
