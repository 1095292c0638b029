//! The history of an address: its last swaps, and how the servers that they replaced went. A line each, with fields
//! separated by tabs, for scripts; pure. Nothing in a file is believed that does not look like such a line.

#![forbid(unsafe_code)]

use crate::sys::pid::Pid;
use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How many swaps are kept.
pub const SWAPS_MAX: usize = 20;
/// And how many lines about servers that were replaced: a swap may replace several.
const DRAINS_MAX: usize = 2 * SWAPS_MAX;
/// Longest text of an end, in characters.
const END_MAX: usize = 300;
/// What is not known.
const UNKNOWN: &str = "-";

/// A generation and its main process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who {
    /// The generation.
    pub generation: u64,
    /// The main process.
    pub pid: Pid,
}

/// The fields of a line after its first word, which says what it is about.
type Keys = (&'static str, &'static [&'static str]);

/// A swap that has ended.
const SWAP: Keys = ("swap", &["time", "from", "from_pid", "to", "to_pid", "up_ms", "switch_ms", "gone_ms", "end"]);
/// A server that was replaced, and is gone.
const DRAIN: Keys = ("drain", &["time", "generation", "pid", "drain_ms", "cut", "answered", "unanswered"]);

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    keys: Keys,
    fields: Vec<String>,
}

impl Entry {
    /// A swap. `steps`: from the start to up, from there to the switch, and from there until the old server was gone.
    pub fn swap(from: Who, to: Who, steps: [Option<Duration>; 3], end: &str) -> Entry {
        let whose = [from, to].into_iter().flat_map(|who| [who.generation.to_string(), who.pid.to_string()]);
        let fields = [now()].into_iter().chain(whose).chain(steps.map(millis)).chain([visible(end)]).collect();
        Entry { keys: SWAP, fields }
    }

    /// A server that was replaced. `counts`: busy connections that were cut, requests on kept connections that the new
    /// server answered, and those that were left unanswered.
    pub fn drain(who: Who, took: Option<Duration>, counts: [Option<usize>; 3]) -> Entry {
        let own = [now(), who.generation.to_string(), who.pid.to_string(), millis(took)];
        Entry { keys: DRAIN, fields: own.into_iter().chain(counts.map(known)).collect() }
    }

    /// Reads a line; `None` if it is none.
    fn parse(line: &str) -> Option<Entry> {
        let mut fields = line.split('\t');
        let kind = fields.next()?;
        let keys = [SWAP, DRAIN].into_iter().find(|(name, _)| *name == kind)?;
        let fields: Vec<String> = fields.map(visible).collect();
        let fits = |(key, field): (&&str, &String)| match *key {
            "time" => is_time(field),
            "end" => !field.is_empty(),
            _ => {
                field == UNKNOWN || !field.is_empty() && field.len() <= 20 && field.bytes().all(|b| b.is_ascii_digit())
            }
        };
        (fields.len() == keys.1.len() && keys.1.iter().zip(&fields).all(fits)).then_some(Entry { keys, fields })
    }

    /// What it is about, and its fields by their names.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [("kind", self.keys.0)]
            .into_iter()
            .chain(self.keys.1.iter().copied().zip(self.fields.iter().map(String::as_str)))
    }

    /// Whether it tells of the swap to this server.
    pub fn is_of(&self, new: Who) -> bool {
        (self.field("to"), self.field("to_pid")) == (&new.generation.to_string(), &new.pid.to_string())
    }

    fn field(&self, key: &str) -> &str {
        self.fields().find(|(name, _)| *name == key).map_or(UNKNOWN, |(_, field)| field)
    }

    /// As people read it.
    pub fn sentence(&self) -> String {
        let field = |key| self.field(key);
        let after = |what: &str, key| match self.field(key).parse::<u64>() {
            Ok(millis) => Some(format!("{what} {}.{:03} s", millis / 1000, millis % 1000)),
            Err(_) => None,
        };
        let parts = match self.keys {
            SWAP => [
                after("up after", "up_ms"),
                after("switched after", "switch_ms"),
                after("the old one gone after", "gone_ms"),
                Some(field("end").to_owned()),
            ],
            _ => [
                after("it took", "drain_ms"),
                Some(format!("{} busy connections cut", field("cut"))),
                Some(format!("{} requests answered by the new one", field("answered"))),
                Some(format!("{} left unanswered", field("unanswered"))),
            ],
        };
        let parts = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
        let whose = |number, pid| format!("{} (pid {})", field(number), field(pid));
        match self.keys {
            SWAP => format!("{}  {} to {}: {parts}", field("time"), whose("from", "from_pid"), whose("to", "to_pid")),
            _ => format!("{}  {} has gone: {parts}", field("time"), whose("generation", "pid")),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\t{}", self.keys.0, self.fields.join("\t"))
    }
}

/// The lines of a file, without what is none.
pub fn parse(text: &str) -> Vec<Entry> {
    text.lines().filter_map(Entry::parse).collect()
}

/// The lines that stay: the last swaps, and what is said of the servers that these replaced.
pub fn keep(entries: Vec<Entry>) -> Vec<Entry> {
    let swaps: Vec<usize> = (0..entries.len()).filter(|at| entries[*at].keys == SWAP).collect();
    let first = swaps.len().checked_sub(SWAPS_MAX).map_or(0, |surplus| swaps[surplus]);
    let own = |entry: &Entry, keys: [&str; 2]| keys.map(|key| entry.field(key).to_owned());
    let last = entries[first..].iter().filter(|entry| entry.keys == SWAP);
    let replaced: BTreeSet<[String; 2]> = last.map(|swap| own(swap, ["from", "from_pid"])).collect();
    let mut drains = 0;
    let mut stays = |(at, entry): &(usize, Entry)| {
        let is_last = *at >= first || entry.keys == DRAIN && replaced.contains(&own(entry, ["generation", "pid"]));
        drains += usize::from(is_last && entry.keys == DRAIN);
        is_last && (entry.keys == SWAP || drains <= DRAINS_MAX)
    };
    // The latest ones first: of too many, they stay.
    let mut kept: Vec<(usize, Entry)> = entries.into_iter().enumerate().rev().filter(|entry| stays(entry)).collect();
    kept.reverse();
    kept.into_iter().map(|(_, entry)| entry).collect()
}

/// The text of a file.
pub fn text(entries: &[Entry]) -> String {
    entries.iter().map(|entry| format!("{entry}\n")).collect()
}

fn known(value: Option<impl fmt::Display>) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), |value| value.to_string())
}

fn millis(time: Option<Duration>) -> String {
    known(time.map(|time| time.as_millis()))
}

/// A text in one line, which ends no field and drives no terminal.
fn visible(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().take(END_MAX).map(shown).collect()
}

fn now() -> String {
    utc(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()))
}

/// A time as in RFC 3339, for years of four digits.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    // Years that begin in March, in eras of 400: the leap day is the last one of its year.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

fn is_time(text: &str) -> bool {
    let shape = "0000-00-00T00:00:00Z";
    let same = |(c, of): (u8, u8)| if of == b'0' { c.is_ascii_digit() } else { c == of };
    text.len() == shape.len() && text.bytes().zip(shape.bytes()).all(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(generation: u64) -> Who {
        Who { generation, pid: Pid::new(1000 + generation as i64).unwrap() }
    }

    fn swap(from: u64, end: &str) -> Entry {
        let steps = [Some(Duration::from_millis(1412)), Some(Duration::ZERO), None];
        Entry::swap(who(from), who(from + 1), steps, end)
    }

    fn drain(generation: u64) -> Entry {
        Entry::drain(who(generation), Some(Duration::from_millis(70)), [None, Some(3), Some(0)])
    }

    #[test]
    fn times_are_those_of_date() {
        let times = [0, 951_782_400, 1_583_020_799, 1_796_091_253, 4_107_542_400].map(utc);
        let dates = [
            "1970-01-01T00:00:00Z",
            "2000-02-29T00:00:00Z",
            "2020-02-29T23:59:59Z",
            "2026-12-01T02:14:13Z",
            "2100-03-01T00:00:00Z",
        ];
        assert_eq!(times, dates);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let all = vec![swap(1, "done"), drain(1), swap(2, "failed: a\tb\n\u{1b}[2J \\ é")];
        let text = text(&all);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.lines().all(|line| !line.contains(|c: char| c.is_control() && c != '\t')), "{text}");
        assert_eq!(parse(&text), all);
        let fields: Vec<&str> = text.lines().nth(1).unwrap().split('\t').collect();
        assert_eq!((fields[0], &fields[2..]), ("drain", &["1", "1001", "70", "-", "3", "0"][..]));
        let line: Vec<&str> = text.lines().next().unwrap().split('\t').collect();
        assert_eq!((line[0], &line[2..]), ("swap", &["1", "1001", "2", "1002", "1412", "0", "-", "done"][..]));
        let sentence = all[0].sentence();
        let told = "1 (pid 1001) to 2 (pid 1002): up after 1.412 s, switched after 0.000 s, done";
        assert!(sentence.ends_with(told), "{sentence}");
    }

    #[test]
    fn what_is_no_line_is_dropped_and_nothing_drives_a_terminal() {
        let time = "2026-12-01T02:14:13Z";
        let good = format!("swap\t{time}\t1\t2\t3\t4\t5\t6\t7\tdone");
        let long = format!("swap\t{time}\t1\t2\t3\t4\t5\t6\t7\t{}", "x".repeat(5000));
        let driving = format!("swap\t{time}\t1\t2\t3\t4\t5\t6\t7\tfailed: \u{1b}]0;x\u{7}\u{9b}\r");
        for bad in [
            "",
            "swap",
            "\t\t\t",
            "drain\t1",
            "other\t1\t2",
            &good[1..],
            &good.replace("\t4\t", "\t-4\t"),
            &good.replace("\t4\t", "\t\t"),
            &good.replace("\t4\t", "\t\u{1b}\t"),
            &good.replace('T', " "),
            &format!("{good}\tmore"),
            &good.replace("\tdone", "\t"),
            &good.replace("\t4\t", &format!("\t{}\t", "4".repeat(21))),
        ] {
            assert_eq!(parse(bad), [], "{bad:?}");
        }
        let read = parse(&format!("x\n{good}\n\u{0}\n{long}\n{driving}\n"));
        assert_eq!(read.len(), 3);
        for entry in read {
            let shown = entry.sentence() + entry.field("end");
            assert!(shown.len() < 1500 && !shown.contains(char::is_control), "{shown:?}");
        }
    }

    #[test]
    fn the_last_swaps_are_kept_and_the_servers_that_they_replaced() {
        let mut all = Vec::new();
        for generation in 1..=30 {
            // What an old server says may come before its swap has ended.
            all.extend([drain(generation), swap(generation, "done")]);
            all = keep(all);
            let swaps = all.iter().filter(|entry| entry.keys == SWAP).count();
            assert_eq!((swaps, all.len()), (SWAPS_MAX.min(generation as usize), 2 * swaps));
        }
        assert_eq!(
            (all[0].clone(), all[1].field("from")),
            (Entry { fields: all[0].fields.clone(), ..drain(11) }, "11")
        );
        all.extend((0..200).map(|_| drain(99)));
        let kept = keep(all);
        assert_eq!(kept.iter().filter(|entry| entry.keys == SWAP).count(), SWAPS_MAX);
        assert_eq!(kept.len(), SWAPS_MAX + DRAINS_MAX);
    }
}
