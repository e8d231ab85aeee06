//! Where a request comes from, and how many sessions one address may hold.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use actix_web::{HttpRequest, http::header::HeaderMap};

use crate::auth::Net;

/// What limits count a client by: its address, and of IPv6 the network. It is the TCP peer's, or what trusted peers say of whom they
/// stand for. Of `X-Forwarded-For` the last address counts that is not itself a trusted proxy's: what is before it anyone may have
/// written.
pub fn address(request: &HttpRequest, trusted: &[Net]) -> Option<IpAddr> {
    let peer = request.peer_addr()?.ip().to_canonical();
    Some(network(behind(peer, request.headers(), trusted)))
}

/// An IPv6 address without what its client chooses: one customer has a /64 at least (RFC 6177), and all the addresses in it.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

/// An address as proxies write it: with its port or without, an IPv6 one in brackets or bare.
pub(crate) fn hop(bytes: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    let with_port = || text.parse().ok().map(|address: SocketAddr| address.ip());
    let address = text.parse().ok().or_else(with_port).or_else(bracketed)?;
    Some(address.to_canonical())
}

fn behind(peer: IpAddr, headers: &HeaderMap, trusted: &[Net]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(address));
    if !is_trusted(peer) {
        return peer;
    }
    let forwarded: Vec<&[u8]> = headers
        .get_all("x-forwarded-for")
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .collect();
    let mut nearest = peer;
    for bytes in forwarded.into_iter().rev() {
        let Some(address) = hop(bytes) else {
            // What is no address was not written by a proxy of ours.
            break;
        };
        nearest = address;
        if !is_trusted(nearest) {
            break;
        }
    }
    nearest
}

/// Counts the sessions of each address; at most `limits.sessions_per_address` of one, 0 for any number.
#[derive(Clone, Default)]
pub struct AddressGate {
    most: usize,
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl AddressGate {
    /// A gate for so many sessions an address.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            open: Arc::default(),
        }
    }

    /// How many sessions an address may have.
    pub fn most(&self) -> usize {
        self.most
    }

    fn open(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more session of this address, given back when dropped; `None` when it has all it may.
    pub fn enter(&self, address: Option<IpAddr>) -> Option<AddressPermit> {
        let address = address.filter(|_| self.most > 0);
        if let Some(address) = address {
            let mut open = self.open();
            let count = open.entry(address).or_insert(0);
            if *count >= self.most {
                return None;
            }
            *count += 1;
        }
        Some(AddressPermit {
            gate: self.clone(),
            address,
        })
    }
}

/// See [`AddressGate::enter`].
pub struct AddressPermit {
    gate: AddressGate,
    address: Option<IpAddr>,
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let Some(address) = self.address else {
            return;
        };
        let mut open = self.gate.open();
        if let Some(count) = open.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use actix_web::{
        http::header::{HeaderName, HeaderValue},
        test::TestRequest,
    };

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn forwarded_addresses_count_only_as_far_as_trusted_proxies_wrote_them() {
        let trusted: Vec<Net> = ["10.0.0.0/8", "::1"].map(|net| net.parse().unwrap()).into();
        let rows = [
            ("203.0.113.9", &["1.2.3.4"][..], "203.0.113.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6, 1.2.3.4, 10.0.0.7"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6", "1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["1.2.3.4, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.9, 10.0.0.8"], "10.0.0.9"),
            ("::1", &["2001:db8::5"], "2001:db8::5"),
            ("10.0.0.1", &["::ffff:1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6, 1.2.3.4:51234"], "1.2.3.4"),
            ("10.0.0.1", &["1.2.3.4:51234, 10.0.0.7:80"], "1.2.3.4"),
            ("10.0.0.1", &["[2001:db8::5]"], "2001:db8::5"),
            ("10.0.0.1", &["[2001:db8::5]:51234"], "2001:db8::5"),
            ("10.0.0.1", &["[::ffff:1.2.3.4]:51234"], "1.2.3.4"),
            ("10.0.0.1", &["1.2.3.4, 6.6.6.6:99999"], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4, [6.6.6.6]"], "10.0.0.1"),
            // A client's own byte hides nothing of what a proxy wrote behind it.
            ("10.0.0.1", &["é, 1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6, é"], "10.0.0.1"),
            ("10.0.0.1", &["é", "1.2.3.4, 10.0.0.7"], "1.2.3.4"),
        ];
        for (peer, forwarded, client) in rows {
            let mut headers = HeaderMap::new();
            for value in forwarded {
                let name = HeaderName::from_static("x-forwarded-for");
                headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            assert_eq!(behind(ip(peer), &headers, &trusted), ip(client), "{peer} {forwarded:?}");
        }
    }

    #[test]
    fn all_addresses_of_one_ipv6_network_are_one_client() {
        let of = |peer: &str, forwarded: &str| {
            let peer = SocketAddr::new(ip(peer), 1);
            let request = TestRequest::default().peer_addr(peer);
            let request = request.insert_header(("X-Forwarded-For", forwarded)).to_http_request();
            address(&request, &["10.0.0.0/8".parse().unwrap()])
        };
        let one = Some(ip("2001:db8:0:1::"));
        assert_eq!(of("2001:db8:0:1::5", ""), one);
        assert_eq!(of("2001:db8:0:1:ffff:ffff:ffff:ffff", ""), one);
        assert_eq!(of("10.0.0.1", "2001:db8:0:1::6"), one);
        assert_eq!(of("10.0.0.1", "[2001:db8:0:1:7::]:443"), one);
        assert_eq!(of("2001:db8:0:2::5", ""), Some(ip("2001:db8:0:2::")));
        assert_eq!(of("::ffff:1.2.3.4", ""), Some(ip("1.2.3.4")));
        assert_eq!(of("10.0.0.1", "1.2.3.4:443"), Some(ip("1.2.3.4")));
    }

    #[test]
    fn an_address_has_so_many_sessions_and_gets_their_places_back() {
        let gate = AddressGate::new(2);
        let one = gate.enter(Some(ip("1.2.3.4"))).unwrap();
        let _two = gate.enter(Some(ip("1.2.3.4"))).unwrap();
        assert!(gate.enter(Some(ip("1.2.3.4"))).is_none());
        assert!(gate.enter(Some(ip("1.2.3.5"))).is_some());
        drop(one);
        assert!(gate.enter(Some(ip("1.2.3.4"))).is_some());
        assert_eq!(gate.open().len(), 1, "addresses without a session are forgotten");
        let any = AddressGate::new(0);
        let many: Vec<_> = (0..100).map(|_| any.enter(Some(ip("1.2.3.4")))).collect();
        assert!(many.iter().all(Option::is_some));
    }
}
