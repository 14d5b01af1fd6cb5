//! LimitKey: the client that a request counts for.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::OnceLock,
};

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The client that a request counts for, in a [`RateLimiter`](crate::limit::RateLimiter).
///
/// It takes 8 bytes, whatever it was made of, and holds neither the address nor the text: only their hash under a random
/// secret of the process. Two different clients have the same key with a probability of 2^-64, and without the secret
/// nobody can look for such two.
///
/// ```
/// use std::net::IpAddr;
/// use tower_devicecheck::limit::LimitKey;
///
/// # fn main() -> Result<(), std::net::AddrParseError> {
/// let key = |address: &str| Ok::<_, std::net::AddrParseError>(LimitKey::from(address.parse::<IpAddr>()?));
/// assert_eq!(key("2001:db8:1:2::3")?, key("2001:db8:1:2:ffff::4")?);
/// assert_ne!(key("2001:db8:1:2::3")?, key("2001:db8:1:3::3")?);
/// assert_eq!(key("::ffff:192.0.2.1")?, key("192.0.2.1")?);
/// assert_ne!(LimitKey::from("192.0.2.1"), key("192.0.2.1")?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LimitKey(u64);

impl LimitKey {
    /// The client with this address. Of an IPv6 address, the first `bits` count, 128 at most.
    ///
    /// [`From<IpAddr>`](#impl-From<IpAddr>-for-LimitKey) takes 64, the network that every client has for itself. A rented
    /// server often has a network of 56 or 48 bits: 256 or 65,536 such keys. With 48 bits the neighbours of an attacker
    /// share its limit.
    #[must_use]
    pub fn with_ipv6_prefix(address: IpAddr, bits: u8) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::hash(4, &address.octets()),
            IpAddr::V6(address) => {
                let host = u128::MAX.checked_shr(bits.into()).unwrap_or(0);
                Self::hash(6, &Ipv6Addr::from_bits(address.to_bits() & !host).octets())
            }
        }
    }

    fn hash(kind: u8, bytes: &[u8]) -> Self {
        static SECRET: OnceLock<Uuid> = OnceLock::new();
        let hash = Sha256::new().chain_update(SECRET.get_or_init(Uuid::new_v4)).chain_update([kind]);
        let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(hash.chain_update(bytes).finalize());
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

/// The client with this IPv4 address, or in this IPv6 network of 64 bits. An IPv4 address that is written as an IPv6
/// one (`::ffff:192.0.2.1`) is the IPv4 address.
impl From<IpAddr> for LimitKey {
    fn from(address: IpAddr) -> Self {
        Self::with_ipv6_prefix(address, 64)
    }
}

/// The client with this name: a tenant, a user, a split id. It differs from every address.
///
/// # Danger
///
/// A name that the request holds and nobody has checked yet is the client's choice, and a new name is a new limit. Take
/// names from a list of yours.
impl From<&str> for LimitKey {
    fn from(name: &str) -> Self {
        Self::hash(0, name.as_bytes())
    }
}
