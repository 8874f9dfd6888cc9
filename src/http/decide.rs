//! What decides commands, as the routes see it.

use async_trait::async_trait;

use crate::domain::commands::Envelope;
use crate::engine::{Engine, EngineError, Reply};

/// What decides commands: the engine, and in tests of this layer something smaller.
#[async_trait]
pub trait Decide: Send + Sync + 'static {
    async fn decide(&self, envelope: Envelope) -> Result<Reply, EngineError>;
}

#[async_trait]
impl Decide for Engine {
    async fn decide(&self, envelope: Envelope) -> Result<Reply, EngineError> {
        self.submit(envelope).await
    }
}
