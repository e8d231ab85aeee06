//! Headers: the language, the key, the gateway's, the addresses that proxies forward.

use std::net::{IpAddr, Ipv4Addr};

use actix_web::{
    http::header::{HeaderMap, HeaderName, HeaderValue},
    test::TestRequest,
};
use proptest::{collection::vec, prelude::*};

use super::{any_text, mutated, mutated_text};
use crate::{
    auth::{Gateway, GatewaySecrets, GatewaySettings, Needed, Net},
    error::Lang,
    http::{client, v1::idempotency_key},
};

/// A header's value of these bytes, as far as HTTP lets them through.
fn value(bytes: &[u8]) -> HeaderValue {
    let kept: Vec<u8> = bytes
        .iter()
        .copied()
        .filter(|byte| *byte >= 0x20 && *byte != 0x7f || *byte == b'\t')
        .collect();
    HeaderValue::from_bytes(&kept).unwrap()
}

/// As `application/x-www-form-urlencoded` has it.
fn form_encoded(text: &str) -> String {
    let encoded = |byte: u8| match byte {
        b' ' => "+".to_owned(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(encoded).collect()
}

fn gateway() -> Gateway {
    let secrets = GatewaySecrets::default();
    Gateway::new(GatewaySettings::new(&["10.0.0.0/8".to_owned()], secrets, "x-role", "x-rooms").unwrap())
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from)
    ]
}

proptest! {
    #[test]
    fn the_language_is_korean_or_english_whatever_is_asked_for(text in mutated_text(["ko-KR,ko;q=0.9,en-US;q=0.8,en;q=0.7", "en;q=0, *"])) {
        let lang = Lang::from_accept_language(Some(&text));
        if lang == Lang::Korean {
            prop_assert!(text.to_ascii_lowercase().contains("ko") || text.contains('*'), "{}", text);
        }
    }

    #[test]
    fn the_language_of_higher_quality_wins(korean in 0..=1000_u16, english in 0..=1000_u16, korean_first in any::<bool>()) {
        let range = |language: &str, quality: u16| format!("{language};q={}.{:03}", quality / 1000, quality % 1000);
        let (ko, en) = (range("ko", korean), range("en", english));
        let header = if korean_first { format!("{ko}, {en}") } else { format!("{en},{ko}") };
        let wins = korean > english || korean == english && korean_first;
        let expected = if wins && korean > 0 { Lang::Korean } else { Lang::English };
        prop_assert_eq!(Lang::from_accept_language(Some(&header)), expected, "{}", header);
    }

    #[test]
    fn an_idempotency_key_is_visible_ascii_of_the_header_or_refused_by_its_name(
        bytes in mutated(["\"8e03978e-40d5-43dd-bc93-6894a57f9324\"", "abc", "\"\""]),
    ) {
        let value = value(&bytes);
        let request = TestRequest::default().insert_header((HeaderName::from_static("idempotency-key"), value.clone())).to_http_request();
        match idempotency_key(&request) {
            Ok(key) => {
                let key = key.unwrap();
                prop_assert!((1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()));
                prop_assert!(value.to_str().unwrap().contains(&key));
            }
            Err(error) => prop_assert!(error.detail.unwrap().starts_with("Idempotency-Key: ")),
        }
    }

    #[test]
    fn a_good_idempotency_key_is_the_same_bare_and_in_quotes(key in "[!#-~]{1,255}") {
        for sent in [key.clone(), format!("\"{key}\""), format!("  {key} ")] {
            let request = TestRequest::default().insert_header(("Idempotency-Key", sent)).to_http_request();
            prop_assert_eq!(idempotency_key(&request).unwrap(), Some(key.clone()));
        }
    }

    #[test]
    fn a_gateways_headers_are_read_as_they_were_encoded(user in 0..=i64::MAX, nickname in any_text(), role in mutated(["operator", "moderator", "viewer"])) {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static("x-forward-useridx"), value(user.to_string().as_bytes()));
        headers.insert(HeaderName::from_static("x-forward-email"), value(b""));
        headers.insert(HeaderName::from_static("x-forward-nickname"), value(form_encoded(&nickname).as_bytes()));
        headers.insert(HeaderName::from_static("x-role"), value(&role));
        let read = gateway().read(&headers, Needed::All).unwrap();
        prop_assert_eq!((read.user_idx.get(), read.nickname), (user, Some(nickname)));
    }

    #[test]
    fn a_gateways_headers_are_read_or_refused_by_their_name(
        user in mutated(["7", "9223372036854775807"]),
        nickname in mutated(["%EA%B9%80+a%2Bb", "kim"]),
    ) {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static("x-forward-useridx"), value(&user));
        headers.insert(HeaderName::from_static("x-forward-email"), value(b""));
        headers.insert(HeaderName::from_static("x-forward-nickname"), value(&nickname));
        if let Err(error) = gateway().read(&headers, Needed::All) {
            let (text, legacy) = (error.to_string(), error.legacy_text());
            let named = ["x-forward-userIdx", "x-forward-nickname"];
            prop_assert!(named.iter().any(|name| text.contains(name) && legacy.starts_with(name)), "{} {}", text, legacy);
            prop_assert!(text.is_ascii(), "{}", text);
        }
    }

    /// Whatever anyone wrote, the address is the peer's, or one that a trusted peer forwarded.
    #[test]
    fn a_forwarded_address_counts_only_from_a_trusted_peer(
        peer in any::<[u8; 4]>(),
        trusted in any::<bool>(),
        forwarded in vec(mutated(["203.0.113.9, 10.0.0.7", "::ffff:1.2.3.4", "[2001:db8::5]:443", "unknown"]), 0..3),
    ) {
        let peer = if trusted { [10, peer[1], peer[2], peer[3]] } else { [11, peer[1], peer[2], peer[3]] };
        let mut request = TestRequest::default().peer_addr((peer, 1).into());
        let mut hops = Vec::new();
        for one in &forwarded {
            let value = value(one);
            hops.extend(value.as_bytes().split(|byte| *byte == b',').filter_map(client::hop));
            request = request.append_header((HeaderName::from_static("x-forwarded-for"), value));
        }
        let nets: Vec<Net> = vec!["10.0.0.0/8".parse().unwrap()];
        let address = client::address(&request.to_http_request(), &nets).unwrap();
        let peer = IpAddr::from(peer);
        prop_assert!(address == peer || trusted && hops.iter().any(|hop| client::network(*hop) == address), "{}", address);
    }

    #[test]
    fn a_network_is_read_or_named(text in mutated_text(["10.0.0.0/8", "2001:db8::/32", "::ffff:10.0.0.0/104", "::1"]), peer in any_ip()) {
        match text.parse::<Net>() {
            Ok(net) => drop(net.contains(peer)),
            Err(error) => prop_assert!(error.contains("is not an IP address or network")),
        }
    }

    #[test]
    fn a_network_holds_those_that_share_its_first_bits(net in any::<u32>(), peer in any::<u32>(), near in 0..=32_u32, bits in 0..=32_u32) {
        // A peer by chance shares a bit or two; this one shares as many as it is told.
        let peer = if near == 0 { peer } else { net ^ (peer.checked_shr(near).unwrap_or(0)) };
        let [net, peer] = [net, peer].map(Ipv4Addr::from);
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        let inside = u32::from(net) & mask == u32::from(peer) & mask;
        let read: Net = format!("{net}/{bits}").parse().unwrap();
        prop_assert_eq!(read.contains(peer.into()), inside);
        prop_assert_eq!(read.contains(peer.to_ipv6_mapped().into()), inside);
    }
}
