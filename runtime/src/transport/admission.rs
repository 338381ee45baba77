//! Which connections may go on with their handshake, and how much is said of those that fail it: whoever connects has
//! shown no certificate yet.
//!
//! At most [`MAX_HALF_OPEN`] handshakes go on at once, at most [`MAX_OF_ADDRESS`] from one address; one more closes
//! another of them, first one that has said nothing yet, which a peer does with its first packet.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ombra_ir::Diagnostic;

/// Handshakes that may go on at once, and those from one address.
pub(super) const MAX_HALF_OPEN: usize = 256;
pub(super) const MAX_OF_ADDRESS: usize = 64;
/// Complaints that may come at once, and the time after which there may be one more.
const MAX_COMPLAINTS: u32 = 16;
const COMPLAINT_TIME: Duration = Duration::from_secs(10);

/// Connections whose handshake goes on, by their number: older ones have smaller numbers.
#[derive(Default)]
pub(super) struct HalfOpen {
    entries: BTreeMap<u64, Entry>,
}

struct Entry {
    socket: TcpStream,
    address: IpAddr,
    has_spoken: bool,
}

impl HalfOpen {
    /// Adds a connection. Another one is closed where there are too many.
    pub(super) fn add(&mut self, number: u64, socket: TcpStream, address: SocketAddr) {
        let address = network(address.ip());
        let of_address = self.entries.values().filter(|entry| entry.address == address).count();
        if of_address >= MAX_OF_ADDRESS {
            self.close_one(address);
        } else if self.entries.len() >= MAX_HALF_OPEN {
            self.close_one(self.busiest());
        }
        self.entries.insert(number, Entry { socket, address, has_spoken: false });
    }

    /// Notes that bytes have come over a connection.
    pub(super) fn note_speech(&mut self, number: u64) {
        self.entries.entry(number).and_modify(|entry| entry.has_spoken = true);
    }

    /// Removes a connection whose handshake is over.
    pub(super) fn remove(&mut self, number: u64) {
        self.entries.remove(&number);
    }

    /// Closes all connections.
    pub(super) fn close_all(&mut self) {
        for (_, entry) in std::mem::take(&mut self.entries) {
            close(&entry);
        }
    }

    /// The address of most connections.
    fn busiest(&self) -> IpAddr {
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for entry in self.entries.values() {
            *counts.entry(entry.address).or_default() += 1;
        }
        let busiest = counts.into_iter().max_by_key(|(_, count)| *count);
        busiest.map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |(address, _)| address)
    }

    /// Closes one connection from `address`: the oldest silent one, or the oldest.
    fn close_one(&mut self, address: IpAddr) {
        let of_address = self.entries.iter().filter(|(_, entry)| entry.address == address);
        let victim = of_address.min_by_key(|(number, entry)| (entry.has_spoken, **number)).map(|(number, _)| *number);
        if let Some(entry) = victim.and_then(|number| self.entries.remove(&number)) {
            close(&entry);
        }
    }
}

fn close(entry: &Entry) {
    // Fails only when the connection is gone already.
    let _ = entry.socket.shutdown(Shutdown::Both);
}

/// What counts as one address: an IPv4 address, or the 64 bits of an IPv6 address that its owner cannot choose.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// How much may still be said: peers can make a party speak, and nobody may fill its log.
pub struct Limiter {
    burst: u32,
    refill: Duration,
    left: u32,
    since: Instant,
    kept_back: u64,
}

impl Limiter {
    /// Lets `burst` lines pass at once, and one more after every `refill`.
    pub fn new(burst: u32, refill: Duration) -> Self {
        Limiter { burst, refill, left: burst, since: Instant::now(), kept_back: 0 }
    }

    /// The number of lines that were kept back before this one, or nothing if it is kept back too.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        while self.left < self.burst && now.saturating_duration_since(self.since) >= self.refill {
            self.left += 1;
            self.since += self.refill;
        }
        if self.left == self.burst {
            self.since = now;
        }
        if self.left == 0 {
            self.kept_back += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.kept_back))
    }
}

/// How many complaints may still be made about strangers.
pub(super) struct Complaints(Limiter);

impl Complaints {
    pub(super) fn new() -> Self {
        Complaints(Limiter::new(MAX_COMPLAINTS, COMPLAINT_TIME))
    }

    /// `error` with the number of those that were kept back before it, or nothing if it is kept back too.
    pub(super) fn admit(&mut self, error: Diagnostic, now: Instant) -> Option<Diagnostic> {
        match self.0.admit(now)? {
            0 => Some(error),
            count => Some(error.note(format!("{count} more connections failed before and are not listed"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    /// Connections to a listener of this process; the far ends stay open.
    struct Pairs {
        listener: TcpListener,
        far: BTreeMap<u64, TcpStream>,
    }

    impl Pairs {
        fn new() -> Pairs {
            Pairs { listener: TcpListener::bind("127.0.0.1:0").unwrap(), far: BTreeMap::new() }
        }

        fn add(&mut self, table: &mut HalfOpen, number: u64, address: &str) {
            self.far.insert(number, TcpStream::connect(self.listener.local_addr().unwrap()).unwrap());
            let near = self.listener.accept().unwrap().0;
            table.add(number, near, SocketAddr::new(address.parse().unwrap(), 1));
        }

        /// Whether a connection was closed by the table.
        fn closed(&mut self, number: u64) -> bool {
            let far = self.far.get_mut(&number).unwrap();
            far.set_nonblocking(true).unwrap();
            matches!(far.read(&mut [0]), Ok(0))
        }
    }

    #[test]
    fn silent_connections_of_the_busiest_address_go_first() {
        let (mut table, mut pairs) = (HalfOpen::default(), Pairs::new());
        // A peer that is in the middle of its handshake, and one address that opens one connection after another.
        pairs.add(&mut table, 0, "10.0.0.1");
        table.note_speech(0);
        for number in 1..=3 * MAX_OF_ADDRESS as u64 {
            pairs.add(&mut table, number, "10.0.0.2");
        }
        assert!(!pairs.closed(0) && pairs.closed(1) && !pairs.closed(3 * MAX_OF_ADDRESS as u64));
        assert_eq!(table.entries.len(), 1 + MAX_OF_ADDRESS);
        // From the peer's own address too, as long as they say nothing.
        for number in 1000..1000 + 2 * MAX_OF_ADDRESS as u64 {
            pairs.add(&mut table, number, "10.0.0.1");
        }
        assert!(!pairs.closed(0) && pairs.closed(1000));
    }

    #[test]
    fn a_full_table_takes_from_the_address_that_has_most() {
        let (mut table, mut pairs) = (HalfOpen::default(), Pairs::new());
        for number in 0..MAX_OF_ADDRESS as u64 {
            pairs.add(&mut table, number, "2001:db8::1");
        }
        for number in 0..(MAX_HALF_OPEN - MAX_OF_ADDRESS) as u64 {
            pairs.add(&mut table, 1000 + number, &format!("10.0.{}.{}", number / 200, number % 200));
        }
        pairs.add(&mut table, 5000, "10.1.0.1");
        assert!(pairs.closed(0) && !pairs.closed(1000) && !pairs.closed(5000));
        // Addresses of one IPv6 network count together.
        pairs.add(&mut table, 5001, "2001:db8::2");
        pairs.add(&mut table, 5002, "2001:db8::3");
        assert!(pairs.closed(1) && pairs.closed(2) && !pairs.closed(1000));
        assert_eq!(table.entries.len(), MAX_HALF_OPEN);
        table.close_all();
        assert!(pairs.closed(1000) && pairs.closed(5002));
    }

    #[test]
    fn complaints_are_bounded_and_counted() {
        let mut complaints = Complaints::new();
        let start = complaints.0.since;
        let mut at = |seconds: u64| {
            complaints.admit(Diagnostic::peer("E0706", "a connection"), start + Duration::from_secs(seconds))
        };
        let made = (0..1000).filter(|_| at(0).is_some()).count();
        assert_eq!(made, MAX_COMPLAINTS as usize);
        let later = at(10).expect("one more");
        assert!(later.to_string().contains("984 more connections"), "{later}");
        assert!(at(10).is_none());
        assert_eq!((0..1000).filter(|_| at(10_000).is_some()).count(), MAX_COMPLAINTS as usize);
    }
}
