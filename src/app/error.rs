//! Why the server cannot start: the errors of its parts, and those of putting them together.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::ConfigError;
use crate::config::plans::PlansError;
use crate::demo::DemoError;
use crate::domain::cloud_event::EventSource;
use crate::domain::jobs::RoutesError;
use crate::http::auth::AuthConfigError;
use crate::store::StoreError;
use crate::stream::StreamError;

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the plans cannot be used")]
    Plans(#[from] PlansError),
    #[error("routes: {0}")]
    Routes(#[from] RoutesError),
    #[error("the database cannot be used")]
    Store(#[from] StoreError),
    #[error("Redis cannot be used")]
    Stream(#[from] StreamError),
    #[error("auth.{0}")]
    Auth(#[from] AuthConfigError),
    #[error(transparent)]
    Demo(#[from] DemoError),
    #[error(
        "events.source: is {configured}, but the events of this database have the source {stored}, which never changes"
    )]
    EventSource { configured: EventSource, stored: EventSource },
    #[error("there is no database at {0} (database.path)")]
    NoDatabase(PathBuf),
    #[error("auth.keys holds no HS256 key to sign with")]
    NoSigningKey,
    #[error("server.bind: cannot listen on {address}: {error}")]
    Listen { address: SocketAddr, error: io::Error },
    #[error("server.ops_bind: cannot listen on {address}: {error}")]
    ListenOps { address: SocketAddr, error: io::Error },
    #[error("the threads that serve requests cannot be started: {0}")]
    Serve(io::Error),
}
