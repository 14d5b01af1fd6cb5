//! The validation category.

use std::fmt;

use crate::app_attest::error::ObjectError;

/// The way in which an app came to its device, as the device says since iOS 27 and macOS 27.
///
/// Source: Apple, "Validating apps that connect to your server", on `apple_validation_category_01`. Only the category
/// tells an App Store build from one that a developer signed: both can attest for production, because an entitlement of
/// the app chooses the environment (observed on real objects).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Category {
    /// A part of the operating system.
    OperatingSystem,
    /// TestFlight.
    TestFlight,
    /// Signed for development.
    Development,
    /// The App Store.
    AppStore,
    /// Enterprise or ad hoc distribution.
    Enterprise,
    /// Signed with a Developer ID, outside of the Mac App Store.
    DeveloperId,
    /// None of these, as Apple says.
    Other,
}

impl Category {
    /// Apple's number: 1 to 6, or 10.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::OperatingSystem => 1,
            Self::TestFlight => 2,
            Self::Development => 3,
            Self::AppStore => 4,
            Self::Enterprise => 5,
            Self::DeveloperId => 6,
            Self::Other => 10,
        }
    }

    /// Takes Apple's number.
    ///
    /// # Errors
    ///
    /// 0, which means invalid, 7 to 9, which must not occur, and numbers that Apple does not explain are an error of the
    /// step `category`, and [denied](crate::app_attest::ObjectErrorKind::Denied).
    pub fn from_number(number: u32) -> Result<Self, ObjectError> {
        Ok(match number {
            1 => Self::OperatingSystem,
            2 => Self::TestFlight,
            3 => Self::Development,
            4 => Self::AppStore,
            5 => Self::Enterprise,
            6 => Self::DeveloperId,
            10 => Self::Other,
            _ => {
                return Err(ObjectError::denied(
                    "category",
                    format!("{number} is not a valid validation category"),
                ));
            }
        })
    }

    /// The name in lower case, for logs: `operating_system`, `test_flight`, `development`, `app_store`, `enterprise`,
    /// `developer_id` or `other`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OperatingSystem => "operating_system",
            Self::TestFlight => "test_flight",
            Self::Development => "development",
            Self::AppStore => "app_store",
            Self::Enterprise => "enterprise",
            Self::DeveloperId => "developer_id",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_have_apples_numbers() {
        let valid = [1, 2, 3, 4, 5, 6, 10];
        for number in (0..=300).chain([0x0300_0000, u32::MAX]) {
            let category = Category::from_number(number);
            assert_eq!(category.is_ok(), valid.contains(&number), "{number}");
            assert!(category.is_ok_and(|category| category.number() == number) || !valid.contains(&number));
        }
    }
}
