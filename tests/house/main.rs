//! `make house`: measures the Rust source below `src`, prints the figures, and fails where one is over its limit.
//!
//! What is measured, always without tests:
//!
//! - the lines of all files together, blank lines and comments included;
//! - the lines of each file: 400 at most;
//! - the lines of each function, from its first word to its last brace, without its comment: 60 at most;
//! - the fields of each struct, and of each variant of an enum: 12 at most;
//! - the files that depend on each other in a circle: none.
//!
//! Tests are items under `#[cfg(test)]`, the files of such a module, files that are named `tests.rs`, and everything
//! below a folder that is named `tests`.
//!
//! A file depends on another one if it names something that is defined there. See `paths.rs` for how names are followed.
//! A parent that only declares `mod x;`, or passes a name of `x` on by `pub use`, does not depend on `x`.
//!
//! What is still too big is listed in `exceptions`, with its size. A thing that is not in the list fails beyond the
//! limit; a thing in the list fails if it has grown; an entry that is not needed any more fails too. So the list can
//! only become shorter.

mod exceptions;
mod paths;
mod source;

use exceptions::Exceptions;
use source::{Kind, Size, Source};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (sizes, exceptions) = match (measure(root), Exceptions::read(&root.join("tests/house/exceptions"))) {
        (Ok(sizes), Ok(exceptions)) => (sizes, exceptions),
        (Err(why), _) | (_, Err(why)) => {
            eprintln!("house: {why}");
            return ExitCode::FAILURE;
        }
    };
    for kind in Kind::ALL {
        print(kind, &sizes);
    }
    let faults = exceptions.check(&sizes);
    for fault in &faults {
        eprintln!("house: {fault}");
    }
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Everything below `src` that has a size.
fn measure(root: &Path) -> Result<Vec<Size>, String> {
    let source = Source::read(root)?;
    let mut sizes = source.sizes();
    sizes.extend(paths::cycles(&source));
    Ok(sizes)
}

/// How many things of a kind are too big, and which.
fn print(kind: Kind, sizes: &[Size]) {
    let mut those: Vec<&Size> = sizes.iter().filter(|size| size.kind == kind).collect();
    those.sort_by(|a, b| b.value.cmp(&a.value).then_with(|| a.name.cmp(&b.name)));
    let over = those.iter().filter(|size| size.value > kind.limit()).count();
    match kind {
        Kind::Lines => println!("lines, without tests"),
        _ => println!("{}: {over} of {} over {}", kind.plural(), those.len(), kind.limit()),
    }
    for Size { name, value, detail, .. } in those.into_iter().take(over) {
        println!("{value:7} {name}{}{detail}", if detail.is_empty() { "" } else { ": " });
    }
}
