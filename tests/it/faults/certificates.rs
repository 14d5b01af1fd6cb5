//! A certificate authority for one run of the tests, and what a server in Apple's place may show.

use std::sync::{Arc, OnceLock};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, rustls::crypto::aws_lc_rs};

use crate::faults::fault::{Identity, Protocol};

/// The certificates of all rows: keys take time to make.
pub(super) struct Certificates {
    /// The root that the client trusts, in PEM.
    pub(super) root: String,
    authority: Issuer<'static, KeyPair>,
    other_authority: Issuer<'static, KeyPair>,
}

fn authority() -> (String, Issuer<'static, KeyPair>) {
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = root.self_signed(&key).unwrap().pem();
    (pem, Issuer::new(root, key))
}

impl Certificates {
    pub(super) fn get() -> &'static Self {
        static MADE: OnceLock<Certificates> = OnceLock::new();
        MADE.get_or_init(|| {
            let ((root, authority), (_, other_authority)) = (authority(), authority());
            Self { root, authority, other_authority }
        })
    }

    /// A server that shows this identity, and speaks one protocol.
    pub(super) fn acceptor(&self, identity: Identity, protocol: Protocol) -> TlsAcceptor {
        let name = if identity == Identity::OtherName { "apple.example" } else { "127.0.0.1" };
        let mut leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
        match identity {
            Identity::Expired => leaf.not_after = date_time_ymd(2020, 1, 1),
            Identity::NotYetValid => leaf.not_before = date_time_ymd(2090, 1, 1),
            _ => {}
        }
        let by = if identity == Identity::OtherAuthority { &self.other_authority } else { &self.authority };
        let key = KeyPair::generate().unwrap();
        let leaf = leaf.signed_by(&key, by).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key.serialize_der().try_into().unwrap())
            .unwrap();
        config.alpn_protocols = vec![protocol.alpn().to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}
