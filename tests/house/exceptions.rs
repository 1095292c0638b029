//! The list of what is still too big.

use crate::source::{Kind, Size};
use std::collections::BTreeMap;
use std::path::Path;

/// The entries of the list, by kind and name.
pub struct Exceptions(BTreeMap<(Kind, String), usize>);

impl Exceptions {
    /// Reads the list: one entry a line, which is a kind, a name and a size. A line that begins with `#` is a comment.
    pub fn read(path: &Path) -> Result<Exceptions, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("unable to read {}: {e}", path.display()))?;
        let mut entries = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let entry = parse(line).ok_or_else(|| format!("no entry of the list of exceptions: {line}"))?;
            if entries.insert(entry.0, entry.1).is_some() {
                return Err(format!("it is twice in the list of exceptions: {line}"));
            }
        }
        Ok(Exceptions(entries))
    }

    /// Compares the list with what was measured; a sentence for each fault.
    pub fn check(mut self, sizes: &[Size]) -> Vec<String> {
        let mut faults = Vec::new();
        for Size { kind, name, value, .. } in sizes {
            let limit = kind.limit();
            match self.0.remove(&(*kind, name.clone())) {
                Some(listed) if *value > listed => {
                    faults.push(format!("{kind} {name} has grown from {listed} to {value}"))
                }
                Some(_) if *value <= limit => {
                    faults.push(format!("{kind} {name} is small enough now: remove it from the list of exceptions"));
                }
                None if *value > limit => faults.push(format!("{kind} {name} is {value}, the limit is {limit}")),
                Some(_) | None => {}
            }
        }
        let gone = self.0.into_keys();
        faults.extend(
            gone.map(|(kind, name)| format!("{kind} {name} is not there: remove it from the list of exceptions")),
        );
        faults
    }
}

fn parse(line: &str) -> Option<((Kind, String), usize)> {
    let (kind, rest) = line.split_once(' ')?;
    let (name, value) = rest.rsplit_once(' ')?;
    Some(((Kind::ALL.into_iter().find(|k| k.to_string() == kind)?, name.to_owned()), value.parse().ok()?))
}
