//! Connections between supervisors: lines and files in order, and an end, which may come in the middle of a line.

use crate::kernel;
use crate::protocol::{Splitter, line_of};
use crate::sys::steer::Socket;
use std::collections::VecDeque;
use std::fmt::Display;

/// One direction of a connection.
#[derive(Default)]
pub struct Pipe {
    chunks: VecDeque<(Vec<u8>, Vec<Socket>)>,
    /// Nobody writes any more.
    is_shut: bool,
    /// Nobody reads any more.
    is_left: bool,
    splitter: Splitter,
}

/// What a reader gets.
pub enum Read {
    Lines(Vec<Socket>, Vec<Result<String, &'static str>>),
    End,
}

impl Pipe {
    pub fn send(&mut self, word: &impl Display, files: Vec<Socket>) {
        if !(self.is_shut || self.is_left) {
            self.chunks.push_back((line_of(word), files));
        }
    }

    pub fn has_more(&self) -> bool {
        !self.is_left && (self.is_shut || !self.chunks.is_empty())
    }

    pub fn read(&mut self) -> Read {
        match self.chunks.pop_front() {
            Some((bytes, files)) => {
                let files = files.iter().filter_map(|file| file.try_clone().ok()).collect();
                Read::Lines(files, self.splitter.push(&bytes))
            }
            None => {
                self.is_left = true;
                Read::End
            }
        }
    }

    pub fn shut(&mut self) {
        self.is_shut = true;
    }

    pub fn leave(&mut self) {
        self.is_left = true;
        self.chunks.clear();
    }

    /// The writer dies. What it has not written yet is lost: `at` of so many bytes arrive.
    pub fn cut(&mut self, at: usize) {
        let total: usize = self.chunks.iter().map(|(bytes, _)| bytes.len()).sum();
        let mut left = if self.is_shut { total } else { at % (total + 1) };
        for (bytes, files) in &mut self.chunks {
            if bytes.len() > left {
                bytes.truncate(left);
                if left == 0 {
                    files.clear();
                }
            }
            left -= bytes.len().min(left);
        }
        self.chunks.retain(|(bytes, _)| !bytes.is_empty());
        self.is_shut = true;
    }
}

impl std::hash::Hash for Pipe {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.chunks.iter().for_each(|(bytes, files)| (bytes, files.len()).hash(state));
        (self.is_shut, self.is_left).hash(state);
    }
}

/// A connection of a claimer, or an operator, to the supervisor of an old server.
#[derive(Hash)]
pub struct Stream {
    pub claimer: i32,
    /// By which number it knows the old server.
    pub old: u64,
    pub holder: i32,
    pub forth: Pipe,
    pub back: Pipe,
}

impl Stream {
    /// Whether both ends have done with it.
    pub fn is_over(&self) -> bool {
        self.forth.is_left && self.back.is_left
    }

    /// A process at one of its ends has died.
    pub fn lose(&mut self, process: i32) {
        let at = kernel::with(|k| k.draw()) as usize;
        let (writes, reads) = match () {
            () if self.claimer == process => (&mut self.forth, &mut self.back),
            () if self.holder == process => (&mut self.back, &mut self.forth),
            () => return,
        };
        writes.cut(at);
        reads.leave();
    }
}
