//! A listener of an old server on its way from its supervisor, or from that of a newer one, to whoever steers next.

use crate::sys::steer::Socket;

/// A listener.
#[derive(Debug)]
pub struct Handed {
    /// A handle on it.
    pub socket: Socket,
    /// Who has it.
    pub whose: Whose,
    /// Whether its place among those that come with it is that in its group.
    pub order: Order,
}

/// Whose a listener of an old server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The server's that has the connections.
    Serving,
    /// An older one's, which drains behind that.
    Draining,
}

/// What is known of the place of a listener among those of its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// They have joined as they come.
    Known,
    /// Nobody has seen it join.
    Unknown,
}

impl Handed {
    /// A listener of a server of which nobody knows in which order it has opened them.
    pub fn unknown(socket: Socket, whose: Whose) -> Handed {
        Handed { socket, whose, order: Order::Unknown }
    }

    /// What it is, by a letter.
    pub fn letter(&self) -> char {
        match (self.whose, self.order) {
            (Whose::Serving, Order::Known) => 'S',
            (Whose::Serving, Order::Unknown) => 's',
            (Whose::Draining, Order::Known) => 'D',
            (Whose::Draining, Order::Unknown) => 'd',
        }
    }

    /// By such a letter.
    pub fn new(socket: Socket, letter: char) -> Handed {
        let whose = if letter.eq_ignore_ascii_case(&'d') { Whose::Draining } else { Whose::Serving };
        Handed { socket, whose, order: if letter.is_ascii_uppercase() { Order::Known } else { Order::Unknown } }
    }
}
