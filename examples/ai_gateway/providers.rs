//! `PROVIDERS_FILE`: providers as data.

use std::collections::BTreeMap;

use axum::http::{HeaderName, HeaderValue, header::AUTHORIZATION};
use serde::Deserialize;
use tower_devicecheck::{
    BoxError,
    split_key::{Provider, Providers, gateway::ErrorShape},
};

use super::models::Models;

/// The text of `PROVIDERS_FILE`, which `examples/ai_gateway/providers.toml` shows. There is no `Debug`, because a key may
/// be in it by mistake.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProvidersFile {
    provider: Vec<ProviderSettings>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderSettings {
    name: String,
    base_url: Option<String>,
    key_header: Option<String>,
    key_scheme: Option<String>,
    #[serde(default)]
    key_prefixes: Vec<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    default_headers: BTreeMap<String, String>,
    #[serde(default)]
    query: BTreeMap<String, String>,
    query_names: Option<Vec<String>>,
    models: Option<Vec<String>>,
    errors: Option<Shape>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Shape {
    OpenAi,
    Anthropic,
    Google,
}

/// Adds the providers of a file. One that is there already gets the settings that the file has.
///
/// # Errors
///
/// Returns an error for a text that is no such file. It names a provider by its number, and quotes nothing from the text.
pub(crate) fn add(mut providers: Providers, text: &str) -> Result<Providers, BoxError> {
    let mut names = Vec::new();
    for (number, settings) in (1..).zip(parse(text)?.provider) {
        let in_provider = |error: BoxError| format!("provider {number}: {error}");
        if names.contains(&settings.name) {
            return Err(in_provider("its name is that of another one".into()).into());
        }
        names.push(settings.name.clone());
        let provider = provider(&providers, settings).map_err(in_provider)?;
        providers = providers.with(provider);
    }
    Ok(providers)
}

/// The public lists of models that the file has.
///
/// # Errors
///
/// Returns the error of [`add`] for a text that is no such file.
pub(crate) fn models(text: &str) -> Result<Models, BoxError> {
    let listed =
        parse(text)?.provider.into_iter().filter_map(|provider| Some((provider.name, provider.models?)));
    Ok(Models::new(listed.collect()))
}

fn parse(text: &str) -> Result<ProvidersFile, BoxError> {
    // The errors of the parser quote the text.
    Ok(toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1;
        format!("line {line}: it is not the TOML that examples/ai_gateway/providers.toml shows")
    })?)
}

fn provider(known: &Providers, settings: ProviderSettings) -> Result<Provider, BoxError> {
    let name = &settings.name;
    let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > 32 || !name.bytes().all(letters) {
        return Err("its name is not of up to 32 letters a to z, digits and `-`".into());
    }
    let mut provider = known.get(name).cloned().unwrap_or_else(|| Provider::new(name));
    match settings.base_url {
        Some(url) => provider = provider.with_base_url(&url).map_err(|error| format!("base_url {error}"))?,
        None if known.get(name).is_none() => return Err("base_url is missing".into()),
        None => {}
    }
    if let Some(header) = settings.key_header {
        let header = header_name("key_header", &header)?;
        // A key alone in `Authorization` is nobody's form.
        let scheme = settings.key_scheme.or_else(|| (header == AUTHORIZATION).then(|| "Bearer".to_owned()));
        provider = with_key_header(provider, header, scheme.as_deref())?;
    } else if let Some(scheme) = settings.key_scheme {
        let header = provider.key_header().clone();
        provider = with_key_header(provider, header, Some(&scheme))?;
    }
    for prefix in settings.key_prefixes {
        provider = provider.with_prefix(&prefix);
    }
    for (name, value) in settings.headers {
        let (name, value) = header("headers", &name, &value)?;
        provider = provider.with_header(name, value);
    }
    for (name, value) in settings.default_headers {
        let (name, value) = header("default_headers", &name, &value)?;
        provider = provider.with_default_header(name, value);
    }
    for (name, value) in settings.query {
        provider = provider.with_query(&name, &value).map_err(|error| format!("it {error}"))?;
    }
    if let Some(names) = settings.query_names {
        provider = provider.with_query_names(names);
    }
    if let Some(shape) = settings.errors {
        provider = provider.with_error_shape(match shape {
            Shape::OpenAi => ErrorShape::OpenAi,
            Shape::Anthropic => ErrorShape::Anthropic,
            Shape::Google => ErrorShape::Google,
        });
    }
    Ok(provider)
}

fn with_key_header(
    provider: Provider,
    header: HeaderName,
    scheme: Option<&str>,
) -> Result<Provider, BoxError> {
    Ok(provider.with_key_header(header, scheme).map_err(|error| format!("it {error}"))?)
}

fn header_name(field: &str, name: &str) -> Result<HeaderName, BoxError> {
    // They say how a message is sent, which is the client's and the connection's affair.
    const FRAMING: [&str; 10] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    if FRAMING.iter().any(|framing| framing.eq_ignore_ascii_case(name)) {
        return Err(format!("{field}: a header that says how a message is sent").into());
    }
    name.parse().map_err(|_| format!("{field}: it is not the name of a header").into())
}

fn header(field: &str, name: &str, value: &str) -> Result<(HeaderName, HeaderValue), BoxError> {
    let value = value.parse().map_err(|_| format!("{field}: a value is not that of a header"))?;
    Ok((header_name(field, name)?, value))
}
