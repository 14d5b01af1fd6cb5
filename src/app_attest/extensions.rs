//! The map that devices with iOS 27 or macOS 27 put behind the authenticator data.

use crate::app_attest::bundle_version::BundleVersion;
use crate::app_attest::category::Category;
use crate::app_attest::cbor::Item;
use crate::app_attest::error::ObjectError;

/// Two spellings of a key. Objects have the first one (observed on real objects). Apple's text on assertions has the
/// second one.
type Key = [&'static str; 2];

const CATEGORY: Key = ["apple_validation_category_01", "validationCategory"];
const BUNDLE_VERSION: Key = ["apple_bundle_version_01", "bundleVersion"];

/// The app, as the device describes it. Older devices say nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Extensions {
    pub(super) category: Option<Category>,
    pub(super) bundle_version: Option<BundleVersion>,
}

impl Extensions {
    /// Reads nothing, or exactly one map. The flags of the authenticator data do not count: real devices send the map
    /// with and without the bit that WebAuthn has for it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ObjectError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let map = Item::only(bytes).map_err(malformed)?;
        if !matches!(map, Item::Map(_)) {
            return Err(malformed("not a map"));
        }
        let category = both(&map, CATEGORY, category_number)?;
        let bundle_version = both(&map, BUNDLE_VERSION, |item| match item {
            Item::Text(text) => {
                text.parse::<BundleVersion>().map_err(|_| malformed("the bundle version has no use"))
            }
            _ => Err(malformed("the bundle version is no text")),
        })?;
        Ok(Self { category: category.map(Category::from_number).transpose()?, bundle_version })
    }
}

/// The number as 4 bytes, the least significant one first (observed on real objects), or as the integer that Apple's
/// text speaks of.
fn category_number(item: &Item<'_>) -> Result<u32, ObjectError> {
    let number = match item {
        Item::Bytes(bytes) => (*bytes).try_into().map(u32::from_le_bytes).ok(),
        Item::Unsigned(number) => u32::try_from(*number).ok(),
        _ => None,
    };
    number.ok_or_else(|| malformed("the category is no number of 4 bytes"))
}

/// The value under either spelling of a key, or under both if they agree.
fn both<T: PartialEq>(
    map: &Item<'_>,
    key: Key,
    read: impl Fn(&Item<'_>) -> Result<T, ObjectError>,
) -> Result<Option<T>, ObjectError> {
    let [first, second] = key.map(|name| map.get(&Item::Text(name)).map(&read).transpose());
    match (first?, second?) {
        (Some(first), Some(second)) if first != second => {
            Err(ObjectError::refused("extensions", "two spellings of a key, with different values"))
        }
        (first, second) => Ok(first.or(second)),
    }
}

fn malformed(reason: &'static str) -> ObjectError {
    ObjectError::malformed("extensions", reason)
}
