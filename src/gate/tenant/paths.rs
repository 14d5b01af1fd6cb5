//! Tenants by the first segments of the path.

use std::{
    collections::HashMap,
    sync::{Arc, RwLock},
};

use http::request;

use crate::gate::path::is_plain;
use crate::gate::tenant::name::{TenantError, TenantName};
use crate::gate::tenant::resolver::{TenantChoice, TenantResolver};
use crate::runtime::{read, write};

/// Tenants by path: a prefix of whole segments, such as `/shop`. It covers `/shop` and `/shop/cart`, but not
/// `/shopping`. Of several prefixes that cover a path, the longest one counts.
///
/// A request is [unknown](TenantChoice::Unknown) if another server could read its path differently: with `.` or `..` as
/// a segment, an empty segment before the end, a backslash, or a percent-encoded dot, slash, backslash or percent sign;
/// or with any percent sign or semicolon among as many segments as the longest prefix has.
///
/// # Clone
///
/// Clones share the prefixes, so that a clone can change them while the layer runs.
#[derive(Clone, Debug, Default)]
pub struct PathTenants {
    prefixes: Arc<RwLock<Prefixes>>,
}

#[derive(Debug, Default)]
struct Prefixes {
    tenants: HashMap<Box<str>, TenantName>,
    /// The number of segments of the longest prefix.
    depth: usize,
}

impl PathTenants {
    /// No prefixes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a prefix, as [`insert`](Self::insert) does.
    ///
    /// # Errors
    ///
    /// The same as for [`insert`](Self::insert).
    pub fn with(self, prefix: &str, tenant: &str) -> Result<Self, TenantError> {
        self.insert(prefix, tenant)?;
        Ok(self)
    }

    /// Maps a prefix to a tenant, from the next request on. Replaces the prefix's former tenant. A tenant may have
    /// several prefixes. `/` covers every path.
    ///
    /// # Errors
    ///
    /// Returns an error if `prefix` does not begin with a slash, ends in one, or holds a segment that could be read
    /// differently, or if `tenant` cannot be a name.
    pub fn insert(&self, prefix: &str, tenant: &str) -> Result<(), TenantError> {
        let tenant = tenant.parse()?;
        let is_prefix = prefix == "/"
            || (prefix.starts_with('/')
                && !prefix.ends_with('/')
                && is_unambiguous(prefix)
                && !prefix.contains(['%', ';', '?', '#']));
        if !is_prefix {
            return Err(TenantError(
                "a tenant's path prefix is `/`, or whole plain segments such as `/shop`",
            ));
        }
        let mut prefixes = write(&self.prefixes);
        prefixes.tenants.insert(without_end(prefix).into(), tenant);
        prefixes.measure();
        Ok(())
    }

    /// Removes a prefix. A shorter one may cover its requests from the next one on.
    pub fn remove(&self, prefix: &str) {
        let mut prefixes = write(&self.prefixes);
        prefixes.tenants.remove(without_end(prefix));
        prefixes.measure();
    }
}

impl Prefixes {
    fn measure(&mut self) {
        self.depth = self.tenants.keys().map(|prefix| prefix.matches('/').count()).max().unwrap_or(0);
    }
}

impl TenantResolver for PathTenants {
    fn resolve(&self, head: &request::Parts) -> TenantChoice {
        let path = head.uri.path();
        if !path.starts_with('/') || !is_unambiguous(path) {
            return TenantChoice::Unknown;
        }
        let prefixes = read(&self.prefixes);
        // The beginning of the path, with as many segments as the longest prefix.
        let end = path.match_indices('/').nth(prefixes.depth).map_or(path.len(), |(end, _)| end);
        let mut prefix = &path[..end];
        if prefix.contains(['%', ';']) {
            return TenantChoice::Unknown;
        }
        loop {
            if let Some(tenant) = prefixes.tenants.get(prefix) {
                return TenantChoice::Tenant(tenant.clone());
            }
            let Some(end) = prefix.rfind('/') else { return TenantChoice::Unknown };
            prefix = &prefix[..end];
        }
    }
}

/// The key of a prefix: that of `/` is empty.
fn without_end(prefix: &str) -> &str {
    prefix.strip_suffix('/').unwrap_or(prefix)
}

/// Whether every server finds the same segments in a path.
fn is_unambiguous(path: &str) -> bool {
    is_plain(path) && !path.contains("//")
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn choice(paths: &PathTenants, path: &str) -> Option<String> {
        let head = Request::get(path).body(()).unwrap().into_parts().0;
        match paths.resolve(&head) {
            TenantChoice::Tenant(name) => Some(name.to_string()),
            _ => None,
        }
    }

    #[test]
    fn prefixes() {
        let paths = PathTenants::new()
            .with("/shop", "shop")
            .and_then(|paths| paths.with("/shop/admin", "admin"))
            .and_then(|paths| paths.with("/bank", "bank"))
            .unwrap();
        let cases: &[(&str, Option<&str>)] = &[
            ("/shop", Some("shop")),
            ("/shop/", Some("shop")),
            ("/shop/cart", Some("shop")),
            ("/shop?to=/bank", Some("shop")),
            ("/shop/admin", Some("admin")),
            ("/shop/admin/x/y", Some("admin")),
            ("/shop/administrator", Some("shop")),
            ("/bank/x%20y", None),
            ("/bank/x/y%20z", Some("bank")),
            ("https://bank.example/shop", Some("shop")),
            ("/shopping", None),
            ("/Shop", None),
            ("/", None),
            ("//shop", None),
            ("/shop//cart", None),
            ("/shop/../bank", None),
            ("/shop/./cart", None),
            ("/shop/%2e%2e/bank", None),
            ("/shop%2Fcart", None),
            ("/shop/..;x/bank", None),
            ("/%73hop/cart", None),
            ("/shop/%61dmin", None),
            ("/bank\\..\\shop", None),
            ("*", None),
        ];
        for (path, expected) in cases {
            let Ok(_) = path.parse::<http::Uri>() else { continue };
            assert_eq!(choice(&paths, path).as_deref(), *expected, "{path}");
        }
    }

    #[test]
    fn a_root_covers_the_rest() {
        let paths =
            PathTenants::new().with("/", "rest").and_then(|paths| paths.with("/shop", "shop")).unwrap();
        for (path, expected) in
            [("/", Some("rest")), ("/x", Some("rest")), ("/shop/x", Some("shop")), ("/%73hop", None)]
        {
            assert_eq!(choice(&paths, path).as_deref(), expected, "{path}");
        }
        paths.remove("/shop");
        assert_eq!(choice(&paths, "/shop/x").as_deref(), Some("rest"));
        paths.remove("/");
        assert_eq!(choice(&paths, "/x"), None);
    }

    #[test]
    fn what_is_no_prefix_is_an_error() {
        for prefix in ["", "shop", "/shop/", "//", "/a//b", "/a/..", "/a%20b", "/a?b", "/a#b", "/a\\b"] {
            assert!(PathTenants::new().insert(prefix, "one").is_err(), "{prefix}");
        }
    }
}
