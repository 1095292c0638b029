//! Bytes to lines: a line is an upper-case word, a space, an argument, LF (a CR before it is dropped).

use std::fmt;

/// Longest line in bytes, LF included.
pub const LINE_MAX: usize = 1024;

/// Cuts a byte stream into lines, in constant memory whatever arrives.
#[derive(Default)]
pub struct Splitter {
    partial: Vec<u8>,
    skipping: bool,
}

impl Splitter {
    /// Takes the bytes that were read and returns the lines that they complete. An `Err` is the text of the ERROR line that
    /// answers a malformed line. What follows the last LF waits for the next call.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Result<String, &'static str>> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            let complete = piece.ends_with(b"\n");
            if !self.skipping {
                self.partial.extend_from_slice(piece);
                // Without its LF a line may be one byte short of the limit and no longer.
                if self.partial.len() > LINE_MAX || (!complete && self.partial.len() == LINE_MAX) {
                    lines.push(Err("line too long"));
                    self.skipping = true;
                }
            }
            if complete {
                if !self.skipping {
                    lines.push(text_of(&self.partial));
                }
                self.partial.clear();
                self.skipping = false;
            } else if self.skipping {
                self.partial.clear();
            }
        }
        lines
    }
}

fn text_of(line: &[u8]) -> Result<String, &'static str> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match std::str::from_utf8(line) {
        Err(_) => Err("not UTF-8"),
        Ok("") => Err("empty line"),
        Ok(text) if text.chars().any(char::is_control) => Err("control character in line"),
        Ok(text) => Ok(text.to_owned()),
    }
}

/// A word as the bytes of its line: one line whatever its text holds, cut to [`LINE_MAX`].
pub fn line_of(word: &impl fmt::Display) -> Vec<u8> {
    let mut line: String = word.to_string().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let mut end = line.len().min(LINE_MAX - 1);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line.push('\n');
    line.into_bytes()
}
