//! The interface of routes and queues to the engine.

use async_trait::async_trait;

use super::dry_run::DryRun;
use super::reply::{EngineError, Reply};
use crate::domain::commands::Envelope;

/// Decides commands: the engine, or a fake in tests.
#[async_trait]
pub trait Decide: Send + Sync + 'static {
    async fn decide(&self, envelope: Envelope) -> Result<Reply, EngineError>;

    /// What the command would do now.
    async fn dry_run(&self, envelope: &Envelope) -> Result<DryRun, EngineError>;
}
