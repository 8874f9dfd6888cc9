//! The interface of the routes to the engine.

use async_trait::async_trait;

use crate::domain::commands::Envelope;
use crate::engine::{DryRun, Engine, EngineError, Reply};

/// Decides commands: the engine, or a fake in tests.
#[async_trait]
pub trait Decide: Send + Sync + 'static {
    async fn decide(&self, envelope: Envelope) -> Result<Reply, EngineError>;

    /// What the command would do now.
    async fn dry_run(&self, envelope: &Envelope) -> Result<DryRun, EngineError>;
}

#[async_trait]
impl Decide for Engine {
    async fn decide(&self, envelope: Envelope) -> Result<Reply, EngineError> {
        self.submit(envelope).await
    }

    async fn dry_run(&self, envelope: &Envelope) -> Result<DryRun, EngineError> {
        Self::dry_run(self, envelope).await
    }
}
