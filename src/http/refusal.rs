//! Why the server refuses requests to protect itself. How long that took is the metric `HTTP_REFUSAL_SECONDS`.

/// A reason that lies in the load, and not in the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The workspace sends too many requests per second.
    Rate,
    /// The workspace has too many commands or reads in flight.
    InFlight,
    /// The workspace has its share of the engine's queue.
    OverShare,
    /// The engine's queue is full.
    Overloaded,
    /// The command waited in the engine's queue until its caller was about to give up: the database became slow meanwhile.
    WaitedTooLong,
}

impl Refusal {
    /// The label of the metric.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::InFlight => "in-flight",
            Self::OverShare => "over-share",
            Self::Overloaded => "overloaded",
            Self::WaitedTooLong => "waited-too-long",
        }
    }
}
