//! Steering for a server that proves nothing: new connections go to whoever listens beside it, or to it alone again.

use super::group::{Group, NOBODY};
use super::{Handed, Sharing, Whose};
use crate::sys::net::{Listeners, TcpSocket};
use crate::sys::steer::{Program, Range, Socket};
use std::collections::BTreeSet;
use std::io;

fn alone(sockets: Vec<Socket>) -> io::Result<Sharing> {
    Sharing::of(None, sockets.into_iter().map(|socket| Handed::unknown(socket, Whose::Serving)).collect())
}

/// When the sockets of a server have joined their groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// After all others, as far as that can be known.
    Last,
    /// Nobody knows.
    Somewhen,
}

/// New connections go to whoever listens beside these sockets, which are all that a server has there. Where it is not known
/// when they have joined, whoever gets to them tries again a second later, and gets another.
pub fn steer_away(sockets: Vec<Socket>, listeners: &Listeners, joined: Joined) -> io::Result<()> {
    for group in alone(sockets)?.groups() {
        let own: BTreeSet<u32> = group.kept().into_iter().collect();
        let others = group.listening(listeners).difference(&own).copied().collect::<BTreeSet<u32>>();
        let Some(socket) = group.olds().next().filter(|_| !others.is_empty()) else { continue };
        let count = match joined {
            Joined::Last => others.len(),
            Joined::Somewhen => {
                group.olds().try_for_each(|own| own.refuse_newcomers(None).map(drop))?;
                others.len() + own.len()
            }
        } as u32;
        socket.steer(&Program::new(&[Range { first: 0, count }], &[]))?;
    }
    Ok(())
}

/// Takes off what steers and filters these sockets, all that a server has at their places. `false`, and all stays
/// steered, if somebody else listens there too: the server of a claimer that has gone away may join only now.
pub fn serve_alone(sockets: Vec<Socket>) -> io::Result<bool> {
    let mut sharing = alone(sockets)?;
    if !sharing.is_known()? {
        return Ok(false);
    }
    for socket in sharing.groups().flat_map(Group::olds) {
        let _ = socket.accept_newcomers();
        let _ = socket.release();
    }
    // A socket that joined at this very moment comes after them, and is not proven: it gets nothing.
    let alone = sharing.is_known();
    if !matches!(alone, Ok(true)) {
        sharing.groups_mut().for_each(|group| drop(group.steer(&NOBODY)));
    }
    alone
}

/// Whether no other listener of these, at a server's addresses, conflicts with one of its own, or is where it has none.
pub fn is_alone(here: Vec<TcpSocket>, is_own: impl Fn(u32) -> bool) -> bool {
    let (own, others): (Vec<TcpSocket>, Vec<TcpSocket>) = here.into_iter().partition(|s| is_own(s.inode));
    let meets = |other: &TcpSocket| {
        let mut near = own.iter().filter(|own| own.local.collides(&other.local)).peekable();
        near.peek().is_none() || near.any(|own| own.place().conflicts(&other.place()))
    };
    !others.iter().any(meets)
}
