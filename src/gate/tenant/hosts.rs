//! Tenants by the host that the client asks for.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, RwLock},
};

use http::{header::HOST, request};

use crate::gate::tenant::name::{TenantError, TenantName};
use crate::gate::tenant::resolver::{TenantChoice, TenantResolver};
use crate::runtime::{read, write};

/// Tenants by host: the `Host` header of HTTP/1, the `:authority` of HTTP/2 and HTTP/3.
///
/// Hosts are compared whole, without their port, and without regard to case. There are no wildcards: a suffix match is
/// how a request for `shop.example.com.attacker.net` gets in. A request is [unknown](TenantChoice::Unknown) without a
/// host, with two `Host` headers, or if `Host` and the authority of its URI name different hosts.
///
/// The client writes the host. A tenant by host is therefore safe because each tenant's own gate judges the request, and
/// because a proxy in front, or the certificate, answers only for the hosts that it should.
///
/// # Clone
///
/// Clones share the hosts, so that a clone can change them while the layer runs.
#[derive(Clone, Debug, Default)]
pub struct HostTenants {
    hosts: Arc<RwLock<HashMap<Box<str>, TenantName>>>,
}

impl HostTenants {
    /// No hosts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a host, as [`insert`](Self::insert) does.
    ///
    /// # Errors
    ///
    /// The same as for [`insert`](Self::insert).
    pub fn with(self, host: &str, tenant: &str) -> Result<Self, TenantError> {
        self.insert(host, tenant)?;
        Ok(self)
    }

    /// Maps a host to a tenant, from the next request on. Replaces the host's former tenant. A tenant may have several
    /// hosts.
    ///
    /// # Errors
    ///
    /// Returns an error if `host` is not a host's name or an IP address, such as one with a port, or if `tenant` cannot
    /// be a name.
    pub fn insert(&self, host: &str, tenant: &str) -> Result<(), TenantError> {
        let tenant = tenant.parse()?;
        if host.ends_with('.') || name_of(host) != Some(host) {
            return Err(TenantError("a tenant's host is a name or an IP address, without a port"));
        }
        write(&self.hosts).insert(host.to_ascii_lowercase().into(), tenant);
        Ok(())
    }

    /// Removes a host. Its requests are [unknown](TenantChoice::Unknown) from the next one on.
    pub fn remove(&self, host: &str) {
        write(&self.hosts).remove(&*host.to_ascii_lowercase());
    }
}

impl TenantResolver for HostTenants {
    fn resolve(&self, head: &request::Parts) -> TenantChoice {
        let Some(host) = host_of(head) else { return TenantChoice::Unknown };
        read(&self.hosts).get(&*host).cloned().into()
    }
}

/// The one host that a request names, in lower case.
fn host_of(head: &request::Parts) -> Option<Cow<'_, str>> {
    let mut headers = head.headers.get_all(HOST).iter();
    let host = match (headers.next(), headers.next()) {
        (Some(value), None) => Some(name_of(value.to_str().ok()?)?),
        (None, _) => None,
        (Some(_), Some(_)) => return None,
    };
    let authority = match head.uri.authority() {
        Some(authority) => Some(name_of(authority.as_str())?),
        None => None,
    };
    let name = match (host, authority) {
        (Some(host), Some(authority)) if !host.eq_ignore_ascii_case(authority) => return None,
        (host, authority) => host.or(authority)?,
    };
    Some(if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        name.to_ascii_lowercase().into()
    } else {
        name.into()
    })
}

/// The host of `host:port`, if the text is nothing else.
fn name_of(text: &str) -> Option<&str> {
    let end = match text.strip_prefix('[') {
        Some(address) => {
            let length = address.find(']')?;
            address[..length].parse::<std::net::Ipv6Addr>().ok()?;
            length + 2
        }
        None => text.find(':').unwrap_or(text.len()),
    };
    let (name, port) = text.split_at(end);
    let is_port = port.is_empty()
        || port.strip_prefix(':').is_some_and(|digits| {
            !digits.is_empty() && digits.len() <= 5 && digits.bytes().all(|digit| digit.is_ascii_digit())
        });
    let is_name = name.starts_with('[')
        || name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    (is_port && is_name && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn hosts() {
        let hosts = HostTenants::new()
            .with("shop.example.com", "shop")
            .and_then(|hosts| hosts.with("Bank.Example.com", "bank"))
            .and_then(|hosts| hosts.with("[::1]", "local"))
            .unwrap();
        type Case = (&'static str, &'static str, &'static [&'static str], Option<&'static str>);
        let cases: &[Case] = &[
            ("the host", "/", &["shop.example.com"], Some("shop")),
            ("with a port", "/", &["shop.example.com:8443"], Some("shop")),
            ("in capitals", "/", &["SHOP.example.COM:1"], Some("shop")),
            ("registered in capitals", "/", &["bank.example.com"], Some("bank")),
            ("an address", "/", &["[::1]:8080"], Some("local")),
            ("the authority", "http://shop.example.com/", &[], Some("shop")),
            ("the authority with a port", "https://shop.example.com:443/", &[], Some("shop")),
            ("both agree", "https://shop.example.com/", &["Shop.example.com:443"], Some("shop")),
            ("both disagree", "https://shop.example.com/", &["bank.example.com"], None),
            ("both disagree the other way", "https://bank.example.com/", &["shop.example.com"], None),
            ("an authority and rubbish", "https://shop.example.com/", &["shop.example.com/"], None),
            ("an authority and an empty host", "https://shop.example.com/", &[""], None),
            ("two hosts", "/", &["shop.example.com", "bank.example.com"], None),
            ("one host twice", "/", &["shop.example.com", "shop.example.com"], None),
            ("no host", "/", &[], None),
            ("an empty host", "/", &[""], None),
            ("only a port", "/", &[":80"], None),
            ("a suffix", "/", &["www.shop.example.com"], None),
            ("a prefix", "/", &["shop.example.com.attacker.net"], None),
            ("a trailing dot", "/", &["shop.example.com."], None),
            ("a user", "/", &["shop.example.com@bank.example.com"], None),
            ("a user in the authority", "http://shop.example.com@bank.example.com/", &[], None),
            ("a password", "http://a:b@shop.example.com/", &[], None),
            ("a path", "/", &["shop.example.com/x"], None),
            ("a list", "/", &["shop.example.com, bank.example.com"], None),
            ("spaces", "/", &["shop.example.com bank"], None),
            ("a port of letters", "/", &["shop.example.com:http"], None),
            ("an empty port", "/", &["shop.example.com:"], None),
            ("two ports", "/", &["shop.example.com:80:80"], None),
            ("an open bracket", "/", &["[::1"], None),
            ("a bracket around a name", "/", &["[shop.example.com]"], None),
            ("letters behind a bracket", "/", &["[::1]x"], None),
            ("other letters", "/", &["ſhop.example.com"], None),
        ];
        for (name, uri, values, expected) in cases {
            let mut request = Request::get(*uri);
            for value in *values {
                request = request.header(HOST, *value);
            }
            let head = request.body(()).unwrap().into_parts().0;
            let expected = expected.map(|name| name.parse::<TenantName>().unwrap());
            assert_eq!(hosts.resolve(&head), expected.into(), "{name}");
        }
    }

    #[test]
    fn hosts_change_while_a_clone_is_in_use() {
        let hosts = HostTenants::new();
        let running = hosts.clone();
        let head = Request::get("/").header(HOST, "a.example").body(()).unwrap().into_parts().0;
        let tenant = |name: &str| TenantChoice::Tenant(name.parse().unwrap());
        assert_eq!(running.resolve(&head), TenantChoice::Unknown);
        hosts.insert("A.example", "one").unwrap();
        assert_eq!(running.resolve(&head), tenant("one"));
        hosts.insert("a.example", "two").unwrap();
        assert_eq!(running.resolve(&head), tenant("two"));
        hosts.remove("a.EXAMPLE");
        assert_eq!(running.resolve(&head), TenantChoice::Unknown);
    }

    #[test]
    fn what_is_no_host_is_an_error() {
        for host in
            ["", "a.example:80", "a.example.", "*.example", "https://a.example", "a b", "[::1]:80", "a/b"]
        {
            assert!(HostTenants::new().insert(host, "one").is_err(), "{host}");
        }
        assert!(HostTenants::new().insert("a.example", "").is_err());
    }
}
