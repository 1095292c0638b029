//! The table of `--status`, for people and for programs.

#![forbid(unsafe_code)]

use std::io::{self, Write};

/// A line of the table.
pub struct Row(pub [String; 10]);

const HEADER: [&str; 10] =
    ["ADDRESS", "GENERATION", "PID", "SUPERVISOR", "USER", "STATE", "MODE", "UPTIME", "CONNECTIONS", "COMMAND"];

/// A time as people read it.
pub fn for_people(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// Prints the table: aligned and with a header for people, in columns separated by tabs for programs.
pub fn print(rows: &[Row], people: bool) -> io::Result<()> {
    let mut out = String::new();
    if people {
        let header = HEADER.map(str::to_owned);
        let table: Vec<&[String; 10]> = std::iter::once(&header).chain(rows.iter().map(|r| &r.0)).collect();
        let widths: Vec<usize> =
            (0..10).map(|i| table.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
        for row in table {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            out.push_str(cells.join("  ").trim_end());
            out.push('\n');
        }
    } else {
        for Row(cells) in rows {
            out.push_str(&cells.join("\t"));
            out.push('\n');
        }
    }
    io::stdout().write_all(out.as_bytes())
}
