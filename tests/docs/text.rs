//! The documents as they lie in the repository, and what can be read out of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A file of the repository.
pub fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub fn manual(section: u8) -> String {
    file(&format!("man/serverswap.{section}"))
}

/// All Rust files below `src`, in one.
pub fn sources() -> String {
    fn read(dir: &Path, all: &mut String) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, all);
            } else if path.extension().is_some_and(|e| e == "rs") {
                all.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut all = String::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    all
}

/// The literal blocks of a manual, each with the comment before it: `example: NAME` and the like.
pub fn literal_blocks(manual: &str) -> Vec<(String, String)> {
    let lines: Vec<&str> = manual.lines().collect();
    let begins = |line: &&str| line.starts_with(".Bd -literal");
    let blocks = (0..lines.len()).filter(|&i| begins(&lines[i])).map(|begin| {
        let len = lines[begin..].iter().position(|&l| l == ".Ed").expect("a block ends");
        let text = lines[begin + 1..begin + len].iter().map(|l| format!("{l}\n")).collect::<String>();
        let mark = lines[begin - 1].strip_prefix(".\\\" ").unwrap_or("");
        (mark.to_owned(), text.replace("\\&", "").replace("\\-", "-").replace("\\e", "\\"))
    });
    blocks.collect()
}

/// One block of a manual by its mark.
pub fn block(section: u8, mark: &str) -> String {
    let found: Vec<String> =
        literal_blocks(&manual(section)).into_iter().filter(|(m, _)| m == mark).map(|(_, text)| text).collect();
    assert_eq!(found.len(), 1, "blocks of serverswap({section}) that are marked \"{mark}\"");
    found.into_iter().next().unwrap()
}

/// One example of a manual.
pub fn example(section: u8, name: &str) -> String {
    block(section, &format!("example: {name}"))
}

/// A section of a manual, by its heading.
pub fn section<'a>(manual: &'a str, heading: &str) -> &'a str {
    let begin = manual.find(&format!("\n.Sh {heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    let rest = &manual[begin + 1..];
    &rest[..rest[1..].find("\n.Sh ").map_or(rest.len(), |end| end + 1)]
}

/// A chapter of a Markdown text, by its heading.
pub fn chapter<'a>(text: &'a str, heading: &str) -> &'a str {
    let begin = text.find(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no chapter {heading}"));
    let rest = &text[begin + 1..];
    &rest[..rest[1..].find("\n## ").map_or(rest.len(), |end| end + 1)]
}

/// The fenced blocks of a Markdown text: language, content.
pub fn fenced(text: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let content = lines.by_ref().take_while(|l| *l != "```").map(|l| format!("{l}\n")).collect();
            blocks.push((language.to_owned(), content));
        }
    }
    blocks
}

/// The tags of the lists in a part of a manual: the words of each `.It` line.
pub fn tags(part: &str) -> Vec<Vec<&str>> {
    part.lines().filter_map(|l| l.strip_prefix(".It ")).map(|l| l.split_whitespace().collect()).collect()
}

/// A line of mdoc source as words for people: macros taken away.
pub fn plain(line: &str) -> String {
    let line = line.replace("\\-", "-");
    if !line.starts_with('.') {
        return line;
    }
    let is_macro =
        |w: &&str| w.len() == 2 && w.starts_with(|c: char| c.is_ascii_uppercase()) && *w != "UP" && *w != "GO";
    let words: Vec<&str> = line[1..].split_whitespace().filter(|w| !is_macro(w)).collect();
    let joined = words.join(" ");
    [" .", " ,", " ;", " :"].iter().fold(joined, |text, stop| text.replace(stop, &stop[1..]))
}

/// Every word of the form `-x` or `--long-name`.
pub fn options_in(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    text.split(|c| !word(c)).filter(|w| is_option(w)).map(str::to_owned).collect()
}

fn is_option(word: &str) -> bool {
    match word.strip_prefix("--") {
        Some(name) => name.starts_with(|c: char| c.is_ascii_lowercase()),
        None => word.len() == 2 && word.starts_with('-') && word.ends_with(|c: char| c.is_ascii_alphabetic()),
    }
}

/// What stands between each pair of these in a text.
pub fn between<'a>(text: &'a str, before: &'a str, after: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(before).skip(1).filter_map(move |rest| rest.split_once(after).map(|(found, _)| found))
}
