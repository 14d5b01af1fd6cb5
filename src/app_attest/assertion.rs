//! Assertions.

use sha2::{Digest, Sha256};

use crate::app_attest::app_id::AppId;
use crate::app_attest::auth_data::AuthData;
use crate::app_attest::bundle_version::BundleVersion;
use crate::app_attest::category::Category;
use crate::app_attest::cbor::Item;
use crate::app_attest::error::ObjectError;
use crate::app_attest::extensions::Extensions;
use crate::app_attest::public_key::PublicKey;
use crate::app_attest::signature::has_signed;

const LONGEST: usize = 4 * 1024;

/// An assertion that an attested key has signed: the app's device sends this client data.
///
/// The caller must compare the [counter](Self::counter), which makes an assertion count once, with the one that it has
/// stored for the key, and advance that one in the same atomic step. It must also make sure that the client data holds a
/// challenge, or a time, that is fresh.
#[derive(Clone, Debug)]
pub struct Assertion {
    counter: u32,
    extensions: Extensions,
}

/// The facts that an assertion must match.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "a caller must think of each fact")]
pub struct AssertionExpected<'a> {
    /// The key that is stored for the key id.
    pub public_key: &'a PublicKey,
    /// The bytes that the app passed to `generateAssertion` as `clientDataHash`, as the server computes them.
    pub client_data_hash: &'a [u8],
    /// The app that is stored with the key.
    pub app_id: &'a AppId,
}

impl Assertion {
    /// Verifies an assertion: the CBOR that `DCAppAttestService.generateAssertion` returns, at most 4 KiB.
    ///
    /// Costs one verification by P-256, about 50 µs with aws-lc and 300 µs in pure Rust.
    ///
    /// Source: Apple, "Validating apps that connect to your server". The device signs the nonce as a message, and hashes
    /// it once more (observed on real objects).
    ///
    /// # Errors
    ///
    /// The first check that fails, in this order: `size`, `cbor`, `auth_data`, `rp_id`, `signature`, `extensions`,
    /// `category`.
    pub fn verify(object: &[u8], expected: &AssertionExpected<'_>) -> Result<Self, ObjectError> {
        if object.len() > LONGEST {
            return Err(ObjectError::malformed("size", "longer than 4 KiB"));
        }
        let map = Item::only(object).map_err(|reason| ObjectError::malformed("cbor", reason))?;
        let (Some(signature), Some(bytes)) = (map.bytes("signature"), map.bytes("authenticatorData")) else {
            return Err(ObjectError::malformed("cbor", "no map with a signature and authenticator data"));
        };
        let auth_data = AuthData::parse(bytes)?;
        if auth_data.rp_id_hash != expected.app_id.rp_id_hash() {
            return Err(ObjectError::refused(
                "rp_id",
                "made by another app than the one that attested the key",
            ));
        }
        let nonce = Sha256::new().chain_update(bytes).chain_update(expected.client_data_hash).finalize();
        if !has_signed(expected.public_key, &nonce, signature) {
            return Err(ObjectError::refused(
                "signature",
                "signed by another key or for other client data. The app must hash exactly the bytes that the server \
                 hashes",
            ));
        }
        Ok(Self { counter: auth_data.counter, extensions: Extensions::parse(auth_data.rest)? })
    }

    /// The number of this assertion among those of its key. The first one has 1. The device counts each one that it
    /// makes, so that some numbers may never arrive, and others arrive out of order.
    #[must_use]
    pub const fn counter(&self) -> u32 {
        self.counter
    }

    /// The category of the app, if the device says it (iOS 27, macOS 27).
    #[must_use]
    pub const fn category(&self) -> Option<Category> {
        self.extensions.category
    }

    /// The build of the app at the time of the assertion, if the device says it (iOS 27, macOS 27).
    #[must_use]
    pub const fn bundle_version(&self) -> Option<&BundleVersion> {
        self.extensions.bundle_version.as_ref()
    }
}
