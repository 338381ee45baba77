//! Who may ask: what every request is checked for before anything else of it is read.
//!
//! The gateway holds no secret of its own, but whoever reaches it can use the client's certificate. A page of another site
//! that is open in the user's browser can send requests to this machine's own addresses. It cannot hide where it comes from:
//!
//! - `Host` must be a name that only this machine answers to. A page whose name was made to point here keeps its name.
//! - `Origin`, which browsers add, must be the gateway's own. With TLS that is a server's before it, under a name that the
//!   gateway was told of: nothing else answers there.
//! - `Sec-Fetch-Site` must not say that another site asks, but for the page itself, which a link may open.
//!
//! Where a key is asked for, it is compared by its digest, so that the time says nothing of it.

use std::net::SocketAddr;
use std::path::Path;

use axum::http::{HeaderMap, Method, StatusCode, header};
use ombra_ir::{Diagnostic, Result, files};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::refusal::Refusal;
use crate::hosts::{Hosts, is_name, only};

/// Fewest and most bytes of a key.
const KEY_BYTES: (usize, usize) = (16, 1024);
/// Largest file with a key, in bytes.
const MAX_KEY_FILE: u64 = 4096;

/// What is asked of every request.
pub(super) struct Guard {
    key: Option<[u8; 32]>,
    hosts: Hosts,
}

impl Guard {
    /// What requests to `address` are checked for. `hosts` are names that it may be called by, beside those of this machine
    /// and, where it is not this machine's alone, its numbers.
    ///
    /// # Errors
    /// `E1040` for a key or a name that cannot be used.
    pub fn new(address: SocketAddr, key_file: Option<&Path>, hosts: &[String]) -> Result<Guard> {
        let key = key_file.map(read_key).transpose()?;
        if let Some(host) = hosts.iter().find(|host| !is_name(host)) {
            return Err(Diagnostic::input("E1040", "the name of a host cannot be used")
                .note("expected  --allow-host with a name or an address alone: no port, no scheme, no path")
                .note(format!("found     {host}")));
        }
        Ok(Guard { key, hosts: Hosts::new(address, hosts) })
    }

    /// Checks where a request comes from, and under `/v1/` its key.
    pub fn check(&self, method: &Method, path: &str, headers: &HeaderMap) -> std::result::Result<(), Refusal> {
        let forbidden = |code, what: &str| Err(Refusal::request(StatusCode::FORBIDDEN, code, what));
        let Some(host) = self.hosts.of(headers) else {
            return forbidden(
                "forbidden_host",
                "the header Host does not name this machine: use 127.0.0.1 or localhost",
            );
        };
        if headers.contains_key(header::ORIGIN) {
            let origin = only(headers, header::ORIGIN.as_str());
            let is_own = |origin: &str| {
                let is = |scheme| origin.eq_ignore_ascii_case(&format!("{scheme}://{host}"));
                is("http") || is("https") && self.hosts.is_given(host)
            };
            if !origin.is_some_and(is_own) {
                return forbidden("forbidden_origin", "a page of another site may not use this gateway");
            }
        }
        let opens_page = *method == Method::GET
            && path == "/"
            && only(headers, "sec-fetch-mode").is_some_and(|mode| mode == "navigate");
        let is_foreign = headers.contains_key("sec-fetch-site")
            && only(headers, "sec-fetch-site").is_none_or(|site| !["same-origin", "none"].contains(&site));
        if is_foreign && !opens_page {
            return forbidden("forbidden_origin", "a page of another site may not use this gateway");
        }
        match &self.key {
            Some(key) if path.starts_with("/v1/") && !has_key(headers, key) => {
                let what = "the API key is missing or wrong: expected the header Authorization: Bearer KEY";
                Err(Refusal::request(StatusCode::UNAUTHORIZED, "invalid_api_key", what))
            }
            _ => Ok(()),
        }
    }
}

fn has_key(headers: &HeaderMap, key: &[u8; 32]) -> bool {
    let given = only(headers, header::AUTHORIZATION.as_str()).and_then(|value| value.split_once(' '));
    let given = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    // Of equal digests, the beginnings that differing ones share say nothing of the key.
    given.is_some_and(|(_, given)| <[u8; 32]>::from(Sha256::digest(given.trim().as_bytes())) == *key)
}

fn read_key(path: &Path) -> Result<[u8; 32]> {
    let (least, most) = KEY_BYTES;
    let wrong = |what: String| {
        Diagnostic::input("E1040", "the API key cannot be used")
            .at(path.display().to_string())
            .note(format!("expected  a file with {least} to {most} visible ASCII characters in one line"))
            .note(format!("found     {what}"))
    };
    let text = files::read_text(path, MAX_KEY_FILE).map(Zeroizing::new).map_err(|error| wrong(error.to_string()))?;
    let key = text.trim();
    if !(least..=most).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong(format!("{} bytes, or other characters", key.len())));
    }
    Ok(Sha256::digest(key.as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn allowed(guard: &Guard, path: &str, given: &[(&str, &str)]) -> std::result::Result<(), String> {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        guard.check(&Method::GET, path, &headers).map_err(|refusal| refusal.json()["error"]["code"].to_string())
    }

    fn guard(address: &str, hosts: &[&str]) -> Guard {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        Guard::new(address.parse().unwrap(), None, &hosts).unwrap()
    }

    #[test]
    fn only_names_of_this_machine_are_hosts() {
        let local = guard("127.0.0.1:8080", &["my.box"]);
        for host in ["127.0.0.1:8080", "127.0.0.1", "localhost:9", "LocalHost", "[::1]:8080", "127.0.0.2", "My.Box:1"] {
            assert_eq!(allowed(&local, "/v1/models", &[("host", host)]), Ok(()), "{host}");
        }
        for host in
            ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8080", "10.0.0.1:8080", "", "localhost:"]
        {
            let refused = allowed(&local, "/v1/models", &[("host", host)]);
            assert_eq!(refused, Err("\"forbidden_host\"".to_owned()), "{host}");
        }
        assert!(allowed(&local, "/", &[]).is_err());
        assert!(allowed(&local, "/", &[("host", "localhost"), ("host", "evil.example")]).is_err());
        let remote = guard("0.0.0.0:8080", &[]);
        assert_eq!(allowed(&remote, "/", &[("host", "10.0.0.1:8080")]), Ok(()));
        assert!(allowed(&remote, "/", &[("host", "evil.example:8080")]).is_err());
    }

    #[test]
    fn names_of_hosts_have_no_port_and_no_scheme() {
        let address = "127.0.0.1:8080".parse().unwrap();
        for host in ["my-box", "a_b", "10.0.0.1", "[fd00::1]", "localhost"] {
            assert!(Guard::new(address, None, &[host.to_owned()]).is_ok(), "{host}");
        }
        for host in ["my-box:443", "https://my-box", "my-box/", "", "fd00::1", "[fd00::1]:1", "[a]"] {
            let error = Guard::new(address, None, &[host.to_owned()]).err().unwrap();
            assert_eq!(error.code, "E1040", "{host}");
        }
    }

    #[test]
    fn an_allowed_name_may_have_tls_before_it() {
        let local = guard("127.0.0.1:8080", &["My-Box", "localhost", "127.0.0.1"]);
        for host in ["my-box", "MY-box", "my-box:8443"] {
            for scheme in ["http", "https"] {
                let origin = format!("{scheme}://{host}");
                assert_eq!(allowed(&local, "/v1/models", &[("host", host), ("origin", &origin)]), Ok(()), "{origin}");
            }
        }
        for (host, origin) in [
            ("my-box", "https://evil.example"),
            ("my-box", "https://my-box:8443"),
            ("my-box", "https://my-box-evil"),
            ("my-box", "ftp://my-box"),
            ("localhost:8080", "https://localhost:8080"),
            ("127.0.0.1:8080", "https://127.0.0.1:8080"),
            ("127.0.0.1:8080", "https://my-box"),
        ] {
            let refused = allowed(&local, "/v1/models", &[("host", host), ("origin", origin)]);
            assert_eq!(refused, Err("\"forbidden_origin\"".to_owned()), "{host} {origin}");
        }
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let local = guard("127.0.0.1:8080", &[]);
        let host = ("host", "127.0.0.1:8080");
        assert_eq!(allowed(&local, "/v1/models", &[host, ("origin", "http://127.0.0.1:8080")]), Ok(()));
        for origin in [
            "http://evil.example",
            "null",
            "http://127.0.0.1:3000",
            "https://127.0.0.1:8080",
            "http://localhost:8080",
            "",
        ] {
            let refused = allowed(&local, "/v1/models", &[host, ("origin", origin)]);
            assert_eq!(refused, Err("\"forbidden_origin\"".to_owned()), "{origin}");
        }
        for site in ["cross-site", "same-site"] {
            assert!(allowed(&local, "/v1/models", &[host, ("sec-fetch-site", site)]).is_err());
            assert!(allowed(&local, "/", &[host, ("sec-fetch-site", site), ("sec-fetch-mode", "cors")]).is_err());
            let link = [host, ("sec-fetch-site", site), ("sec-fetch-mode", "navigate")];
            assert_eq!(allowed(&local, "/", &link), Ok(()));
            assert!(allowed(&local, "/v1/ombra/status", &link).is_err());
        }
        for site in ["same-origin", "none"] {
            assert_eq!(allowed(&local, "/v1/models", &[host, ("sec-fetch-site", site)]), Ok(()));
        }
    }
}
