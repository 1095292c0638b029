//! Says in one sentence that another system than Linux will not do, before hundreds of errors say it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let system = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if system != "linux" {
        println!(
            "cargo::error=serverswap works on Linux only, and this is {system} (it needs seccomp, pidfds and the SO_REUSEPORT of Linux)"
        );
    }
}
