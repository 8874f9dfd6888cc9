//! How a command ends that is refused.

use crate::domain::event::EventData;
use crate::domain::rejection::Rejection;

/// A refusal on its way out of a command, with the event that tells of it.
#[derive(Debug)]
pub(super) struct Refusal {
    pub rejection: Rejection,
    pub event: Option<Box<EventData>>,
}

impl<R: Into<Rejection>> From<R> for Refusal {
    fn from(rejection: R) -> Self {
        Self { rejection: rejection.into(), event: None }
    }
}
