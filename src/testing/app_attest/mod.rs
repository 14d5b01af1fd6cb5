//! Fake devices with App Attest keys, for tests without an iPhone.
//!
//! A [`FakeAttestCa`] stands for Apple: it signs what Apple signs, with keys of its own. Its
//! [devices](FakeAttestCa::device) attest a key and make assertions with it, each in the [`Shape`] of a system. What they
//! make has the bytes of real objects, except for keys, names and hashes. A server under test trusts the fake's two root
//! certificates in place of Apple's.
//!
//! ```
//! use std::time::SystemTime;
//!
//! use tower_devicecheck::Environment;
//! use tower_devicecheck::testing::app_attest::{FakeAttestCa, Fault, Shape};
//!
//! let apple = FakeAttestCa::new();
//! // The server trusts `apple.attestation_root_der()` and `apple.receipt_root_der()`.
//! let device = apple.device("A1B2C3D4E5.com.example.app", Shape::Ios27, Environment::Production);
//!
//! // The app sends the key id and an attestation object once, and an assertion with each request.
//! let client_data_hash = [7; 32];
//! let attestation = device.attest(&client_data_hash, SystemTime::now());
//! assert_eq!(device.key_id().len(), 44);
//! assert!(attestation.starts_with(b"\xa3\x63fmt\x6fapple-appattest"));
//!
//! let assertion = device.assert(&client_data_hash);
//! assert_eq!(device.counter(), 1);
//!
//! // The server must refuse this one.
//! let forged = device.clone().with_fault(Fault::Signature).assert(&client_data_hash);
//! assert_eq!(device.counter(), 2);
//!
//! // Apple's server exchanges receipts for newer ones, which hold the fraud metric.
//! let receipt = device.receipt(&client_data_hash, SystemTime::now()).expect("the device has receipts");
//! assert!(apple.refreshed(&receipt, SystemTime::now(), 3).is_some());
//! ```
//!
//! The code that writes these objects shares nothing with the code that reads them, so that each is a test of the other.

mod ca;
mod cbor;
mod certificate;
mod der;
mod device;
mod fault;
mod key;
mod receipt;
mod shape;
#[cfg(test)]
mod tests;

pub use self::{
    ca::FakeAttestCa, device::VirtualDevice, fault::Fault, receipt::ReceiptEncoding, shape::Shape,
};
