//! The exchange of a receipt of App Attest for a newer one.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use tracing::{Level, event};

use crate::apple::call::Check;
use crate::apple::client::AppleClient;
use crate::apple::wire::{Class, Operation, Subject};
use crate::gate::{error::VerifyError, observer::TARGET, routing::Environment};

/// Apple's answer about a receipt.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReceiptAnswer {
    /// A newer receipt (status 200). Nobody has verified it yet:
    /// [`Receipt::verify`](crate::app_attest::Receipt::verify) does.
    Newer(Vec<u8>),
    /// It is too early (status 304): before the not-before time of a later receipt.
    NotYet,
    /// Apple has no data about the key (status 404). Apple keeps them for about 30 days, and may have some again after
    /// another attestation on the device.
    NoData,
    /// Apple does not take these bytes, or not in this environment (status 400). The same call will not succeed later.
    Rejected,
}

impl AppleClient {
    /// Exchanges a receipt of App Attest at Apple for a newer one, which holds a risk metric. Feature `app-attest`.
    ///
    /// `receipt` is what [`Receipt::as_bytes`](crate::app_attest::Receipt::as_bytes) returned, and `environment` that of
    /// the attested key. A `ReceiptRefresher` in [`app_attest`](crate::app_attest) makes these calls at their times, and
    /// verifies and stores what comes.
    ///
    /// The call has the transport, the provider token and the deadlines of the client's other calls. The private key
    /// must have the DeviceCheck service. The call has slots of its own, 16 for the client, and a breaker of its own:
    /// while Apple throttles the exchange of receipts, device tokens are checked as ever. The client reads at most
    /// 32 KiB of an answer, and repeats a call that failed without an answer, or was refused for its provider token, as
    /// it does other calls.
    ///
    /// Source: Apple, "Assessing fraud risk". Its example has the provider token in `Authorization` without the word
    /// `Bearer`, and so does this call. Other programs send the word here, too; it is not known whether Apple promises
    /// to take it. Apple names no media type for the base64 in the body; this call names `text/plain`.
    ///
    /// # Errors
    ///
    /// The kinds mean the same as for other calls: [`Throttled`](crate::VerifyErrorKind::Throttled) (status 429),
    /// [`Misconfigured`](crate::VerifyErrorKind::Misconfigured) (status 401, also with another provider token), or
    /// [`Unavailable`](crate::VerifyErrorKind::Unavailable) for everything that says nothing about the receipt.
    pub async fn refresh_receipt(
        &self,
        receipt: &[u8],
        environment: Environment,
    ) -> Result<ReceiptAnswer, VerifyError> {
        let subject = Subject::Receipt(STANDARD.encode(receipt).into());
        let settled =
            self.receipt_caller.ask(Operation::RefreshReceipt, subject, environment, Check::new()).await?;
        match settled {
            Ok(mut base64) => {
                // Some encoders break lines.
                if base64.iter().any(u8::is_ascii_whitespace) {
                    base64 = base64.into_iter().filter(|byte| !byte.is_ascii_whitespace()).collect();
                }
                let fault =
                    || VerifyError::unavailable("the answer in place of a newer receipt is no base64");
                STANDARD.decode(base64).map(ReceiptAnswer::Newer).map_err(|_| fault())
            }
            Err(answer) => Ok(match answer.class {
                Class::NotYet => ReceiptAnswer::NotYet,
                Class::NoData => ReceiptAnswer::NoData,
                _ => {
                    event!(target: TARGET, Level::WARN, error = %answer, "Apple rejected a receipt");
                    ReceiptAnswer::Rejected
                }
            }),
        }
    }
}

impl fmt::Debug for ReceiptAnswer {
    /// Leaves out the bytes, which buy the metric of a device.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Newer(_) => "Newer",
            Self::NotYet => "NotYet",
            Self::NoData => "NoData",
            Self::Rejected => "Rejected",
        })
    }
}
