//! The way from a certificate to a root.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, Error, ExtendedKeyUsageValidator, KeyPurposeIdIter};

use crate::app_attest::certificate::Certificate;
use crate::app_attest::date::shown;
use crate::app_attest::error::ObjectError;
use crate::app_attest::signature::ALGORITHMS;

/// The names of the two steps.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub(super) chain: &'static str,
    pub(super) time: &'static str,
}

/// Checks that these certificates lead from the first one to a root, at this time since the Unix epoch.
///
/// No revocation is checked: the certificates of attestations name no list of revoked ones, and no responder.
pub(super) fn verify(
    certificates: &[&[u8]],
    roots: &[TrustAnchor<'_>],
    at: Duration,
    steps: Steps,
) -> Result<(), ObjectError> {
    let Err(fault) = check(certificates, roots, at) else { return Ok(()) };
    let text = match fault {
        Error::CertExpired { not_after, .. } => format!("it ended at {}", shown_unix(not_after)),
        Error::CertNotValidYet { not_before, .. } => format!("it begins at {}", shown_unix(not_before)),
        _ => {
            return Err(ObjectError::refused(
                steps.chain,
                format!("the certificates do not lead to the root: {fault}"),
            ));
        }
    };
    // A forger can write any date. Only a genuine chain is a matter of time.
    let begin = certificates.first().and_then(|leaf| Certificate::parse(leaf)).map(|leaf| leaf.not_before);
    match begin.map(|begin| check(certificates, roots, begin)) {
        Some(Ok(())) => {
            let text =
                format!("certificate not valid at {}: {text}. Is this server's clock right?", shown(at));
            Err(ObjectError::refused(steps.time, text))
        }
        _ => Err(ObjectError::refused(steps.chain, "the certificates do not lead to the root at any time")),
    }
}

fn check(certificates: &[&[u8]], roots: &[TrustAnchor<'_>], at: Duration) -> Result<(), Error> {
    let [leaf, others @ ..] = certificates else { return Err(Error::UnknownIssuer) };
    let leaf = CertificateDer::from(*leaf);
    let others: Vec<_> = others.iter().map(|other| CertificateDer::from(*other)).collect();
    let leaf = EndEntityCert::try_from(&leaf)?;
    let time = UnixTime::since_unix_epoch(at);
    let path = leaf.verify_for_usage(&ALGORITHMS, roots, &others, time, AnyUsage, None, None)?;
    let mut issuers = path.intermediate_certificates();
    let may_sign = |der: &[u8]| Certificate::parse(der).is_some_and(|issuer| issuer.may_sign_certificates());
    if issuers.all(|issuer| may_sign(&issuer.der())) { Ok(()) } else { Err(Error::EndEntityUsedAsCa) }
}

fn shown_unix(time: UnixTime) -> String {
    shown(Duration::from_secs(time.as_secs()))
}

/// Accepts every extended key usage. Apple's leaves have had one of Apple's own only since 2026 (observed on real
/// objects).
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        Ok(())
    }
}
