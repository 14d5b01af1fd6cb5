//! Projects with a team and a test key of their own: each one is a tenant.

use std::collections::BTreeSet;

use axum::http::{HeaderName, request};
use serde::Deserialize;
use tower_devicecheck::{
    BoxError, Credentials, DebugTokens, DeviceCheckLayer,
    split_key::gateway::{ProviderErrors, Target},
    tenant::{ClientChosenTenant, TenantError, TenantName, TenantResolver, Tenants},
};

use super::as_clients_send;

const PROJECT: HeaderName = HeaderName::from_static("x-project-id");

/// A project, and the gate that its clients pass.
pub(crate) struct Project {
    /// The id, as the key store and the clients have it.
    pub(crate) id: String,
    /// Has its defaults, or remembers something else.
    pub(crate) gate: DeviceCheckLayer,
    /// Stand in for a device of this project.
    pub(crate) debug_tokens: DebugTokens,
}

/// A gate for each project. `SplitKeyLayer` opens only keys of the project whose gate admitted the request: by default,
/// a tenant's devices use the keys of the project with the tenant's name.
pub(crate) fn tenants(projects: Vec<Project>, key_headers: &[HeaderName]) -> Result<Tenants, TenantError> {
    // The answer to an unknown project is that to a refused token.
    let tenants = Tenants::new(chosen_by_client()).with_rejection_response(ProviderErrors);
    for Project { id, gate, debug_tokens } in projects {
        tenants.insert(&id, as_clients_send(gate, debug_tokens, key_headers))?;
    }
    Ok(tenants)
}

/// The project that the header names, or else the path.
///
/// The client chooses both. That is safe here, because all gates are equally strict, and because a client that chooses
/// another project needs a device of that project's team, or its test key, and gets that project's keys only. Do not copy
/// this for tenants of which one enforces less than another.
fn chosen_by_client() -> impl TenantResolver {
    let in_header = ClientChosenTenant::new(PROJECT);
    move |head: &request::Parts| {
        // As `Target` has it: with the header, the path names no other project.
        if head.headers.contains_key(&PROJECT) {
            return in_header.resolve(head);
        }
        let in_path = head.extensions.get::<Target>().and_then(Target::project);
        in_path.and_then(|id| id.parse::<TenantName>().ok()).into()
    }
}

/// The text of `PROJECTS_FILE`. An unknown field is an error: it may be a misspelt one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProjectsFile {
    projects: Vec<ProjectSettings>,
}

/// One project in that file. There is no `Debug`, because it may hold secrets in the wrong places, too.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProjectSettings {
    id: String,
    team_id: String,
    key_id: String,
    private_key_file: String,
    test_key: Option<String>,
}

/// Reads the text of `PROJECTS_FILE`. `gate` makes the gate for a team. No test key may be the admin token: it would be in
/// apps.
///
/// # Errors
///
/// Returns an error for a text that is no such file. It names a project by its number, and quotes nothing from the text.
pub(crate) async fn read(
    text: &str,
    admin_token: Option<&str>,
    gate: impl AsyncFn(Credentials) -> Result<DeviceCheckLayer, BoxError>,
) -> Result<Vec<Project>, BoxError> {
    // The errors of serde_json quote the text.
    let file: ProjectsFile = serde_json::from_str(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("line {line}, column {column}: it is not the JSON that docs/gateway.md describes")
    })?;
    if file.projects.is_empty() {
        return Err("it has no project".into());
    }
    let (mut projects, mut ids, mut test_keys) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for (number, settings) in (1..).zip(file.projects) {
        let is_admin_token = |key: &String| Some(key.trim()) == admin_token;
        if settings.test_key.as_ref().is_some_and(is_admin_token) {
            return Err(
                format!("project {number}: its test key is ADMIN_TOKEN, which must not be in apps").into()
            );
        }
        let is_new = ids.insert(settings.id.clone())
            && settings.test_key.as_ref().is_none_or(|key| test_keys.insert(key.trim().to_owned()));
        let project = match is_new {
            true => settings.project(&gate).await,
            false => Err("its id or its test key is that of another one".into()),
        };
        projects.push(project.map_err(|error| format!("project {number}: {error}"))?);
    }
    Ok(projects)
}

/// Adds a test key. One with a dot would be cut in two where it follows a client part.
pub(crate) fn with_test_key(debug_tokens: DebugTokens, secret: &str) -> Result<DebugTokens, BoxError> {
    if secret.contains('.') {
        return Err("a test key must not have a dot".into());
    }
    Ok(debug_tokens.add("test-key", secret.trim())?)
}

impl ProjectSettings {
    async fn project(
        self,
        gate: &impl AsyncFn(Credentials) -> Result<DeviceCheckLayer, BoxError>,
    ) -> Result<Project, BoxError> {
        self.id.parse::<TenantName>()?;
        let credentials = Credentials::from_pem_file(&self.team_id, &self.key_id, &self.private_key_file)?;
        let mut debug_tokens = DebugTokens::new();
        if let Some(secret) = self.test_key {
            debug_tokens = with_test_key(debug_tokens, &secret)?;
        }
        Ok(Project { id: self.id, gate: gate(credentials).await?, debug_tokens })
    }
}
