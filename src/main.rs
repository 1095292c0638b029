//! serverswap: restart a server so that nobody notices.
mod address; mod cli; mod error; mod protocol; mod swap;
fn main() {}
