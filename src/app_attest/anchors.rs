//! The roots of all trust.

use rustls_pki_types::{CertificateDer, TrustAnchor, pem::PemObject};

use crate::app_attest::error::ObjectError;
use crate::app_attest::roots;

/// The roots of the certificates of attestations and of receipts. Default: Apple's, which are compiled in.
///
/// Nothing is ever fetched. A new root of Apple, or the root of a test, replaces one or the other:
///
/// ```
/// # #[cfg(all(feature = "app-attest", any(feature = "aws-lc-rs", feature = "rust-crypto")))]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pem = b"-----BEGIN CERTIFICATE-----\n\
/// # MIICITCCAaegAwIBAgIQC/O+DvHN0uD7jG5yH2IXmDAKBggqhkjOPQQDAzBSMSYw\n\
/// # JAYDVQQDDB1BcHBsZSBBcHAgQXR0ZXN0YXRpb24gUm9vdCBDQTETMBEGA1UECgwK\n\
/// # QXBwbGUgSW5jLjETMBEGA1UECAwKQ2FsaWZvcm5pYTAeFw0yMDAzMTgxODMyNTNa\n\
/// # Fw00NTAzMTUwMDAwMDBaMFIxJjAkBgNVBAMMHUFwcGxlIEFwcCBBdHRlc3RhdGlv\n\
/// # biBSb290IENBMRMwEQYDVQQKDApBcHBsZSBJbmMuMRMwEQYDVQQIDApDYWxpZm9y\n\
/// # bmlhMHYwEAYHKoZIzj0CAQYFK4EEACIDYgAERTHhmLW07ATaFQIEVwTtT4dyctdh\n\
/// # NbJhFs/Ii2FdCgAHGbpphY3+d8qjuDngIN3WVhQUBHAoMeQ/cLiP1sOUtgjqK9au\n\
/// # Yen1mMEvRq9Sk3Jm5X8U62H+xTD3FE9TgS41o0IwQDAPBgNVHRMBAf8EBTADAQH/\n\
/// # MB0GA1UdDgQWBBSskRBTM72+aEH/pwyp5frq5eWKoTAOBgNVHQ8BAf8EBAMCAQYw\n\
/// # CgYIKoZIzj0EAwMDaAAwZQIwQgFGnByvsiVbpTKwSga0kP0e8EeDS4+sQmTvb7vn\n\
/// # 53O5+FRXgeLhpJ06ysC5PrOyAjEAp5U4xDgEgllF7En3VcE3iexZZtKeYnpqtijV\n\
/// # oyFraWVIyd/dganmrduC1bmTBGwD\n\
/// # -----END CERTIFICATE-----\n";
/// use tower_devicecheck::app_attest::Anchors;
///
/// let anchors = Anchors::apple().with_attestation_roots(pem)?;
/// # assert_eq!(anchors, Anchors::apple());
/// # Ok(())
/// # }
/// # #[cfg(not(all(feature = "app-attest", any(feature = "aws-lc-rs", feature = "rust-crypto"))))]
/// # fn main() {}
/// ```
///
/// A root counts by its name and key. Its own dates are not checked.
///
/// # Danger
///
/// The holder of a root's private key can attest anything. Whoever replaces a root must trust that holder as Apple.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchors {
    pub(super) attestation: Vec<TrustAnchor<'static>>,
    pub(super) receipts: Vec<TrustAnchor<'static>>,
}

impl Anchors {
    /// Apple App Attestation Root CA for attestations, and Apple Root CA - G3 for receipts.
    #[must_use]
    pub fn apple() -> Self {
        Self { attestation: vec![roots::ATTESTATION], receipts: vec![roots::RECEIPTS] }
    }

    /// Replaces the roots of attestations by these certificates: PEM, one or more, or the DER of one.
    ///
    /// # Errors
    ///
    /// Bytes that hold no certificate are an error of the step `anchor`.
    pub fn with_attestation_roots(self, certificates: &[u8]) -> Result<Self, ObjectError> {
        Ok(Self { attestation: roots(certificates)?, ..self })
    }

    /// Replaces the roots of receipts, as [`with_attestation_roots`](Self::with_attestation_roots) does.
    ///
    /// # Errors
    ///
    /// Bytes that hold no certificate are an error of the step `anchor`.
    pub fn with_receipt_roots(self, certificates: &[u8]) -> Result<Self, ObjectError> {
        Ok(Self { receipts: roots(certificates)?, ..self })
    }
}

impl Default for Anchors {
    fn default() -> Self {
        Self::apple()
    }
}

fn roots(bytes: &[u8]) -> Result<Vec<TrustAnchor<'static>>, ObjectError> {
    let fault = || ObjectError::malformed("anchor", "neither PEM nor DER of a root certificate");
    let certificates = if bytes.first() == Some(&0x30) {
        vec![CertificateDer::from(bytes)]
    } else {
        CertificateDer::pem_slice_iter(bytes).collect::<Result<_, _>>().map_err(|_| fault())?
    };
    if certificates.is_empty() {
        return Err(fault());
    }
    let anchor =
        |certificate| Ok(webpki::anchor_from_trusted_cert(certificate).map_err(|_| fault())?.to_owned());
    certificates.iter().map(anchor).collect()
}
