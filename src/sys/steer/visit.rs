//! Joining a group for a moment, to do something to it that needs a member.

#![forbid(unsafe_code)]

use super::socket::Socket;
use crate::place::{Families, Place};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt};
use std::io;

impl Socket {
    /// Joins the group of a place for a moment, to do something to the group although no handle on its members can be had.
    /// A client that is sent there meanwhile tries again after a second.
    pub fn visit(place: &Place, act: impl FnOnce(&Socket) -> io::Result<()>) -> io::Result<()> {
        let visitor = Socket::scratch(place)?;
        if place.address.is_ipv6() {
            setsockopt(&visitor.fd(), sockopt::Ipv6V6Only, &(place.families == Families::Own))?;
        }
        if place.device != 0 {
            visitor.bind_to_device(place.device)?;
        }
        visitor.refuse_newcomers(None)?;
        bind(visitor.raw(), &SockaddrStorage::from(place.address))?;
        // The socket of another user would make a group of its own.
        if visitor.place()? != *place {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        visitor.listen(0)?;
        act(&visitor)
    }

    /// A socket of our own, of the same family as the sockets of a place, to see what can be done to those.
    pub fn scratch(place: &Place) -> io::Result<Socket> {
        let family = if place.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = Socket::new(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?);
        socket.share().map(|()| socket)
    }
}
