//! What a hub and a device can be called. Where DPS sends a device, it goes and stays, so an assignment is looked at before it is believed.

use std::net::Ipv6Addr;

use rustls::pki_types::ServerName;

/// Whether this is the host of a server, with a port or without: a DNS name, an IPv4 address, or an IPv6 address in brackets.
pub(crate) fn is_authority(text: &str) -> bool {
    let (is_host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((address, rest))) => (address.parse::<Ipv6Addr>().is_ok(), rest),
        Some(None) => return false,
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (ServerName::try_from(host).is_ok(), port)
        }
    };
    is_host && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// `u16` alone would take `+443`.
fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Whether a hub allows this as the id of a device; `.` and `..` would mean something else in a path.
pub(crate) fn is_device_id(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-:.+%_#*?!(),=@;$'".contains(&byte);
    (1..=128).contains(&text.len()) && text.bytes().all(allowed) && text != "." && text != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_with_and_without_ports_are_told_from_other_text() {
        for good in [
            "h",
            "hub.example",
            "Hub-1.example:8443",
            "localhost:1",
            "192.0.2.1",
            "192.0.2.1:65535",
            "[::1]",
            "[::1]:443",
        ] {
            assert!(is_authority(good), "{good}");
        }
        for bad in [
            "", ":443", "h:", "h:0", "h:+1", "h:65536", "h:1:2", "::1", "[::1", "[::1]443", "[h]", "[]", "a/b", "h ",
            "a..b", "-h", "u@h", "h?q", "h#f", "h\n", "hüb",
        ] {
            assert!(!is_authority(bad), "{bad:?}");
        }
    }

    #[test]
    fn device_ids_are_those_of_hubs() {
        for good in ["d", "dev#1", "A-z:.+%_#*?!(),=@;$'9", "...", &"x".repeat(128)] {
            assert!(is_device_id(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a\n", "gerät", &"x".repeat(129)] {
            assert!(!is_device_id(bad), "{bad:?}");
        }
    }
}
