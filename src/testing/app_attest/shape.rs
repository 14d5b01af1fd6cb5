//! The shapes of objects: what differs between systems.

use crate::testing::app_attest::certificate::apple_extension;
use crate::testing::app_attest::der;

/// The system of a device. Its objects differ from those of others, as real ones do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Shape {
    /// An iPhone with iOS 14: the oldest shape.
    Ios14,
    /// An iPhone with iOS 26: the certificate has a key usage of its own, and the access-control list of the key.
    Ios26,
    /// An iPhone with iOS 27: category and bundle version follow in a map, and bit 0x80 of the flags announces it.
    Ios27,
    /// A Mac with macOS 27: the category and the hash of the program's code directory follow in a map, which no flag
    /// announces. The access-control list shows that the system is secured.
    MacOs27,
}

impl Shape {
    pub(super) const fn has_map(self) -> bool {
        matches!(self, Self::Ios27 | Self::MacOs27)
    }

    pub(super) const fn flags(self) -> u8 {
        match self {
            Self::Ios27 => 0xc0,
            _ => 0x40,
        }
    }

    /// Tells whether a certificate of 2026 signs the shape.
    pub(super) const fn is_recent(self) -> bool {
        !matches!(self, Self::Ios14)
    }

    pub(super) const fn os_version(self) -> &'static str {
        match self {
            Self::Ios14 => "14.2",
            Self::Ios26 => "26.4.1",
            Self::Ios27 => "27.0.1",
            Self::MacOs27 => "27.0",
        }
    }

    const fn platform(self) -> (&'static str, &'static str) {
        match self {
            Self::Ios14 => ("iphoneos", "18B92"),
            Self::Ios26 => ("iphoneos", "23E254"),
            Self::Ios27 => ("iphoneos", "24A446"),
            Self::MacOs27 => ("macosx", "26A412"),
        }
    }

    /// Extension 8.5: about the key, and the App ID.
    pub(super) fn key_facts(self, app_id: &str) -> Vec<u8> {
        let hardware = match self {
            Self::MacOs27 => 13,
            _ => 10,
        };
        let mut facts = vec![
            number(4, hardware),
            number(1200, 1),
            number(1201, 0),
            number(1202, 1),
            number(1203, 1),
            text(1204, app_id),
            text(5, "sks "),
            number(1206, 5),
            number(1207, 0),
            number(1209, 0),
            number(1210, 0),
        ];
        if self.is_recent() {
            facts.push(number(1211, 0));
        }
        apple_extension([8, 5], &der::sequence(&[&facts.concat()]))
    }

    /// Extension 8.6: the operations that the key allows. The fault is an empty list.
    pub(super) fn access_control(self, fault: bool) -> Vec<u8> {
        let allowed = der::context(1, &der::BOOLEAN_TRUE);
        let operation = |name: &str, constraint: &[u8]| der::sequence(&[&der::utf8(name), constraint]);
        let operations = match self {
            _ if fault => Vec::new(),
            Self::MacOs27 => {
                // The key signs only under System Integrity Protection.
                let restricted = der::context(0, &der::utf8("rsec"));
                let value = der::sequence(&[&der::context(6, &der::integer(1))]);
                let signing = operation("osgn", &[restricted, value].concat());
                let others = ["ok", "oa", "odel"].map(|name| operation(name, &allowed));
                [others.concat(), signing].concat()
            }
            _ => ["okd", "oa", "osgn", "odel", "ock"].map(|name| operation(name, &allowed)).concat(),
        };
        let list = der::sequence(&[&der::utf8("11"), &der::sequence(&[&operations])]);
        apple_extension([8, 6], &der::sequence(&[&der::context(3, &der::octets(&list))]))
    }

    /// Extension 8.7: about the system.
    pub(super) fn system_facts(self, os_version: &str) -> Vec<u8> {
        let (platform, build) = self.platform();
        let mut facts = text(1400, os_version);
        if self.is_recent() {
            let rest = [
                number(1104, u32::MAX),
                text(1403, build),
                text(1405, os_version),
                number(1406, 0),
                text(1026, platform),
            ];
            facts.extend(rest.concat());
        }
        apple_extension([8, 7], &der::sequence(&[&facts]))
    }
}

fn number(tag: u16, number: u32) -> Vec<u8> {
    der::context(tag, &der::integer(number))
}

fn text(tag: u16, text: &str) -> Vec<u8> {
    der::context(tag, &der::octets(text.as_bytes()))
}
