//! The refusal of a command.

use crate::domain::event::EventData;
use crate::domain::explanation::Explanation;
use crate::domain::rejection::Rejection;

/// Why a command is refused, with the event to raise.
#[derive(Debug)]
pub(super) struct Refusal {
    pub rejection: Rejection,
    pub event: Option<Box<EventData>>,
    /// Of a deduction or a hold, without remedies.
    pub explanation: Option<Box<Explanation>>,
}

impl Refusal {
    pub(super) fn explained(self, explanation: Explanation) -> Self {
        Self { explanation: Some(Box::new(explanation)), ..self }
    }
}

impl<R: Into<Rejection>> From<R> for Refusal {
    fn from(rejection: R) -> Self {
        Self { rejection: rejection.into(), event: None, explanation: None }
    }
}
