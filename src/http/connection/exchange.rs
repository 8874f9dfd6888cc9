//! What a connection and the requests on it tell each other: whether a request is being answered, and how much of its
//! body is still to be read.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use actix_web::http::header::CONTENT_LENGTH;
use actix_web::{HttpMessage as _, HttpRequest};
use tokio::time::Instant;

/// How much of a body in chunks is handed over at a time: what comes behind it in the same step is parsed together with
/// its end.
const CHUNKS_STEP: usize = 512;

/// How long a connection waits for its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionTimeouts {
    /// From the first byte of a head to its end, and from the start of a connection to its first byte.
    pub head: Duration,
    /// From the end of a head to the end of its answer, without the time in which the peer does not take it. For an
    /// export, to each page.
    pub exchange: Duration,
    /// From one answer to the first byte of the next request.
    pub idle: Duration,
    /// From when the peer does not take an answer to when it has taken [`super::MIN_PROGRESS`] bytes of it.
    pub stall: Duration,
}

/// What is left to read of the body of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    Bytes(u64),
    /// It is sent in chunks, so its length is unknown.
    Chunks,
}

impl Unread {
    /// How many of the next bytes belong to the body and may be handed over now.
    pub(super) fn first_of(self, len: usize) -> usize {
        match self {
            Self::Bytes(left) => usize::try_from(left).unwrap_or(usize::MAX).min(len),
            Self::Chunks => CHUNKS_STEP.min(len),
        }
    }

    fn without(self, len: usize) -> Self {
        match self {
            Self::Bytes(left) => Self::Bytes(left.saturating_sub(len as u64)),
            Self::Chunks => Self::Chunks,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No request is being answered. This much of the next head has been read.
    Head { len: usize },
    /// A request is being answered.
    Answering(Unread),
    /// The last answer was given. A request whose body was not read is the last: where the next begins is not looked for.
    Over,
}

/// Shared by a connection and its requests, which are all on one thread.
#[derive(Clone)]
pub struct Exchange(Rc<Shared>);

struct Shared {
    timeouts: ConnectionTimeouts,
    phase: Cell<Phase>,
    deadline: Cell<Instant>,
    /// Whether the answer that is being given is the last.
    is_last: Cell<bool>,
    /// Whether an answer to a request was begun since the last flush.
    has_answer: Cell<bool>,
    /// The connection has bytes of the next request, and waits until this one is answered.
    waiting: Cell<Option<Waker>>,
    /// The peer sends nothing more. One that still reads gets its answer all the same.
    is_closed: Cell<bool>,
    /// A request waits for that.
    closing: Cell<Option<Waker>>,
}

impl Exchange {
    pub(super) fn new(timeouts: ConnectionTimeouts) -> Self {
        Self(Rc::new(Shared {
            timeouts,
            phase: Cell::new(Phase::Head { len: 0 }),
            deadline: Cell::new(Instant::now() + timeouts.head),
            is_last: Cell::new(false),
            has_answer: Cell::new(false),
            waiting: Cell::new(None),
            is_closed: Cell::new(false),
            closing: Cell::new(None),
        }))
    }

    /// The exchange of the connection that the request came on. A request of a test may have none.
    #[must_use]
    pub fn of(request: &HttpRequest) -> Option<&Self> {
        request.conn_data()
    }

    /// The request is being answered, until the guard is dropped.
    #[must_use]
    pub fn begin(&self, request: &HttpRequest) -> Answering {
        let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let is_chunked = request.chunked().unwrap_or(false);
        let body = if is_chunked { Unread::Chunks } else { Unread::Bytes(length.unwrap_or(0)) };
        self.0.phase.set(Phase::Answering(body));
        self.0.deadline.set(Instant::now() + self.0.timeouts.exchange);
        self.0.has_answer.set(true);
        Answering(self.clone())
    }

    /// The answer is long, and makes progress: its next part has as much time as a whole answer.
    pub fn restart_deadline(&self) {
        if let Phase::Answering(_) = self.0.phase.get() {
            self.0.deadline.set(Instant::now() + self.0.timeouts.exchange);
        }
    }

    /// The body of the request was read to its end.
    pub fn body_was_read(&self) {
        if let Phase::Answering(_) = self.0.phase.get() {
            self.0.phase.set(Phase::Answering(Unread::Bytes(0)));
        }
    }

    /// Waits until the peer has closed the connection, or its half of it.
    pub async fn closed(&self) {
        poll_fn(|cx| {
            if self.0.is_closed.get() {
                return Poll::Ready(());
            }
            self.0.closing.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// The peer sends nothing more.
    pub(super) fn record_closed(&self) {
        self.0.is_closed.set(true);
        if let Some(waker) = self.0.closing.take() {
            waker.wake();
        }
    }

    /// Whether the body comes in chunks and was not read to its end. Where the next request begins is then unknown.
    #[must_use]
    pub fn has_unread_chunks(&self) -> bool {
        self.0.phase.get() == Phase::Answering(Unread::Chunks)
    }

    /// The answer that is being given says `Connection: close`: no further request is read.
    pub fn end_with_this_answer(&self) {
        self.0.is_last.set(true);
    }

    fn finish(&self) {
        let (phase, timeout) = match self.0.phase.get() {
            Phase::Answering(Unread::Bytes(0)) if !self.0.is_last.get() => {
                (Phase::Head { len: 0 }, self.0.timeouts.idle)
            }
            Phase::Answering(_) => (Phase::Over, self.0.timeouts.head),
            Phase::Head { .. } | Phase::Over => return,
        };
        self.0.phase.set(phase);
        self.0.deadline.set(Instant::now() + timeout);
        if let Some(waker) = self.0.waiting.take() {
            waker.wake();
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.0.phase.get()
    }

    pub(super) fn timeouts(&self) -> &ConnectionTimeouts {
        &self.0.timeouts
    }

    /// Until when the peer, or the answer, may take.
    pub(super) fn deadline(&self) -> Instant {
        self.0.deadline.get()
    }

    /// Counts bytes that were handed over.
    pub(super) fn record_read(&self, len: usize) {
        self.0.phase.set(match self.0.phase.get() {
            Phase::Head { len: before } => {
                if before == 0 {
                    self.0.deadline.set(Instant::now() + self.0.timeouts.head);
                }
                Phase::Head { len: before + len }
            }
            Phase::Answering(unread) => Phase::Answering(unread.without(len)),
            Phase::Over => Phase::Over,
        });
    }

    /// All bytes of all answers were taken.
    pub(super) fn record_flush(&self) {
        if !matches!(self.0.phase.get(), Phase::Answering(_)) {
            self.0.has_answer.set(false);
        }
    }

    /// Whether the bytes that are written next can be of an answer to a request.
    pub(super) fn has_answer(&self) -> bool {
        self.0.has_answer.get()
    }

    /// Wakes this task when the request is answered.
    pub(super) fn wake_when_answered(&self, waker: &Waker) {
        self.0.waiting.set(Some(waker.clone()));
    }
}

/// Held until a request is answered: by its handler, and then by the body of its answer.
pub struct Answering(Exchange);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.finish();
    }
}
