//! App Attest: attested keys, their counters, and the requests that they sign.

mod key_store;
