//! The demo mode: a development key, a demo workspace, a token, and three commands to paste.
//!
//! It is active only if no keys are configured and only this machine can connect (`Config::mode`). The key is
//! generated once and stored in the database's folder, so that tokens stay valid after a restart.

use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use secrecy::SecretString;
use uuid::Uuid;

use crate::clock::Clock;
use crate::domain::commands::{Command, Envelope, ProvisionWorkspace};
use crate::domain::ids::WorkspaceId;
use crate::domain::text::{Label, PlanCode};
use crate::domain::workspace::FeatureOverrides;
use crate::engine::{Engine, EngineError, Reply};
use crate::http::auth::keys::{KeyAlg, KeyConfig, KeyError};
use crate::http::auth::{AuthConfig, MintRequest, Scope, Tenancy, mint};

const WORKSPACE_ID: Uuid = Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0d30);
const PLAN: &str = "pro";
const FEATURE: &str = "video.render";
const KEY_FILE: &str = "development.key";
const KEY_ID: &str = "development";
/// The length of an HS256 hash.
const KEY_BYTES: usize = 32;
/// How long the printed token is valid. Every start prints a new one.
const TOKEN_VALID_FOR_S: i64 = 30 * 24 * 3600;

#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("the development key {path} cannot be read or stored (a server in demo mode generates it): {error}")]
    KeyFile { path: PathBuf, error: std::io::Error },
    #[error("no random bytes are available for the development key")]
    Random,
    #[error("the development token cannot be signed")]
    Token(#[from] KeyError),
    #[error("the demo workspace cannot be provisioned: {0}")]
    Provision(String),
}

/// What the server prints at its start.
#[derive(Clone, Debug)]
pub struct Demo {
    pub address: SocketAddr,
    pub workspace_id: WorkspaceId,
    pub token: String,
}

/// The development key of this data folder. An error if the demo has never run there.
pub fn existing_key(data_dir: &Path) -> Result<KeyConfig, DemoError> {
    let path = data_dir.join(KEY_FILE);
    let secret = std::fs::read_to_string(&path).map_err(|error| DemoError::KeyFile { path, error })?;
    Ok(key_config(&secret))
}

/// The development key of this data folder, generated if there is none.
pub fn key(data_dir: &Path) -> Result<KeyConfig, DemoError> {
    let path = data_dir.join(KEY_FILE);
    let secret = match std::fs::read_to_string(&path) {
        Ok(secret) => secret,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => generate_key(&path)?,
        Err(error) => return Err(DemoError::KeyFile { path, error }),
    };
    Ok(key_config(&secret))
}

fn key_config(secret: &str) -> KeyConfig {
    KeyConfig {
        kid: KEY_ID.to_owned(),
        alg: KeyAlg::HS256,
        secret: Some(SecretString::from(secret.trim_end())),
        public_key_pem: None,
    }
}

fn generate_key(path: &Path) -> Result<String, DemoError> {
    let mut bytes = [0; KEY_BYTES];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut bytes).map_err(|_| DemoError::Random)?;
    let secret = BASE64_URL_SAFE_NO_PAD.encode(bytes);
    // Written to a temporary file and then linked: the key file is always complete, and the first of two processes
    // wins.
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let write = || {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&temporary)?;
        file.write_all(secret.as_bytes())?;
        file.sync_all()?;
        let linked = std::fs::hard_link(&temporary, path);
        std::fs::remove_file(&temporary)?;
        match linked {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => std::fs::read_to_string(path),
            linked => linked.map(|()| secret),
        }
    };
    write().map_err(|error| DemoError::KeyFile { path: path.to_owned(), error })
}

impl Demo {
    /// Provisions the demo workspace, unless it exists, and signs a token for it.
    pub async fn prepare(
        engine: &Engine,
        clock: &dyn Clock,
        auth: &AuthConfig,
        key: &KeyConfig,
        address: SocketAddr,
    ) -> Result<Self, DemoError> {
        let workspace_id = WorkspaceId(WORKSPACE_ID);
        match engine.submit(provision(workspace_id, clock)).await {
            Ok(Reply::Decided { rejection: None, .. } | Reply::Replayed(_) | Reply::KeyReused) => {}
            Ok(Reply::Decided { rejection: Some(rejection), .. }) => {
                return Err(DemoError::Provision(rejection.to_string()));
            }
            Ok(Reply::Nothing) => return Err(DemoError::Provision("nothing was done".into())),
            Err(
                error @ (EngineError::Overloaded
                | EngineError::OverShare
                | EngineError::WaitedTooLong
                | EngineError::Stopping
                | EngineError::Unavailable
                | EngineError::Failed),
            ) => {
                return Err(DemoError::Provision(error.to_string()));
            }
        }
        let request = MintRequest {
            issuer: &auth.issuer,
            audience: &auth.audience,
            subject: "demo",
            tenancy: Tenancy::One(workspace_id),
            scopes: Scope::ALL,
            issued_at: clock.now(),
            valid_for_s: TOKEN_VALID_FOR_S,
        };
        Ok(Self { address, workspace_id, token: mint(key, &request)? })
    }
}

fn provision(workspace_id: WorkspaceId, clock: &dyn Clock) -> Envelope {
    let command = Command::ProvisionWorkspace(ProvisionWorkspace {
        name: Label::from_stored("Demo Studio"),
        plan_code: PlanCode::from_stored(PLAN),
        time_zone: chrono_tz::UTC,
        anchor: None,
        monthly_limit: None,
        overdraft_limit: None,
        feature_overrides: FeatureOverrides::new(),
    });
    let key = ProvisionWorkspace::idempotency_key();
    let envelope = Envelope::internal(clock.new_command_id(), workspace_id, key, clock.now(), command);
    Envelope { actor: "demo".to_owned(), ..envelope }
}

impl fmt::Display for Demo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, workspace_id, token } = self;
        let base = format!("http://{address}");
        writeln!(f, "VisionScope Billing listens on {base}; the API's documentation is at {base}/docs")?;
        writeln!(
            f,
            "No keys are configured, so this is a demo for this machine only, with a workspace on plan {PLAN}. Ctrl-C stops it."
        )?;
        writeln!(
            f,
            "In a second terminal, paste the two variables, and then each of the three commands as often as you like.\n"
        )?;
        writeln!(f, "WORKSPACE={workspace_id}\nTOKEN={token}\n")?;
        let auth = r#"-H "Authorization: Bearer $TOKEN""#;
        writeln!(
            f,
            r#"curl -s -X POST {base}/v1/workspaces/$WORKSPACE/credits/deduct {auth} -H "Idempotency-Key: try-$(date +%s%N)" -H "Content-Type: application/json" -d '{{"feature_code": "{FEATURE}", "credits": "2.5"}}'"#
        )?;
        writeln!(f, "\ncurl -s {base}/v1/workspaces/$WORKSPACE/credits {auth}")?;
        writeln!(f, "\ncurl -s {base}/v1/events {auth}\n")?;
        writeln!(
            f,
            "The token is valid for 30 days, and for this workspace only: others are answered as if they did not exist."
        )?;
        writeln!(f, "One for all workspaces, which can create more (PUT /v1/workspaces/<a UUID of your choice>):\n")?;
        writeln!(f, "TOKEN=$({})", token_command())
    }
}

/// The command that mints a token for all workspaces. It works in any folder, if the server was configured by files: the
/// key is beside the database, which is found from the server's folder.
fn token_command() -> String {
    let quoted = |path: std::io::Result<PathBuf>, default: &str| {
        let text = path.map_or_else(|_| default.to_owned(), |path| path.display().to_string());
        let is_plain = text.chars().all(|letter| letter.is_ascii_alphanumeric() || "/._-".contains(letter));
        if is_plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
    };
    let (folder, program) = (std::env::current_dir(), std::env::current_exe());
    format!("cd {} && {} token --workspace '*'", quoted(folder, "."), quoted(program, "visionscope"))
}
