//! HTTP on one thread with limits: what the client's gateway and the metrics of a serving party are answered over.
//!
//! Nobody can hold a connection for nothing: the head of a request must come in time, answers must be taken in time, and there
//! are so many connections at most. Those beyond wait.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::runtime::{self, Runtime};
use tokio::sync::Semaphore;
use tokio::time;
use tokio_io_timeout::TimeoutStream;

/// Time between two looks at whether the end was asked for, and after a connection that could not be accepted.
const TICK: Duration = Duration::from_millis(100);

/// What connections may take.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Most connections at once.
    pub connections: usize,
    /// How long the head of a request may take.
    pub read: Duration,
    /// How long a write may make no progress.
    pub write: Duration,
    /// How long answers under way may go on after the end was asked for.
    pub drain: Duration,
}

/// The limits of every server here.
pub(super) const LIMITS: Limits = Limits {
    connections: 256,
    read: Duration::from_secs(30),
    write: Duration::from_secs(30),
    drain: Duration::from_secs(10),
};

/// A server that listens.
pub(super) struct Http {
    listener: TcpListener,
    runtime: Runtime,
}

impl Http {
    /// Listens at `address`; [`Http::serve`] answers.
    pub fn bind(address: SocketAddr) -> io::Result<Http> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Http { listener, runtime })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers requests until `is_over`. Then no connection is accepted any more, and what is under way ends: by itself in the
    /// time that `limits` give it, or cut off.
    pub fn serve(self, routes: Router, limits: Limits, is_over: &dyn Fn() -> bool) -> io::Result<()> {
        let served = self.runtime.block_on(accept(self.listener, routes, limits, is_over));
        self.runtime.shutdown_background();
        served
    }
}

async fn accept(listener: TcpListener, routes: Router, limits: Limits, is_over: &dyn Fn() -> bool) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let room = Arc::new(Semaphore::new(limits.connections));
    let service = TowerToHyperService::new(routes);
    let connections = GracefulShutdown::new();
    let next = || async {
        let place = Arc::clone(&room).acquire_owned().await.map_err(io::Error::other)?;
        Ok::<_, io::Error>((place, listener.accept().await?.0))
    };
    while !is_over() {
        let (place, stream) = match time::timeout(TICK, next()).await {
            Ok(Ok(next)) => next,
            // A connection that is gone already, or no more descriptors.
            Ok(Err(_)) => {
                time::sleep(TICK).await;
                continue;
            }
            Err(_) => continue,
        };
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(limits.write));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(limits.read);
        let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service.clone());
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            // How a connection ends is the caller's affair.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    // What is left after that time is cut off.
    let _ = time::timeout(limits.drain, connections.shutdown()).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Instant;

    use axum::routing::get;

    use super::*;

    /// An answer that no buffer of the system takes whole.
    const LONG: usize = 64 << 20;
    const SOON: Duration = Duration::from_secs(20);

    /// What the server and its callers tell one another.
    #[derive(Default)]
    struct Flags {
        begun: AtomicBool,
        release: AtomicBool,
        over: AtomicBool,
    }

    /// Serves with room for one connection while `ask` asks. `/held` is answered once it is released.
    fn serving(ask: impl FnOnce(SocketAddr, &Flags)) {
        let http = Http::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = http.address().unwrap();
        let flags = Arc::new(Flags::default());
        let seen = Arc::clone(&flags);
        let held = move || async move {
            seen.begun.store(true, Ordering::Relaxed);
            while !seen.release.load(Ordering::Relaxed) {
                time::sleep(Duration::from_millis(5)).await;
            }
            "held"
        };
        let routes = Router::new()
            .route("/", get(|| async { "ok" }))
            .route("/long", get(|| async { vec![b'x'; LONG] }))
            .route("/held", get(held));
        let limit = Duration::from_millis(200);
        let limits = Limits { connections: 1, read: limit, write: limit, drain: SOON };
        thread::scope(|scope| {
            let served = scope.spawn(|| http.serve(routes, limits, &|| flags.over.load(Ordering::Relaxed)));
            // Whatever goes wrong, the server ends.
            let asked = catch_unwind(AssertUnwindSafe(|| ask(address, &flags)));
            flags.release.store(true, Ordering::Relaxed);
            flags.over.store(true, Ordering::Relaxed);
            served.join().unwrap().unwrap();
            asked.unwrap();
        });
    }

    fn begin(address: SocketAddr, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    }

    fn rest(mut stream: TcpStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn wait(mut holds: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !holds() {
            assert!(begin.elapsed() < SOON, "waited in vain");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn who_neither_asks_nor_reads_loses_the_place() {
        serving(|address, _| {
            let waiting = ["", "GET / HTTP/1.1\r\n", "GET /long HTTP/1.1\r\nHost: a\r\n\r\n"];
            let waiting = waiting.map(|text| begin(address, text));
            let last = begin(address, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            assert!(rest(last).ends_with("ok"));
            drop(waiting);
        });
    }

    #[test]
    fn at_the_end_an_answer_under_way_is_given_and_nobody_else_gets_one() {
        serving(|address, flags| {
            let held = begin(address, "GET /held HTTP/1.1\r\nHost: a\r\n\r\n");
            wait(|| flags.begun.load(Ordering::Relaxed));
            flags.over.store(true, Ordering::Relaxed);
            wait(|| TcpStream::connect(address).is_err());
            flags.release.store(true, Ordering::Relaxed);
            let text = rest(held);
            assert!(text.ends_with("held") && text.to_lowercase().contains("connection: close"), "{text}");
        });
    }
}
