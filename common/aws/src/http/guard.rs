//! Blocks requests to internal addresses: the machine itself, its network, the metadata service of a cloud.
//!
//! The client resolves a host name once, checks every address of the answer, and connects to one of these
//! addresses. So a second lookup cannot give a different address (DNS rebinding). The client follows no
//! redirects.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::dns::Name;

/// What a client may connect to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllowedAddresses {
    /// Any address.
    #[default]
    Anywhere,
    /// Public addresses, over https.
    Public,
    /// Public addresses over https, and this machine over http: for the local stack.
    PublicOrLoopback,
}

impl AllowedAddresses {
    /// Checks the URL before its host name is resolved.
    ///
    /// # Errors
    /// Why the URL is refused, in words for a person.
    pub(super) fn check(self, uri: &Uri) -> Result<(), String> {
        if self == Self::Anywhere {
            return Ok(());
        }
        let authority = uri.authority().ok_or("the URL has no host")?;
        if authority.as_str().contains('@') {
            return Err("a URL with a user name is refused".to_owned());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let literal: Option<IpAddr> = host.parse().ok();
        match (uri.scheme_str(), literal) {
            (Some("https"), Some(address)) => self.check_address(address),
            (Some("https"), None) => Ok(()),
            (Some("http"), _)
                if self == Self::PublicOrLoopback
                    && (host == "localhost" || literal.is_some_and(|ip| ip.is_loopback())) =>
            {
                Ok(())
            }
            _ => Err("the URL must use https".to_owned()),
        }
    }

    fn check_address(self, address: IpAddr) -> Result<(), String> {
        let allowed = match self {
            Self::Anywhere => true,
            Self::Public => is_public(address),
            Self::PublicOrLoopback => is_public(address) || address.is_loopback(),
        };
        if allowed { Ok(()) } else { Err(format!("{address} is not a public address")) }
    }
}

/// Whether an address is on the public internet. Of IPv6 only global unicast (2000::/3) is public, without
/// the ranges that embed an IPv4 address and the documentation ranges. So mapped, translated, local and
/// private addresses are not public.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    let special = matches!(
        (first, second, third),
        (0 | 10 | 127 | 224.., _, _)
            | (192, 168, _)
            | (169, 254, _)
            | (192, 0, 0 | 2)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
            | (100, 64..=127, _)
            | (172, 16..=31, _)
            | (192, 88, 99)
    );
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    let special = (first == 0x2001 && (second < 0x200 || second == 0xdb8))
        || first == 0x2002
        || (first == 0x3fff && second < 0x1000);
    first & 0xe000 == 0x2000 && !special
}

/// The system's resolver. It refuses a name that has an address which [`AllowedAddresses`] does not allow.
#[derive(Clone, Debug)]
pub(super) struct Resolver(pub AllowedAddresses);

impl tower_service::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let allowed = self.0;
        Box::pin(async move {
            let lookup = tokio::task::spawn_blocking(move || (name.as_str(), 0).to_socket_addrs());
            let found: Vec<SocketAddr> = lookup.await.map_err(io::Error::other)??.collect();
            for address in &found {
                allowed
                    .check_address(address.ip())
                    .map_err(|refusal| io::Error::new(io::ErrorKind::PermissionDenied, refusal))?;
            }
            Ok(found.into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_addresses_are_not_public() {
        for inside in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.2.1",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:7f00:1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "ff02::1",
        ] {
            assert!(!is_public(inside.parse().unwrap()), "{inside}");
        }
        for outside in [
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "192.0.1.1",
            "54.239.28.85",
            "2606:4700::1111",
            "2a00:1450::1",
            "2001:4860::8888",
        ] {
            assert!(is_public(outside.parse().unwrap()), "{outside}");
        }
    }

    #[test]
    fn a_forbidden_url_is_refused_before_its_name_is_resolved() {
        for refused in [
            "http://hooks.slack.com/x",
            "https://127.0.0.1/x",
            "https://[::1]/x",
            "https://[::ffff:7f00:1]/x",
            "https://[::]/x",
            "https://[fe80::1]/x",
            "https://[fd00:ec2::254]/x",
            "https://[64:ff9b::a9fe:a9fe]/x",
            "https://0.0.0.0/x",
            "https://169.254.169.254/latest/meta-data",
            "https://100.64.0.1/x",
            "https://a:b@example.com/",
            "https://hooks.slack.com@169.254.169.254/",
            "/x",
            "ftp://example.com/",
            "file:///etc/passwd",
        ] {
            let uri = refused.parse::<Uri>();
            assert!(uri.is_err() || AllowedAddresses::Public.check(&uri.unwrap()).is_err(), "{refused}");
        }
        // `PublicOrLoopback` accepts only `localhost` and loopback addresses over http.
        for refused in [
            "http://localhost.evil.example/",
            "http://127.0.0.1.evil.example/",
            "http://0.0.0.0/",
            "http://[::ffff:127.0.0.1]/",
        ] {
            assert!(
                AllowedAddresses::PublicOrLoopback.check(&refused.parse().unwrap()).is_err(),
                "{refused}"
            );
        }
        assert!(
            AllowedAddresses::Public.check(&"https://hooks.slack.com/services/x".parse().unwrap()).is_ok()
        );
        assert!(AllowedAddresses::PublicOrLoopback.check(&"http://127.0.0.1:9/x".parse().unwrap()).is_ok());
        assert!(AllowedAddresses::PublicOrLoopback.check(&"http://10.0.0.1/x".parse().unwrap()).is_err());
    }

    /// The system's resolver resolves these names without a network.
    #[tokio::test]
    async fn a_name_that_resolves_to_this_machine_is_refused() {
        for name in ["localhost", "LOCALHOST", "0x7f000001", "2130706433", "017700000001", "127.1"] {
            let http = super::super::Http::allowing(AllowedAddresses::Public);
            let request = http::Request::post(format!("https://{name}/hook")).body(String::new()).unwrap();
            let error = http.send(request, std::time::Duration::from_secs(5)).await.unwrap_err().to_string();
            // A bare number fails at the lookup, or before it because a certificate cannot hold such a name.
            assert!(
                error.contains("not a public address") || error.contains("invalid dns name"),
                "{name}: {error}"
            );
        }
    }
}
