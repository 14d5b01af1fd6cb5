//! `PROVIDERS_FILE`: the names of the gateway's providers, and how their keys begin. The gateway reads the rest.

use serde::Deserialize;
use tower_devicecheck::{
    BoxError,
    split_key::{Provider, Providers},
};

use super::shared;

/// There is no `Debug`, because a key may be in it by mistake.
#[derive(Deserialize)]
struct ProvidersFile {
    provider: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    key_prefixes: Vec<String>,
}

/// The default providers, and those of the file that the variable names.
pub(crate) fn configured() -> Result<Providers, BoxError> {
    let Some(path) = shared::variable("PROVIDERS_FILE")? else { return Ok(Providers::default()) };
    let in_file = |error: BoxError| format!("PROVIDERS_FILE: {}", shared::Chain(&*error));
    let text = std::fs::read_to_string(path.trim()).map_err(|error| in_file(error.into()))?;
    // The errors of the parser quote the text.
    let file: ProvidersFile = toml::from_str(&text)
        .map_err(|_| in_file("it is not the TOML that examples/ai_gateway/providers.toml shows".into()))?;
    let mut providers = Providers::default();
    for Named { name, key_prefixes } in file.provider {
        let mut provider = providers.get(&name).cloned().unwrap_or_else(|| Provider::new(&name));
        for prefix in key_prefixes {
            provider = provider.with_prefix(&prefix);
        }
        providers = providers.with(provider);
    }
    Ok(providers)
}
