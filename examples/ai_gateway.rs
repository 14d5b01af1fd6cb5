//! A gateway to AI providers for apps that hold a part of an API key: `cargo run --example ai_gateway --features gateway,testing`.
//!
//! | request | answer |
//! |---|---|
//! | `/v1/openai/{path}`, `/v1/anthropic/{path}`, `/v1/google/{path}` with the header `X-Project-Id` | the provider's |
//! | `/v1/openai/{project}/{path}` and so on, without that header | the same |
//! | `GET /usage` with `Authorization: Bearer <ADMIN_TOKEN>` | requests and tokens by day, project, split and model, and the keys that their provider refuses, as JSON |
//! | `GET /usage.html` | the same as a page, which asks for the token |
//! | `GET /health` | `ok`, for anybody; 503 while the keys cannot be read, although the last ones that could be stay in use |
//! | `GET /live` | `ok`, as long as the process lives |
//!
//! The client sends `<client part>.<device token>` where it would send an API key: after `Authorization:
//! Bearer`, in `X-Api-Key`, in `X-Goog-Api-Key` or in the query parameter `key`. Or the client part in `X-Ai-Key` and the device token in
//! `X-Device-Token`. Rejections have the shape of the provider's errors. Bodies are streamed both ways. `docs/from-proxed.md` has the details.
//!
//! Without any variable, there are a fake Apple, a fake provider and keys for it. `docs/gateway.md` has the table of all
//! variables. These are what a gateway with keys of your own needs:
//!
//! | variable | value |
//! |---|---|
//! | `APPLE_JWT_ISS`, `APPLE_JWT_KID`, `APPLE_JWT_PRIVATE_KEY_FILE` | team id, key id and the path of the `.p8` file |
//! | `KEYS_FILE`, or `KEYS_IN_REDIS=1` and `REDIS_URL` | the server parts, as the example `split_key` writes them |
//! | `PROJECTS_FILE` | several teams, in the place of `APPLE_JWT_*` |
//! | `ADMIN_TOKEN` | opens `GET /usage` |
//! | `LISTEN` | default `127.0.0.1:3000` |

#[path = "ai_gateway/fake_provider.rs"]
mod fake_provider;
#[path = "ai_gateway/gateway.rs"]
mod gateway;
mod shared;
#[path = "ai_gateway/variables.rs"]
mod variables;

use std::{fmt::Write, net::SocketAddr, process::ExitCode};

use gateway::{App, Limits, Settings, app, app_of_projects, cors, models::Models, projects, providers};
use mimalloc::MiMalloc;
use tower_devicecheck::{
    BoxError, DebugTokens, DeviceCheckLayer, Environment,
    split_key::{
        FileSplitKeyStore, Limits as KeyLimits, MemorySplitKeyStore, Provider, Providers, Splitter, UsageLog,
    },
};
use zeroizing_alloc::ZeroAlloc;

use self::{
    fake_provider::FakeProvider,
    shared::{Apple, Server, keys::Keys},
};

/// Wipes what is freed: the HTTP client's buffers hold whole keys for a moment, and do not wipe themselves.
/// The allocator below it is the faster one: a request makes some hundred allocations.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<MiMalloc> = ZeroAlloc(MiMalloc);

fn main() -> ExitCode {
    shared::run(serve())
}

async fn serve() -> Result<(), BoxError> {
    variables::warn_of_misspelt();
    shared::metrics::serve().await?;
    if let Some(path) = shared::variable("PROJECTS_FILE")? {
        return serve_projects(path.trim()).await;
    }
    refuse_fake_apple()?;
    refuse_made_up_keys()?;
    let apple = Apple::from_env().await?;
    apple.check(Environment::Production).await?;
    match keys().await? {
        Some(keys) => {
            let settings = settings(None, shared::admin_token()?, usage().await?)?;
            let gate = shared::remembering(DeviceCheckLayer::new(apple.client.clone())).await?;
            let usage = settings.usage.clone();
            listen(app(gate, keys, settings)?, usage, |_| apple_hint(&apple)).await
        }
        None => {
            let demo = Demo::new().await?;
            let own = shared::admin_token()?;
            let made_up = uuid::Uuid::new_v4().simple().to_string();
            // The operator's own is not printed.
            let admin_token = if own.is_some() { "$ADMIN_TOKEN".to_owned() } else { made_up.clone() };
            let usage = usage().await?;
            let settings = settings(Some(demo.provider), Some(own.unwrap_or(made_up)), usage.clone())?;
            let Demo { keys, client_parts, .. } = demo;
            let gate = shared::remembering(DeviceCheckLayer::new(apple.client.clone())).await?;
            let app = app(gate, keys, settings)?;
            listen(app, usage, |address| hints(&apple, address, &client_parts, &admin_token)).await
        }
    }
}

async fn serve_projects(path: &str) -> Result<(), BoxError> {
    let [team_id, key_id, key, key_file] = shared::apple::CREDENTIALS;
    if shared::any_is_set([team_id, key_id, key, key_file, "TEST_KEY"])? {
        return Err("PROJECTS_FILE has the teams and test keys: unset APPLE_JWT_* and TEST_KEY".into());
    }
    let keys = keys().await?.ok_or("PROJECTS_FILE needs KEYS_FILE or KEYS_IN_REDIS")?;
    let usage = usage().await?;
    let admin_token = shared::admin_token()?;
    let settings = settings(None, admin_token.clone(), usage.clone())?;
    let memory = shared::memory().await?;
    let gate = async |credentials| {
        let apple = Apple::of_credentials(credentials)?;
        apple.check(Environment::Production).await?;
        Ok(memory(DeviceCheckLayer::new(apple.client)))
    };
    let in_file = |error: BoxError| format!("PROJECTS_FILE: {}", shared::Chain(&*error));
    let text = std::fs::read_to_string(path).map_err(|error| in_file(error.into()))?;
    let projects = projects::read(&text, admin_token.as_deref(), gate).await.map_err(in_file)?;
    listen(app_of_projects(projects, keys, settings)?, usage, |_| String::new()).await
}

/// The operator's own keys, if there are any.
async fn keys() -> Result<Option<Keys>, BoxError> {
    match (Keys::in_redis().await?, shared::variable("KEYS_FILE")?) {
        (Some(_), Some(_)) => Err("KEYS_IN_REDIS is on: unset KEYS_FILE".into()),
        (None, Some(path)) => {
            let file =
                FileSplitKeyStore::open(path.trim()).map_err(|error| in_setting("KEYS_FILE", &error))?;
            Ok(Some(Keys::File(file)))
        }
        (keys, None) => Ok(keys),
    }
}

/// A fake Apple admits anybody who asks it for a token. That must not open the operator's own keys, nor fill a Redis that
/// others share, because the operator forgot a variable.
fn refuse_fake_apple() -> Result<(), BoxError> {
    if Apple::is_configured()? || shared::switch("ALLOW_FAKE_APPLE")? {
        return Ok(());
    }
    for name in ["KEYS_FILE", "REDIS_URL"] {
        if shared::variable(name)?.is_some() {
            return Err(format!(
                "{name} is set and no APPLE_JWT_* variable is, so that a fake Apple would admit anybody: set the \
                 APPLE_JWT_* variables, or ALLOW_FAKE_APPLE=1 for tests"
            )
            .into());
        }
    }
    Ok(())
}

/// The operator's own credentials at Apple say that apps are to call this server. With keys that are made up, it would
/// answer them with a fake provider.
fn refuse_made_up_keys() -> Result<(), BoxError> {
    if shared::any_is_set(["KEYS_FILE"])? || shared::switch("KEYS_IN_REDIS")? {
        return Ok(());
    }
    for name in shared::apple::CREDENTIALS {
        if shared::variable(name)?.is_some() {
            return Err(format!(
                "{name} is set and KEYS_FILE is not, so that there would be made-up keys and a fake provider: set \
                 KEYS_FILE, or KEYS_IN_REDIS=1 and REDIS_URL; for the demo, unset all APPLE_JWT_* variables"
            )
            .into());
        }
    }
    Ok(())
}

async fn listen(app: App, usage: UsageLog, hints: impl FnOnce(SocketAddr) -> String) -> Result<(), BoxError> {
    let server = Server::from_env().await?;
    let address = server.address()?;
    shared::announce(address, &hints(address));
    server.run(app).await;
    Ok(usage.flush().await?)
}

/// The counts, where `USAGE_FOLDER` or else `REDIS_URL` says, or beside the file of the keys.
async fn usage() -> Result<UsageLog, BoxError> {
    let keys_file = shared::variable("KEYS_FILE")?;
    let open = |folder: &str| UsageLog::open(folder).map_err(|error| in_setting("USAGE_FOLDER", &error));
    let folder = shared::variable("USAGE_FOLDER")?;
    let log = match (folder.as_deref().map(str::trim), shared::variable("REDIS_URL")?, keys_file) {
        (Some("none"), ..) | (None, None, None) => UsageLog::new(),
        (Some(folder), ..) => open(folder)?,
        (None, Some(url), _) => usage_in_redis(url.trim()).await?,
        (None, None, Some(keys_file)) => open(&format!("{}.usage", keys_file.trim()))?,
    };
    Ok(match number("USAGE_DAYS", 1)? {
        Some(days) => log.with_retention(days),
        None => log,
    })
}

#[cfg(feature = "redis")]
async fn usage_in_redis(url: &str) -> Result<UsageLog, BoxError> {
    Ok(UsageLog::in_redis(shared::redis(url).await?))
}

#[cfg(not(feature = "redis"))]
async fn usage_in_redis(_: &str) -> Result<UsageLog, BoxError> {
    Err("REDIS_URL: build the example with --features redis".into())
}

/// From the environment. `fake` is the provider for all names that have no URL.
fn settings(
    fake: Option<SocketAddr>,
    admin_token: Option<String>,
    usage: UsageLog,
) -> Result<Settings, BoxError> {
    let provider = |provider: Provider, variable: &str, path: &str| -> Result<Provider, BoxError> {
        let fake = fake.map(|address| format!("http://{address}{path}"));
        let Some(url) = shared::variable(variable)?.or(fake) else { return Ok(provider) };
        let provider = provider.with_base_url(&url);
        provider
            .map_err(|error| format!("{variable}: the URL {error}; it is {}", shared::shown_url(&url)).into())
    };
    let providers = Providers::none()
        .with(provider(Provider::openai(), "OPENAI_URL", "/openai/v1")?)
        .with(provider(Provider::anthropic(), "ANTHROPIC_URL", "/anthropic/v1")?)
        .with(provider(Provider::google(), "GOOGLE_URL", "/google/v1beta")?);
    let mut models = Models::default();
    let providers = match shared::variable("PROVIDERS_FILE")? {
        Some(path) => {
            let in_file = |error: BoxError| format!("PROVIDERS_FILE: {}", shared::Chain(&*error));
            let text = std::fs::read_to_string(path.trim()).map_err(|error| in_file(error.into()))?;
            models = providers::models(&text).map_err(in_file)?;
            providers::add(providers, &text).map_err(in_file)?
        }
        None => providers,
    };
    let defaults = Limits::default();
    let limits = Limits {
        body: number("MAX_BODY_BYTES", 1)?.unwrap_or(defaults.body),
        upload: shared::seconds("UPLOAD_TIMEOUT", 1)?.unwrap_or(defaults.upload),
        head: shared::seconds("HEAD_TIMEOUT", 1)?.unwrap_or(defaults.head),
        idle: shared::seconds("IDLE_TIMEOUT", 1)?.unwrap_or(defaults.idle),
        idle_connections: number("IDLE_CONNECTIONS", 0)?.unwrap_or(defaults.idle_connections),
    };
    let mut debug_tokens = DebugTokens::new();
    if let Some(secret) = shared::variable("TEST_KEY")? {
        if admin_token.as_deref() == Some(secret.trim()) {
            return Err("ADMIN_TOKEN and TEST_KEY are the same: a test key is in apps".into());
        }
        debug_tokens = projects::with_test_key(debug_tokens, &secret)
            .map_err(|error| in_setting("TEST_KEY", &*error))?;
    }
    let cors = shared::variable("CORS_ORIGINS")?.map(|origins| cors::layer(&origins));
    let cors = cors.transpose().map_err(|error| in_setting("CORS_ORIGINS", &*error))?;
    let single_use = shared::switch("SINGLE_USE")?;
    let roots = shared::variable("PROVIDER_CA_FILE")?.map(|path| path.trim().into());
    Ok(Settings { providers, models, roots, limits, usage, admin_token, debug_tokens, cors, single_use })
}

/// An environment variable with a number, at least this one.
fn number<N>(name: &str, least: N) -> Result<Option<N>, BoxError>
where
    N: std::str::FromStr + PartialOrd + Copy + std::fmt::Display,
{
    let Some(text) = shared::variable(name)? else { return Ok(None) };
    match text.trim().parse() {
        Ok(number) if number >= least => Ok(Some(number)),
        _ => Err(format!("{name}: it is not a whole number, at least {least}, or it is too large").into()),
    }
}

fn in_setting(name: &str, error: &(dyn std::error::Error + 'static)) -> BoxError {
    format!("{name}: {}", shared::Chain(error)).into()
}

/// A fake provider, and one key for each of its names, split as real ones are.
struct Demo {
    provider: SocketAddr,
    keys: MemorySplitKeyStore,
    client_parts: Vec<(&'static str, String)>,
}

const PROJECT: &str = "demo";

impl Demo {
    async fn new() -> Result<Self, BoxError> {
        let fake = FakeProvider::new();
        let keys = MemorySplitKeyStore::new();
        let mut client_parts = Vec::new();
        for (provider, key) in fake.keys() {
            let split = Splitter::new().issue(&keys, PROJECT, provider, key, KeyLimits::none()).await?;
            client_parts.push((provider, split.client_part().expose().to_owned()));
        }
        Ok(Self { provider: fake.serve().await?, keys, client_parts })
    }
}

/// A token of the fake Apple, for those who have keys of their own.
fn apple_hint(apple: &Apple) -> String {
    apple.orders().map_or_else(String::new, |orders| {
        format!(
            "No APPLE_JWT_* variables are set, so a fake Apple in this process is asked. A genuine device \
             token:\ncurl -s {orders}/fake/token"
        )
    })
}

/// How to try it. The commands need no more than this process.
fn hints(
    apple: &Apple,
    address: SocketAddr,
    client_parts: &[(&'static str, String)],
    admin_token: &str,
) -> String {
    let url = shared::local_url(address);
    let mut text = "No KEYS_FILE is set, so there are a fake provider and keys for it.".to_owned();
    let mut say = |line: &str| {
        let _ = write!(text, "\n{line}");
    };
    if let Some(orders) = apple.orders() {
        say(shared::apple::NO_CREDENTIALS);
        let device = format!("$(curl -s {orders}/fake/token)");
        let ask = r#""messages":[{"role":"user","content":"hello"}]"#;
        let json = "-H 'Content-Type: application/json'";
        for (provider, part) in client_parts {
            let base = format!("{url}/v1/{provider}/{PROJECT}");
            match *provider {
                "openai" => {
                    let bearer = format!("-H \"Authorization: Bearer {part}.{device}\"");
                    let chat = format!("{base}/chat/completions");
                    say(&format!(
                        "\n# OpenAI:\ncurl -i {chat} {bearer} {json} -d '{{\"model\":\"fake-1\",{ask}}}'\n\
                         \n# the same as a stream:\n\
                         curl -iN {chat} {bearer} {json} -d '{{\"model\":\"fake-1\",\"stream\":true,{ask}}}'\n\
                         \n# with a header for each credential:\n\
                         curl -i {url}/v1/openai/models -H 'X-Project-Id: {PROJECT}' -H 'X-Ai-Key: {part}' \
                         -H \"X-Device-Token: {device}\"\n\
                         \n# with a forged device token:\n\
                         curl -i {base}/models -H \"Authorization: Bearer {part}.$(curl -s {orders}/fake/forged)\"",
                    ));
                }
                "anthropic" => say(&format!(
                    "\n# Anthropic:\ncurl -i {base}/v1/messages -H \"X-Api-Key: {part}.{device}\" {json} \
                     -H 'anthropic-version: 2023-06-01' -d '{{\"model\":\"fake-1\",\"max_tokens\":9,{ask}}}'"
                )),
                _ => say(&format!(
                    "\n# Google:\ncurl -i {base}/models/fake-1:generateContent -H \"X-Goog-Api-Key: {part}.{device}\" \
                     {json} -d '{{\"contents\":[{{\"parts\":[{{\"text\":\"hello\"}}]}}]}}'"
                )),
            }
        }
    }
    say(&format!(
        "\n# requests and tokens; the page {url}/usage.html asks for the same token:\n\
         curl -i {url}/usage -H \"Authorization: Bearer {admin_token}\""
    ));
    text
}
