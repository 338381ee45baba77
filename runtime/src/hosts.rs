//! The names that an HTTP server here may be called by.
//!
//! A page of another site can have its own name made to point at this machine, and then asks this machine's servers as if
//! they were that site. `Host` keeps the page's name, so that it has to be one that only this machine answers to, or one that
//! the user gave.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::HeaderMap;

/// Names beside those of this machine, and whether its numbers count too.
#[derive(Clone)]
pub(crate) struct Hosts {
    remote: bool,
    /// In lower case, without those that are this machine's anyway.
    names: Vec<String>,
}

impl Hosts {
    /// What a server at `address` may be called by: the names of this machine, `names`, and, where the address is not this
    /// machine's alone, its numbers.
    pub fn new(address: SocketAddr, names: &[String]) -> Hosts {
        let names = names.iter().map(|name| name.to_ascii_lowercase()).filter(|name| !is_loopback(name)).collect();
        Hosts { remote: !address.ip().is_loopback(), names }
    }

    /// The host of a request, if it may be called so.
    pub fn of<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        only(headers, "host").filter(|host| {
            let name = name_of(host);
            // A number is no name that could point elsewhere a moment ago.
            is_loopback(&name) || self.remote && number(&name).is_some() || self.names.contains(&name)
        })
    }

    /// Whether a host is one of the names that the user gave.
    pub fn is_given(&self, host: &str) -> bool {
        self.names.contains(&name_of(host))
    }
}

/// The value of a header that stands there once and is text.
pub(crate) fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    match (all.next(), all.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// Whether `host` may be a `Host` without a port.
pub(crate) fn is_name(host: &str) -> bool {
    let sixth = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match sixth {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)),
    }
}

/// A host without its port, in lower case.
fn name_of(host: &str) -> String {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.to_ascii_lowercase()
}

/// The address that a name is, the sixth version in brackets or not.
fn number(name: &str) -> Option<IpAddr> {
    name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name).parse().ok()
}

/// Whether a name in lower case is this machine's for itself.
fn is_loopback(name: &str) -> bool {
    name == "localhost" || number(name).is_some_and(|ip| ip.is_loopback())
}
