//! A client that keeps its connection, whatever happens: it is answered or closed, and never left waiting. While an old
//! server is about to go, its request may be parked.

use super::client::Client;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

pub struct Kept {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), String>>,
}

impl Kept {
    pub fn start(port: u16) -> Kept {
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // Where nobody listens for a moment that is seen by others.
                if TcpStream::connect(("127.0.0.1", port)).is_err() {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
                let mut client = Client::connect(port);
                while !stop.load(Ordering::Relaxed) {
                    match client.ask("GET /", b"") {
                        Ok(answer) if answer.closes() => break,
                        Ok(_) => std::thread::sleep(Duration::from_millis(5)),
                        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                            return Err("a kept connection is left waiting".to_owned());
                        }
                        Err(_) => break,
                    }
                }
            }
            Ok(())
        });
        Kept { over, thread }
    }

    /// The error says what it met.
    pub fn stop(self) -> Result<(), String> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or(Ok(()))
    }
}
