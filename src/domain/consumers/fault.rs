//! Why a consumer cannot take an event.

/// Why an event cannot be taken. It is the event's fault or the consumer's, and a retry does not help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind of fault it is.
    pub class: &'static str,
    pub text: String,
}

impl Fault {
    /// The data does not have the form that its schema says.
    pub(super) const UNREADABLE: &'static str = "unreadable";
    /// The event does not fit what the events before it have told.
    pub(super) const CONTRADICTION: &'static str = "contradiction";
    /// A figure is larger than can be stored.
    pub(super) const TOO_LARGE: &'static str = "too_large";
    /// The consumer's code failed.
    pub const PANIC: &'static str = "panic";
    /// The database refused the rows.
    pub const REFUSED: &'static str = "refused_by_database";

    pub(super) fn contradiction(text: impl Into<String>) -> Self {
        Self { class: Self::CONTRADICTION, text: text.into() }
    }

    pub(super) fn too_large(what: &str) -> Self {
        Self { class: Self::TOO_LARGE, text: format!("{what} is too large") }
    }
}
