//! The credentials for Apple: team id, key id, and the private key.

use std::env::{self, VarError};
use std::{borrow::Cow, fmt, fs::File, io::Read, path::Path, sync::Arc};

use tracing::{Level, event};
use zeroize::Zeroizing;

use crate::BoxError;
use crate::apple::pem::{self, KeyFault};
use crate::apple::provider_token::{ProviderTokens, Signer};
use crate::gate::{error::impl_error, observer::TARGET};
use crate::quote::{may_hold_secret, quoted, shown_id};
use crate::wipe::{self, wiping_the_stack};

/// The credentials that identify this server to Apple: the team id, the key id, and the private key.
///
/// Create the key under Certificates, Identifiers & Profiles > Keys with the DeviceCheck service enabled.
/// Apple lets you download it once, as `AuthKey_<key id>.p8`. Keys of App Store Connect do not work here.
///
/// Every constructor parses the key and signs with it once, so that a bad key fails at start-up. Credentials with the
/// same ids and key share one provider token in a process. Dropping the last of them wipes the key from memory. The
/// caller must wipe the text or DER that it passed in.
#[derive(Clone)]
pub struct Credentials {
    provider_tokens: Arc<ProviderTokens>,
}

impl Credentials {
    /// Makes credentials from the text of a `.p8` file.
    ///
    /// White space and quotes around the text are ignored. Line ends may be missing, CRLF, or written as `\n`. The
    /// base64 between the first and the last line suffices, and base64 of the whole file also works.
    ///
    /// # Errors
    ///
    /// Returns an error if an id is empty or clearly not an id, or if the text is not an unencrypted P-256 key in
    /// PKCS#8 form. The error names the cause and the remedy.
    pub fn from_pem(team_id: &str, key_id: &str, pem: &str) -> Result<Self, CredentialsError> {
        Self::from_text(team_id, key_id, pem, &InputNames::ARGUMENTS)
    }

    /// Makes credentials from a key in unencrypted PKCS#8 DER.
    ///
    /// # Errors
    ///
    /// The same as for [`from_pem`](Self::from_pem).
    pub fn from_der(team_id: &str, key_id: &str, pkcs8_der: &[u8]) -> Result<Self, CredentialsError> {
        let names = InputNames::ARGUMENTS;
        wiping_the_stack::<{ wipe::SIGNATURE }, _>(|| {
            pem::check_der(pkcs8_der).map_err(|fault| CredentialsError::key(&names, fault))?;
            Self::build(team_id, key_id, pkcs8_der, &names)
        })
    }

    /// Makes credentials from the `.p8` file at `path`. The call reads the file once, and blocks meanwhile.
    ///
    /// # Errors
    ///
    /// Returns an error if the file cannot be read. Further errors are those of [`from_pem`](Self::from_pem).
    pub fn from_pem_file(
        team_id: &str,
        key_id: &str,
        path: impl AsRef<Path>,
    ) -> Result<Self, CredentialsError> {
        Self::from_file(team_id, key_id, path.as_ref(), InputNames::ARGUMENTS)
    }

    /// Makes credentials from environment variables:
    ///
    /// | variable | value |
    /// |---|---|
    /// | `APPLE_JWT_ISS` | the team id, 10 characters |
    /// | `APPLE_JWT_KID` | the key id, 10 characters |
    /// | `APPLE_JWT_PRIVATE_KEY` | the text of the `.p8` file, see [`from_pem`](Self::from_pem) |
    /// | `APPLE_JWT_PRIVATE_KEY_FILE` | the path to the file, if the text is not given |
    ///
    /// A variable that holds only white space counts as unset.
    ///
    /// # Errors
    ///
    /// Returns an error if a variable is not set, or if both of the last two are. Further errors are those of
    /// [`from_pem`](Self::from_pem) and [`from_pem_file`](Self::from_pem_file).
    pub fn from_env() -> Result<Self, CredentialsError> {
        Self::from_lookup(|name| env::var(name))
    }

    pub(super) fn from_lookup(
        lookup: impl Fn(&str) -> Result<String, VarError>,
    ) -> Result<Self, CredentialsError> {
        let find = |name: &'static str| match lookup(name).map(Zeroizing::new) {
            Ok(value) if value.trim().is_empty() => Ok(None),
            Ok(value) => Ok(Some(value)),
            Err(VarError::NotPresent) => Ok(None),
            Err(VarError::NotUnicode(_)) => {
                Err(CredentialsError::new(name, "it is not UTF-8 text: set it to plain ASCII"))
            }
        };
        let mut missing = Vec::new();
        let mut require = |name, cure| {
            find(name).map(|value| {
                if value.is_none() {
                    missing.push((name, cure));
                }
                value.unwrap_or_default()
            })
        };
        let team_id = require(ISS, "it is not set: set it to your team id (Apple's membership page has it)")?;
        let key_id = require(
            KID,
            "it is not set: set it to the id of your key, the part of AuthKey_<key id>.p8 in brackets",
        )?;
        let (text, path) = (find(KEY)?, find(KEY_FILE)?);
        if text.is_none() && path.is_none() {
            missing.push((
                KEY,
                "neither it nor APPLE_JWT_PRIVATE_KEY_FILE is set: set it to the text of the .p8 file, or the \
                 other one to the path to it",
            ));
        }
        if let [(first, cure), further @ ..] = &*missing {
            let further: String = further.iter().map(|(name, cure)| format!("; {name}: {cure}")).collect();
            return Err(CredentialsError::new(*first, format!("{cure}{further}")));
        }
        let names = |key| InputNames { team_id: ISS, key_id: KID, key: Cow::Borrowed(key) };
        match (text, path) {
            (Some(text), None) => Self::from_text(&team_id, &key_id, &text, &names(KEY)),
            (None, Some(path)) if pem::der_of_text(&path).is_ok() => Err(CredentialsError::new(
                KEY_FILE,
                "it is a key and not the path to one: set APPLE_JWT_PRIVATE_KEY to it, and unset this one",
            )),
            (None, path) => {
                let path = path.unwrap_or_default();
                Self::from_file(&team_id, &key_id, Path::new(pem::unquoted(&path)), names(KEY_FILE))
            }
            (Some(_), Some(_)) => Err(CredentialsError::new(
                KEY,
                "it is set, and so is APPLE_JWT_PRIVATE_KEY_FILE: unset one of them",
            )),
        }
    }

    fn from_file(
        team_id: &str,
        key_id: &str,
        path: &Path,
        mut names: InputNames,
    ) -> Result<Self, CredentialsError> {
        let shown = path.to_string_lossy();
        // A text without any separator is probably not a path. It may be a secret that was meant for another variable.
        let is_hidden = may_hold_secret(&shown) || !shown.contains(['/', '\\', '.']);
        if !is_hidden {
            names.key = format!("{} {}", names.key, quoted(&shown)).into();
        }
        let fail = |reason| CredentialsError::new(names.key.clone(), reason);
        // Reserves room for the whole file at once: growing would leave copies of the key behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE_LENGTH + 1));
        File::open(path)
            .and_then(|file| file.take(MAX_FILE_LENGTH as u64 + 1).read_to_end(&mut bytes))
            .map_err(|error| CredentialsError {
                source: Some(error.into()),
                ..fail(if is_hidden {
                    "the file cannot be read: if this is the key itself, give it as APPLE_JWT_PRIVATE_KEY or to \
                     `from_pem`"
                } else {
                    "the file cannot be read: check the path and its permissions"
                })
            })?;
        names.key = format!("{} {}", names.key, path.display()).into();
        let fail = |reason| CredentialsError::new(names.key.clone(), reason);
        if bytes.len() > MAX_FILE_LENGTH {
            return Err(fail("the file is too large for a .p8 file: check the path"));
        }
        let text = pem::text_of(&bytes).ok_or_else(|| {
            fail("the file is not text: use the .p8 file as Apple made it, or `from_der` for one in DER")
        })?;
        let credentials = Self::from_text(team_id, key_id, &text, &names)?;
        let named = path.file_stem().and_then(|stem| stem.to_str()?.strip_prefix("AuthKey_"));
        let warning = match named {
            Some(named) if named == credentials.key_id() => None,
            Some(named) if named == credentials.team_id() => {
                Some("the file's name has the team id for a key id: the two ids are swapped")
            }
            named => named.map(|_| "the file's name is that of a key with another id"),
        };
        if let Some(warning) = warning {
            event!(
                target: TARGET,
                Level::WARN,
                file = %quoted(&shown),
                key_id = shown_id(credentials.key_id()),
                "{warning}"
            );
        }
        Ok(credentials)
    }

    fn from_text(
        team_id: &str,
        key_id: &str,
        text: &str,
        names: &InputNames,
    ) -> Result<Self, CredentialsError> {
        wiping_the_stack::<{ wipe::SIGNATURE }, _>(|| {
            let der = pem::der_of_text(text).map_err(|fault| CredentialsError::key(names, fault))?;
            Self::build(team_id, key_id, &der, names)
        })
    }

    fn build(team_id: &str, key_id: &str, der: &[u8], names: &InputNames) -> Result<Self, CredentialsError> {
        let team_id = check_id(team_id).map_err(|reason| CredentialsError::new(names.team_id, reason))?;
        let key_id = check_id(key_id).map_err(|reason| CredentialsError::new(names.key_id, reason))?;
        let damaged = |_| CredentialsError::key(names, KeyFault::Damaged);
        let signer = Signer::new(team_id, key_id, der).map_err(damaged)?;
        signer.sign(0).map_err(damaged)?;
        for (id, name) in [(team_id, names.team_id), (key_id, names.key_id)] {
            if id.len() != 10 {
                event!(target: TARGET, Level::WARN, length = id.len(), "{name} does not have 10 characters, as Apple's ids do");
            } else if id.contains(|letter: char| letter.is_ascii_lowercase()) {
                event!(target: TARGET, Level::WARN, "{name} has small letters, and Apple's ids have capitals");
            }
        }
        if team_id == key_id {
            event!(target: TARGET, Level::WARN, "team id and key id are the same");
        }
        Ok(Self { provider_tokens: ProviderTokens::shared(signer, der) })
    }

    /// The team id.
    #[must_use]
    pub fn team_id(&self) -> &str {
        self.provider_tokens.signer().team_id()
    }

    /// The key's id.
    #[must_use]
    pub fn key_id(&self) -> &str {
        self.provider_tokens.signer().key_id()
    }

    /// Whether both have the same ids and the same key.
    #[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.provider_tokens, &other.provider_tokens)
    }

    pub(super) fn provider_tokens(&self) -> &ProviderTokens {
        &self.provider_tokens
    }
}

impl fmt::Debug for Credentials {
    // Omits the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("team_id", &shown_id(self.team_id()))
            .field("key_id", &shown_id(self.key_id()))
            .finish_non_exhaustive()
    }
}

const ISS: &str = "APPLE_JWT_ISS";
const KID: &str = "APPLE_JWT_KID";
const KEY: &str = "APPLE_JWT_PRIVATE_KEY";
const KEY_FILE: &str = "APPLE_JWT_PRIVATE_KEY_FILE";

/// The longest file that is read, in bytes. A `.p8` file has about 260 bytes.
const MAX_FILE_LENGTH: usize = 64 * 1024;

/// The operator's names of the three inputs: those of arguments or of environment variables.
struct InputNames {
    team_id: &'static str,
    key_id: &'static str,
    key: Cow<'static, str>,
}

impl InputNames {
    const ARGUMENTS: Self = Self { team_id: "team id", key_id: "key id", key: Cow::Borrowed("private key") };
}

/// Returns the id without white space and quotes. Apple's ids have 10 letters and digits. Another length is not an
/// error, but a text that cannot be an id is one.
fn check_id(id: &str) -> Result<&str, &'static str> {
    let id = pem::unquoted(id);
    let is_uuid = id.len() == 36 && id.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    if id.is_empty() {
        Err("it is empty: Apple's ids have 10 letters and digits")
    } else if is_uuid {
        Err(
            "it is a UUID, as the issuer of App Store Connect keys is: DeviceCheck wants the team id, the id \
             of a key with the DeviceCheck service, and that key",
        )
    } else if id.starts_with("AuthKey_") || id.ends_with(".p8") {
        Err("it is the name of a key file: the key id is the part between `AuthKey_` and `.p8`")
    } else if id.contains('.') {
        Err("it has dots, as bundle ids have: DeviceCheck wants the team id and a key id, and no bundle id")
    } else if id.len() > 32 {
        Err("it is far too long for an id: Apple's ids have 10 letters and digits")
    } else if !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        Err("it has characters that are neither letters nor digits, which no id of Apple's has")
    } else {
        Ok(id)
    }
}

/// An error from making or rotating credentials. The text names the cause and the remedy, and reveals nothing of the
/// key.
#[derive(Debug)]
pub struct CredentialsError {
    input: Cow<'static, str>,
    reason: Cow<'static, str>,
    source: Option<BoxError>,
}

impl CredentialsError {
    fn new(input: impl Into<Cow<'static, str>>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { input: input.into(), reason: reason.into(), source: None }
    }

    fn key(names: &InputNames, fault: KeyFault) -> Self {
        Self::new(names.key.clone(), fault.as_str())
    }

    pub(super) fn into_source(self) -> Option<BoxError> {
        self.source
    }

    pub(super) fn other_team(own: &str, given: &str) -> Self {
        let reason = format!(
            "it is {}, and this client's is {own}: verdicts are cached by team, so make a new client",
            quoted(given)
        );
        Self::new("team id", reason)
    }
}

impl_error!(CredentialsError, |error| Some(error.source.as_deref()?), "{}: {}", error.input, error.reason);

#[cfg(test)]
mod tests;
