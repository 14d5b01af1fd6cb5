//! Splits API keys and manages the key file of the example `ai_gateway`.
//!
//! ```text
//! split_key add    --file KEYS.json --project ID --provider openai|anthropic|google|…
//!                  [--version 1] [--path PATH]... [--method METHOD]... [--expires-in 90d]
//! split_key list   --file KEYS.json [--project ID]
//! split_key rotate --file KEYS.json --project ID --split SPLIT [--overlap 14d] [--version 1]
//! split_key retire --file KEYS.json --project ID --split SPLIT [--in 14d]
//! split_key revoke --file KEYS.json --project ID --split SPLIT
//! split_key lint   --provider openai|anthropic|google
//! split_key import --file KEYS.json [--path PATH]... [--method METHOD]... [--expires-in 90d]
//! ```
//!
//! `add` and `rotate` read the API key from stdin, never from the arguments, which all users of a machine can
//! see. The client part is the only line on stdout, and nowhere else: who loses it must `rotate`. `add` makes
//! the file if there is none.
//!
//! `--path` and `--method` allow the key for these only; a path is `/v1/openai/chat/completions`, or ends in
//! `/*`. What no request can meet is refused, and a path that is none of the gateway's is warned of. Durations have a unit: `90s`, `30m`, `12h`, `14d`. By default a rotated key works for another 14
//! days, and a retired one no more.
//!
//! `lint` reads a version 1 pair from stdin, the server part in the first line and the client part in the
//! second, and says how many characters it leaves secret on each side. It fails if those are too few.
//!
//! `import` reads pairs that were made elsewhere from stdin, one JSON object a line:
//! `{"project": …, "provider": …, "server_part": …, "client_part": …}`. It opens each pair to prove that its parts belong
//! together, prints how many characters each part lacks, and writes all records or, if one pair is refused, none.
//!
//! `PROVIDERS_FILE` names the gateway's file of providers, as for the gateway: this tool then knows them, too.
//!
//! With `KEYS_IN_REDIS=1` and `REDIS_URL`, all commands use Redis in the place of `--file` (build with
//! `--features redis`).
//!
//! Errors go to stderr, with exit status 1. Tell the shell to keep the key out of its history:
//! `pass show openai | cargo run --example split_key --features split-key,testing -- add …`

#[path = "split_key/import.rs"]
mod import;
#[path = "split_key/limits.rs"]
mod limits;
#[path = "split_key/providers.rs"]
mod providers;
mod shared;

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Read},
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::http::Method;
use tower_devicecheck::{
    BoxError,
    split_key::{
        ClientPart, FileSplitKeyStore, Limits, Provider, Providers, ServerPart, Split, SplitId,
        SplitKeyRecord, SplitKeyState, SplitKeyStore, Splitter, Version, lint, retire, revoke,
    },
};
use zeroize::Zeroizing;

use self::shared::keys::Keys;

const USAGE: &str = "one of add, list, rotate, retire, revoke, lint and import is wanted; examples/split_key.rs \
                     begins with their options";
const UNKNOWN_FORMAT: &str =
    "the API key has no format that is known of its provider: is it the right provider?";
/// The longest text that is read from stdin, in bytes: two parts, or all pairs of an import.
const MAX_PARTS: usize = 16 * 1024;
const MAX_IMPORT: usize = 16 * 1024 * 1024;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const OVERLAP: Duration = Duration::from_secs(14 * DAY.as_secs());

fn main() -> ExitCode {
    shared::run(work(std::env::args().skip(1)))
}

async fn work(arguments: impl Iterator<Item = String>) -> Result<(), BoxError> {
    let (command, mut options) = Options::parse(arguments)?;
    match command.as_str() {
        "add" => {
            let (project, provider) =
                (options.one("project")?, options.one("provider")?.to_ascii_lowercase());
            let (splitter, limits) = (options.splitter()?, options.limits()?);
            let place = options.place().await?;
            options.end()?;
            let providers = known(&provider)?;
            let splitter = splitter.with_providers(providers.clone());
            let api_key = secret_lines(1)?;
            // A key that is refused leaves no new file behind.
            splitter.split(&project, &provider, line(&api_key, 0)?)?;
            let store = place.open_or_create()?;
            let split = splitter.issue(&store, &project, &provider, line(&api_key, 0)?, limits).await?;
            issued(&split, line(&api_key, 0)?, &providers);
        }
        "list" => {
            let (store, project) = (options.store().await?, options.optional("project")?);
            options.end()?;
            let mut records = store.list().await?;
            records.retain(|record| project.as_deref().is_none_or(|project| project == record.project()));
            records.sort_by_key(|record| (record.project().to_owned(), record.metadata().created()));
            for record in &records {
                shared::print(&described(record));
            }
        }
        "rotate" => {
            let (store, project, split) = (options.store().await?, options.one("project")?, options.split()?);
            let (splitter, overlap) = (options.splitter()?, options.duration("overlap")?.unwrap_or(OVERLAP));
            options.end()?;
            let api_key = secret_lines(1)?;
            let old = store.get(&project, split).await?.ok_or("--split: there is no such key")?;
            if old.limits().expires_at().is_some_and(|end| end <= SystemTime::now()) {
                return Err("--split: the key has expired, and so would the new one: add one".into());
            }
            let providers = known(old.provider())?;
            let splitter = splitter.with_providers(providers.clone());
            let split = splitter.rotate(&store, &project, split, line(&api_key, 0)?, overlap).await?;
            issued(&split, line(&api_key, 0)?, &providers);
        }
        "retire" => {
            let (store, project, split) = (options.store().await?, options.one("project")?, options.split()?);
            let after = options.duration("in")?.unwrap_or_default();
            options.end()?;
            let until = SystemTime::now().checked_add(after).ok_or("--in: too long")?;
            retire(&store, &project, split, until).await?;
        }
        "revoke" => {
            let (store, project, split) = (options.store().await?, options.one("project")?, options.split()?);
            options.end()?;
            revoke(&store, &project, split).await?;
        }
        "lint" => {
            let provider = options.one("provider")?;
            options.end()?;
            let pair = secret_lines(2)?;
            let server: ServerPart = line(&pair, 0)?.parse()?;
            let client: ClientPart = line(&pair, 1)?.parse()?;
            let providers = providers::configured()?;
            let provider = providers.get(&provider).ok_or("--provider: there is none of that name")?;
            let found = lint(&server, &client, provider)?;
            shared::print(&format!(
                "the server lacks {} characters, the client {}",
                found.unknown_to_server(),
                found.unknown_to_client()
            ));
            if !found.is_sound() {
                return Err("these are too few: whoever holds the other part can guess them".into());
            }
        }
        "import" => {
            let (place, limits) = (options.place().await?, options.limits()?);
            options.end()?;
            let text = secret_text(MAX_IMPORT)?;
            // Pairs that are refused leave no new file behind.
            let existing = if place.is_new() { None } else { Some(place.open()?) };
            let pairs = import::read(&text, &limits, &providers::configured()?, existing.as_ref()).await?;
            let store = place.open_or_create()?;
            store.put(pairs.iter().map(|pair| pair.record().clone()).collect()).await?;
            for pair in &pairs {
                shared::print(&pair.described());
                for warning in [pair.warning(), limits::warning(pair.record())].into_iter().flatten() {
                    tracing::warn!(project = pair.record().project(), split = %pair.record().split(), "{warning}");
                }
            }
        }
        _ => return Err(USAGE.into()),
    }
    Ok(())
}

/// The providers with this one. A server may know more of them than this tool, and of those any key is taken.
fn known(name: &str) -> Result<Providers, BoxError> {
    let providers = providers::configured()?;
    if providers.get(name).is_some() {
        return Ok(providers);
    }
    tracing::warn!(
        "the provider is none that this tool knows: the gateway needs it in its PROVIDERS_FILE, which this tool reads, too"
    );
    Ok(providers.with(Provider::new(name)))
}

/// Prints a new client part, and warns of a key that looks unlike its provider's, and of paths unlike the gateway's.
fn issued(split: &Split, api_key: &str, providers: &Providers) {
    let record = split.record();
    if providers.get(record.provider()).is_some_and(|provider| !provider.recognizes(api_key)) {
        tracing::warn!(provider = record.provider(), "{UNKNOWN_FORMAT}");
    }
    if let Some(warning) = limits::warning(record) {
        tracing::warn!(provider = record.provider(), "{warning}");
    }
    shared::print(split.client_part().expose());
}

/// The store that the options and settings name.
enum Place {
    File(String),
    Redis(Arc<Keys>),
}

impl Place {
    /// Whether there is no such file.
    fn is_new(&self) -> bool {
        matches!(self, Self::File(path) if !std::path::Path::new(path).exists())
    }

    fn open(&self) -> Result<Arc<Keys>, BoxError> {
        match self {
            Self::File(path) => Ok(Arc::new(Keys::File(FileSplitKeyStore::open(path)?))),
            Self::Redis(keys) => Ok(Arc::clone(keys)),
        }
    }

    fn open_or_create(&self) -> Result<Arc<Keys>, BoxError> {
        match self {
            Self::File(path) => {
                let is_new = self.is_new();
                let store = FileSplitKeyStore::open_or_create(path)?;
                if is_new {
                    tracing::info!("the key file is new: only the user who runs this command can read it");
                }
                Ok(Arc::new(Keys::File(store)))
            }
            Self::Redis(keys) => Ok(Arc::clone(keys)),
        }
    }
}

/// `--name value` or `--name=value`.
struct Options(BTreeMap<String, Vec<String>>);

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<(String, Self), BoxError> {
        let command = arguments.next().ok_or(USAGE)?;
        let mut options = BTreeMap::<_, Vec<_>>::new();
        while let Some(argument) = arguments.next() {
            // The text may be a key by mistake, and is not repeated.
            let option = argument.strip_prefix("--").ok_or("an argument is no option: they begin with --")?;
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None => {
                    let value = arguments.next().ok_or_else(|| format!("--{option}: a value is missing"))?;
                    (option.to_owned(), value)
                }
            };
            options.entry(name).or_default().push(value);
        }
        Ok((command, Self(options)))
    }

    fn all(&mut self, name: &str) -> Vec<String> {
        self.0.remove(name).unwrap_or_default()
    }

    fn optional(&mut self, name: &str) -> Result<Option<String>, BoxError> {
        let mut values = self.all(name);
        let value = values.pop();
        if values.is_empty() { Ok(value) } else { Err(format!("--{name}: once is enough").into()) }
    }

    fn one(&mut self, name: &str) -> Result<String, BoxError> {
        self.optional(name)?.ok_or_else(|| format!("--{name} is missing").into())
    }

    async fn place(&mut self) -> Result<Place, BoxError> {
        match (Keys::in_redis().await?, self.optional("file")?) {
            (None, Some(path)) => Ok(Place::File(path)),
            (Some(keys), None) => Ok(Place::Redis(Arc::new(keys))),
            (None, None) => Err("--file is missing".into()),
            (Some(_), Some(_)) => Err("KEYS_IN_REDIS is on: leave --file away".into()),
        }
    }

    /// The store, which must exist.
    async fn store(&mut self) -> Result<Arc<Keys>, BoxError> {
        self.place().await?.open()
    }

    fn split(&mut self) -> Result<SplitId, BoxError> {
        self.one("split")?.parse().map_err(|_| "--split: 8 lower-case hexadecimal digits are wanted".into())
    }

    fn splitter(&mut self) -> Result<Splitter, BoxError> {
        let version = match self.optional("version")?.as_deref() {
            None | Some("2") => Version::Sealed,
            Some("1") => Version::Cut,
            Some(_) => return Err("--version: there are 1 and 2".into()),
        };
        Ok(Splitter::new().with_version(version))
    }

    fn limits(&mut self) -> Result<Limits, BoxError> {
        limits::limits(self.all("path"), &self.all("method"), self.duration("expires-in")?)
    }

    fn duration(&mut self, name: &str) -> Result<Option<Duration>, BoxError> {
        let Some(text) = self.optional(name)? else { return Ok(None) };
        let parsed = text.split_at_checked(text.len().saturating_sub(1)).and_then(|(number, unit)| {
            let unit = match unit {
                "s" => 1,
                "m" => 60,
                "h" => 60 * 60,
                "d" => DAY.as_secs(),
                _ => return None,
            };
            number.parse::<u64>().ok()?.checked_mul(unit).map(Duration::from_secs)
        });
        let wrong = || format!("--{name}: a number and one of s, m, h and d are wanted, such as 14d");
        Ok(Some(parsed.ok_or_else(wrong)?))
    }

    /// An option that nobody asked for is a slip of the pen, and may have been meant as a limit.
    fn end(self) -> Result<(), BoxError> {
        match self.0.keys().next() {
            Some(name) => Err(format!("--{name}: there is no such option here").into()),
            None => Ok(()),
        }
    }
}

/// Reads this many lines from stdin, or all of it if that is less.
fn secret_lines(count: usize) -> Result<Zeroizing<String>, BoxError> {
    let text = if io::stdin().is_terminal() {
        tracing::info!("waiting for {count} lines on stdin; they are shown as you type");
        let mut text = Zeroizing::new(String::with_capacity(MAX_PARTS));
        for _ in 0..count {
            io::stdin().read_line(&mut text)?;
        }
        text
    } else {
        secret_text(MAX_PARTS)?
    };
    if text.trim_end().lines().count() > count {
        return Err(format!("stdin has more than {count} lines").into());
    }
    Ok(text)
}

/// Reads all of stdin, up to a limit.
fn secret_text(limit: usize) -> Result<Zeroizing<String>, BoxError> {
    // A buffer that grows would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(limit + 1));
    io::stdin().lock().take(limit as u64 + 1).read_to_string(&mut text)?;
    if text.len() > limit { Err("stdin is too long".into()) } else { Ok(text) }
}

fn line(text: &str, index: usize) -> Result<&str, BoxError> {
    let line = text.lines().nth(index).map(str::trim).filter(|line| !line.is_empty());
    line.ok_or_else(|| format!("stdin has no line {}", index + 1).into())
}

/// One line about a record.
fn described(record: &SplitKeyRecord) -> String {
    let state = match record.state() {
        SplitKeyState::Retiring { until, .. } if until <= SystemTime::now() => "retired".to_owned(),
        SplitKeyState::Retiring { until, .. } => format!("retiring until {}", date(until)),
        state => state.to_string(),
    };
    let mut line = format!(
        "{}  {}  {}  version {}  created {}  {state}",
        record.project(),
        record.split(),
        record.provider(),
        record.metadata().version(),
        date(record.metadata().created()),
    );
    let limits = record.limits();
    if let Some(paths) = limits.paths() {
        line += &format!("  paths {}", paths.join(","));
    }
    if let Some(methods) = limits.methods() {
        line += &format!("  methods {}", methods.iter().map(Method::as_str).collect::<Vec<_>>().join(","));
    }
    if let Some(end) = limits.expires_at() {
        line += &format!("  expires {}", date(end));
    }
    line
}

/// To the second, in UTC. What is beyond the formatter's years is said in seconds since 1970.
fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    // The year 9999 ends here.
    if seconds < 253_402_300_800 { httpdate::fmt_http_date(time) } else { format!("{seconds} s") }
}
