//! The table of `--status`: for people, for programs, and as JSON.

#![forbid(unsafe_code)]

use crate::address::Address;
use crate::history::Entry;
use crate::sys::terminal;
use std::io::{self, Write};

/// How many fields a line has.
const FIELDS: usize = 11;

/// A line of the table; `-` is what is not known or does not apply. The history of its address, for JSON with `-v`.
pub struct Row(pub [String; FIELDS], pub Option<Vec<Entry>>);

impl Row {
    /// An address whose servers are gone.
    pub fn of_history(address: &Address, history: &[Entry]) -> Row {
        let field = |nth| if nth == 0 { address.to_string() } else { "-".to_owned() };
        Row(std::array::from_fn(field), Some(history.to_vec()))
    }
}

/// The form of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Aligned, with a header, and as wide as the terminal at most.
    People,
    /// Fields separated by tabs.
    Tabs,
    /// An array of objects.
    Json,
}

const HEADER: [&str; FIELDS] =
    ["ADDRESS", "GEN", "PID", "SUPERVISOR", "USER", "STATE", "MODE", "UPTIME", "CONNS", "LOG", "COMMAND"];
const KEYS: [&str; FIELDS] =
    ["address", "generation", "pid", "supervisor", "user", "state", "mode", "uptime", "connections", "log", "command"];
/// The fields that are numbers, those of a history among them.
const NUMBERS: [&str; 16] = [
    "generation",
    "pid",
    "supervisor",
    "uptime",
    "connections",
    "from",
    "from_pid",
    "to",
    "to_pid",
    "up_ms",
    "switch_ms",
    "gone_ms",
    "drain_ms",
    "cut",
    "answered",
    "unanswered",
];

/// The columns that are left out of a table that is too wide, the first one first.
const DISPENSABLE: [&str; 4] = ["LOG", "MODE", "USER", "SUPERVISOR"];
/// How much of a command is shown at least.
const COMMAND_MIN: usize = 16;
/// The width of a table where the terminal does not tell its own.
const WIDTH: usize = 80;

/// A time as people read it.
pub fn for_people(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// Prints the table.
pub fn print(rows: &[Row], layout: Layout) -> io::Result<()> {
    let text = match layout {
        Layout::People => aligned(rows, terminal::width(&io::stdout()).unwrap_or(WIDTH)),
        Layout::Tabs => rows.iter().map(|Row(fields, _)| fields.join("\t") + "\n").collect(),
        Layout::Json => json(rows),
    };
    write(&text)
}

/// Prints the history of an address below the table.
pub fn print_history(address: &Address, history: &[Entry], layout: Layout) -> io::Result<()> {
    let line = |entry: &Entry| match layout {
        Layout::People => format!("{}\n", entry.sentence()),
        Layout::Tabs => format!("{address}\t{entry}\n"),
        Layout::Json => String::new(),
    };
    let head = if layout == Layout::People && !history.is_empty() { format!("\n{address}\n") } else { String::new() };
    write(&history.iter().map(line).fold(head, |text, line| text + &line))
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn aligned(rows: &[Row], width: usize) -> String {
    let header = HEADER.map(str::to_owned);
    let table: Vec<&[String; FIELDS]> = [&header].into_iter().chain(rows.iter().map(|row| &row.0)).collect();
    let widest = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut columns: Vec<usize> = (0..FIELDS - 1).collect();
    let used = |columns: &[usize]| columns.iter().map(|column| widest(*column) + 2).sum::<usize>();
    for name in DISPENSABLE {
        if used(&columns) + COMMAND_MIN > width {
            columns.retain(|column| HEADER[*column] != name);
        }
    }
    let left = width.saturating_sub(used(&columns)).max(COMMAND_MIN);
    let mut text = String::new();
    for row in &table {
        for column in &columns {
            text.push_str(&format!("{:width$}  ", row[*column], width = widest(*column)));
        }
        text.push_str(&cut(&row[FIELDS - 1], left));
        text.push('\n');
    }
    text
}

/// As much of a text as there is room for.
fn cut(text: &str, room: usize) -> String {
    match text.chars().count() > room {
        true => text.chars().take(room - 3).chain("...".chars()).collect(),
        false => text.to_owned(),
    }
}

fn json(rows: &[Row]) -> String {
    let value = |key: &str, field: &str| match field {
        "-" => "null".to_owned(),
        number if NUMBERS.contains(&key) && number.bytes().all(|byte| byte.is_ascii_digit()) => number.to_owned(),
        text => quoted(text),
    };
    let pair = |(key, field): (&str, &str)| format!("\"{key}\":{}", value(key, field));
    let entry = |entry: &Entry| format!("{{{}}}", entry.fields().map(pair).collect::<Vec<_>>().join(","));
    let object = |Row(fields, history): &Row| {
        let pairs = KEYS.into_iter().zip(fields.iter().map(String::as_str)).map(pair);
        let told = history.iter().map(|all| all.iter().map(entry).collect::<Vec<_>>().join(",\n   "));
        let history = told.map(|entries| format!("\"history\":[{entries}]"));
        format!("{{{}}}", pairs.chain(history).collect::<Vec<_>>().join(","))
    };
    format!("[{}]\n", rows.iter().map(object).collect::<Vec<_>>().join(",\n "))
}

/// A string of JSON (RFC 8259).
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(fields: [&str; FIELDS]) -> Row {
        Row(fields.map(str::to_owned), None)
    }

    #[test]
    fn times_are_short() {
        let texts = [0, 59, 61, 3599, 3661, 86_400 + 7200].map(for_people);
        assert_eq!(texts, ["0s", "59s", "1m01s", "59m59s", "1h01m", "1d02h"]);
    }

    #[test]
    fn a_table_fits_the_terminal() {
        let log = "/var/log/serverswap/node-server.js.log";
        let wide = row([
            "127.0.0.1:18080",
            "12",
            "4194304",
            "4194303",
            "www-data",
            "draining",
            "shared",
            "100d23h",
            "12345",
            log,
            "node /srv/shop/current/server.js --port 18080",
        ]);
        let narrow = row([":80", "1", "5", "-", "root", "serving", "plain", "1s", "-", "-", "x"]);
        let rows = [wide, narrow];
        for width in [80, 100, 200] {
            let text = aligned(&rows, width);
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
            assert!(text.lines().next().unwrap().starts_with("ADDRESS          GEN"), "{text}");
            assert_eq!(text.contains(log), width == 200, "{text}");
        }
        assert!(aligned(&rows, 80).lines().nth(1).unwrap().ends_with("..."));
    }

    #[test]
    fn json_is_json() {
        let one = row([":80", "1", "5", "-", "root", "serving", "plain", "1", "0", "-", "a \"b\"\\\u{1b}"]);
        let expected = "{\"address\":\":80\",\"generation\":1,\"pid\":5,\"supervisor\":null,\"user\":\"root\",\
            \"state\":\"serving\",\"mode\":\"plain\",\"uptime\":1,\"connections\":0,\"log\":null,\
            \"command\":\"a \\\"b\\\"\\\\\\u001b\"}";
        assert_eq!(json(&[one]), format!("[{expected}]\n"));
        assert_eq!(json(&[]), "[]\n");
    }
}
