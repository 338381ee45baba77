//! Links between parties: TCP, TLS 1.3 with pinned certificates, bounded frames, metering, link emulation.
//!
//! A [`Link`] joins one party to one peer. It is made of two TLS connections, one for each direction, so that no thread
//! both reads and writes a TLS session. A writer thread and a reader thread connect them to the protocol by queues:
//! [`Link::send`] never waits for the peer, [`Link::recv`] states exactly what it expects and fails on anything else.
//!
//! A [`Session`] is the links of one party for one run. The parties are ordered client, server, helper; of two parties the
//! earlier one opens the connections and says in its hello which session they belong to. Certificates are self-signed and
//! trusted by their SHA-256 fingerprint alone: there is no certificate authority and names mean nothing.
//!
//! Sizes of all messages depend on public shapes only. Every wait has a limit, and dropping a link ends its threads. A
//! party that has done its part says so; a link that ends before that ends the session, whatever waits in it.
//!
//! The server tells sessions that wait how many come before them. The helper takes them in the server's order, as the
//! server says.
//!
//! # Whose session it is
//!
//! Many clients may be admitted, each by its own certificate, and any of them may be hostile to the others. A session is
//! its id and one client's certificate:
//!
//! - An id is 128 random bits that its client chooses and tells server and helper over TLS. Logs show its first digits.
//! - A party takes a session's connections from one client alone: the first one binds the id to its certificate.
//! - The server names the client's certificate when it connects to the helper, and the helper compares it with the one that
//!   it sees itself. So both have the same client, or the session is refused.
//!
//! A client that knew the id of another one's session could therefore use the id first and have the other refused, but not
//! be a party of its session. Had it been one at the helper, it would have got the helper's messages to the client, which
//! are random without the server's, and could have sent the helper other inputs than the client's.
//! A corrupted server can name a client that did not come; the helper still sees that client's certificate itself or
//! refuses. The sharing of weights has no client: only the certificate of the server opens such a session at the helper.
//!
//! | code | meaning |
//! |---|---|
//! | E0701 | the peer went away |
//! | E0702 | the peer was silent, or did not go on, for longer than the limit |
//! | E0703 | the peer sent another frame than the one expected |
//! | E0704 | the peer sent something that is no frame, one above the size limit, or one that is not its own |
//! | E0705 | the peer aborted the run |
//! | E0706 | TLS failed, or a certificate is not the pinned one |
//! | E0707 | no connection to the peer |
//! | E0708 | the session was refused |
//! | E0709 | a frame to send is above the size limit |
//! | E0710 | a network description is wrong |
//! | E0711 | a party's configuration is wrong |
//! | E0712 | a key or certificate cannot be made, read or written |
//! | E0713 | this party cannot listen |
//! | E0714 | a thread, socket option or random number is refused by the operating system |

mod acceptor;
mod admission;
mod endpoint;
mod frame;
mod link;
mod meter;
mod network;
mod party;
mod queue;
mod session;
#[cfg(test)]
mod tests;
mod tls;
mod trust;
mod watch;

pub use acceptor::Acceptor;
pub use admission::Limiter;
pub use endpoint::Endpoint;
pub use frame::{Frame, MAX_CONTROL_BYTES, abort_code};
pub use link::Link;
pub use meter::{Meter, Snapshot, Traffic};
pub use network::Network;
pub use party::{Party, dials};
pub use session::{Ending, Purpose, Session, SessionId, parse_session};
pub use tls::Fingerprint;
pub(crate) use tls::parse_hex;
pub use trust::Client;
