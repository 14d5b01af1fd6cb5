//! The content of a receipt: a set of numbered fields.

use std::{str, time::Duration};

use crate::app_attest::date::receipt_date;
use crate::app_attest::der::{Der, INTEGER, OCTET_STRING, SEQUENCE, SET, small_number};

/// The values of a receipt's fields, as bytes. Unknown fields are skipped; no field occurs twice.
///
/// Source: Apple, "Assessing fraud risk", for all fields but the environment, which was observed on real objects.
pub(super) struct ReceiptFields<'a>(Vec<(u32, &'a [u8])>);

pub(super) const APP_ID: u32 = 2;
pub(super) const LEAF: u32 = 3;
pub(super) const CLIENT_DATA_HASH: u32 = 4;
pub(super) const KIND: u32 = 6;
pub(super) const ENVIRONMENT: u32 = 7;
pub(super) const CREATION: u32 = 12;
pub(super) const RISK_METRIC: u32 = 17;
pub(super) const NOT_BEFORE: u32 = 19;
pub(super) const EXPIRY: u32 = 21;

const MOST_FIELDS: usize = 64;

impl<'a> ReceiptFields<'a> {
    pub(super) fn parse(content: &'a [u8]) -> Option<Self> {
        let mut set = Der(Der(content).only(SET)?);
        let mut fields = Vec::new();
        while !set.is_empty() {
            let mut field = set.open(SEQUENCE)?;
            let number = small_number(field.take(INTEGER)?)?;
            field.take(INTEGER)?;
            let value = field.only(OCTET_STRING)?;
            if fields.len() == MOST_FIELDS || fields.iter().any(|(other, _)| *other == number) {
                return None;
            }
            fields.push((number, value));
        }
        Some(Self(fields))
    }

    pub(super) fn bytes(&self, number: u32) -> Option<&'a [u8]> {
        self.0.iter().find(|(other, _)| *other == number).map(|(_, value)| *value)
    }

    pub(super) fn text(&self, number: u32) -> Option<&'a str> {
        str::from_utf8(self.bytes(number)?).ok()
    }

    /// The time of an optional field. `Err` if it is there and no date.
    pub(super) fn date(&self, number: u32) -> Result<Option<Duration>, ()> {
        self.bytes(number).map(|text| receipt_date(text).ok_or(())).transpose()
    }
}
