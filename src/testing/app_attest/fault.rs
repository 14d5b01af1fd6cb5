//! Faults that a test plants.

/// A fault in what a [`VirtualDevice`](crate::testing::app_attest::VirtualDevice) makes. A server must refuse each,
/// unless its line says otherwise.
///
/// Some faults need no planting: an expired attestation has an old time, an attestation of another root comes from
/// another [`FakeAttestCa`](crate::testing::app_attest::FakeAttestCa), a reused counter is
/// [set](crate::testing::app_attest::VirtualDevice::set_counter), and any
/// [category](crate::testing::app_attest::VirtualDevice::with_category) can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// Attestation and assertion: the RP ID hash is that of another App ID.
    RpIdHash,
    /// Attestation and assertion: a byte follows the object.
    TrailingByte,
    /// Attestation and assertion: a byte follows the authenticator data, where only the map of iOS 27 may follow.
    TrailingAuthData,
    /// Attestation and assertion: the last byte of the authenticator data is missing.
    ShortAuthData,
    /// Attestation and assertion: the last key of the outermost map occurs twice.
    DuplicateKey,
    /// Attestation and assertion: the category occurs twice in the map of iOS 27. Older shapes have no map, and no fault.
    DuplicateCategory,
    /// Attestation and assertion: the map of iOS 27 has another category under `validationCategory`, the other spelling in
    /// Apple's documentation. Older shapes have no fault.
    SecondCategory,
    /// Attestation: the format is `packed`, which other devices than Apple's send.
    Format,
    /// Attestation: the certificate's nonce is about another client data hash.
    Nonce,
    /// Attestation: the certificate has no nonce.
    NonceMissing,
    /// Attestation: the certificate has the nonce twice.
    NonceTwice,
    /// Attestation: the counter is 1.
    Counter,
    /// Attestation: the AAGUID is `appattestsandbox`, which one of Apple's pages has, but no device.
    Aaguid,
    /// Attestation: the credential id is that of another key.
    CredentialId,
    /// Attestation: the COSE key is another key.
    CoseKey,
    /// Attestation: the signature of the leaf certificate is wrong.
    LeafSignature,
    /// Attestation: the certificate of the authority that signed the leaf is missing.
    LeafAlone,
    /// Attestation: the access-control list of the key is empty. On a Mac, it must show that the system is secured. On an
    /// iPhone nothing is known of it that a server could demand, so that this is no fault there.
    AccessControl,
    /// Assertion: another key signed it.
    Signature,
    /// Receipt: its App ID is another one.
    ReceiptAppId,
    /// Receipt: its certificate is that of another key.
    ReceiptKey,
    /// Receipt: its client data hash is another one.
    ReceiptHash,
    /// Receipt: its signature is about other content.
    ReceiptSignature,
    /// Receipt: its signer is certified by the right authority, but not to sign receipts.
    ReceiptSigner,
    /// Receipt: the signature of its signer's certificate is wrong.
    ReceiptChain,
    /// Receipt: it was created six minutes before the attestation.
    ReceiptAge,
    /// Receipt: its last field occurs twice.
    ReceiptFieldTwice,
}
