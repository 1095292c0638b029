//! What the system knows of a user: the name and the home.

use nix::unistd::{Uid, User};
use std::path::PathBuf;

/// The name of a user, or the number if there is no name.
pub fn name(uid: u32) -> String {
    find(uid).map_or_else(|| uid.to_string(), |(name, _)| name)
}

/// The home of a user.
pub fn home(uid: Uid) -> Option<PathBuf> {
    find(uid.as_raw()).map(|(_, home)| home)
}

fn find(uid: u32) -> Option<(String, PathBuf)> {
    // A static program would load name services that were built for another libc.
    if cfg!(target_feature = "crt-static") {
        return std::fs::read_to_string("/etc/passwd").ok()?.lines().find_map(|line| entry(line, uid));
    }
    let user = User::from_uid(uid.into()).ok()??;
    Some((user.name, user.dir))
}

/// The entry of a user in passwd(5).
fn entry(line: &str, uid: u32) -> Option<(String, PathBuf)> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, number, _, _, home, ..] = fields[..] else { return None };
    (number.parse() == Ok(uid)).then(|| (name.to_owned(), home.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_that_of_its_number() {
        let line = "www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin";
        assert_eq!(entry(line, 33), Some(("www-data".into(), "/var/www".into())));
        assert_eq!(entry(line, 3), None);
        assert_eq!(entry("garbage", 0), None);
        // As the libc of this machine says.
        assert_eq!(name(0), "root");
    }
}
