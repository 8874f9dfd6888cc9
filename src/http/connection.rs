//! A connection that its peer cannot hold for long, nor fill the memory with.
//!
//! actix limits neither what a peer may send ahead nor how long it may take to read: it reads and parses up to 128 KiB
//! of requests while the first is being answered, appends their answers to one buffer, and waits for ever until the
//! peer takes them. [`Connection`] stands between it and the socket, and gives it only what it needs:
//!
//! - One request at a time. The next head is handed over once the request before is answered, and nothing while the
//!   peer does not take its answers.
//! - Each wait has a deadline: for a head, for an answer, for the peer to take it, for the next request.
//! - A head has at most [`MAX_HEAD`] bytes. What is no request is answered with a problem ([`protocol_error`]).
//! - When the server stops, it ends as if the peer had closed it, but only when no request is being read or answered.
//!   So no request that was read is left without an answer.
//!
//! [`Exchange`] is what the connection and its requests tell each other.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_web::rt::net::TcpStream;
use tokio::io::{AsyncBufRead as _, AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

pub use self::answer_body::AnswerBody;
use self::exchange::Phase;
pub use self::exchange::{Answering, ConnectionTimeouts, Exchange};
use self::head_scan::HeadScan;
use super::problem::Code;

mod answer_body;
mod exchange;
mod head_scan;
mod protocol_error;

/// The largest head of a request. The API takes 16 KiB of headers.
const MAX_HEAD: usize = 24 * 1024;
/// What a connection reads ahead.
const READ_AHEAD: usize = 4 * 1024;
/// What a peer must take of its answers in each [`ConnectionTimeouts::stall`], or all that is left.
const MIN_PROGRESS: usize = 16 * 1024;
/// How much of an answer the kernel keeps that cannot be sent yet.
#[cfg(target_os = "linux")]
const MAX_UNSENT: u32 = 16 * 1024;
/// How long a connection waits for its peer to close it, so that the peer receives the last answer. Closing while the
/// peer is still sending would discard it.
const LINGER: Duration = Duration::from_secs(2);

/// A connection with bounds on time and memory.
pub struct Connection {
    stream: BufReader<TcpStream>,
    exchange: Exchange,
    scan: HeadScan,
    /// HTTP has not looked yet at what it got.
    is_step_over: bool,
    stall: Option<Stall>,
    /// The last answer was sent: until when to wait for the peer to close.
    closes_at: Option<Instant>,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Fires at `fires_at`, which is never after the deadline. It is set only when it fires or the deadline is
    /// before, so that a request does not pay for it.
    timer: Pin<Box<Sleep>>,
    fires_at: Instant,
}

/// The peer does not take its answers.
struct Stall {
    deadline: Instant,
    taken: usize,
}

impl Connection {
    /// Serves a socket until its peer closes it, or `stopping` is cancelled.
    pub fn new(stream: TcpStream, timeouts: ConnectionTimeouts, stopping: CancellationToken) -> io::Result<Self> {
        // An answer is written at once, so Nagle's algorithm would only delay it.
        stream.set_nodelay(true)?;
        #[cfg(target_os = "linux")]
        socket2::SockRef::from(&stream).set_tcp_notsent_lowat(MAX_UNSENT)?;
        let exchange = Exchange::new(timeouts);
        let fires_at = exchange.deadline();
        Ok(Self {
            stream: BufReader::with_capacity(READ_AHEAD, stream),
            exchange,
            scan: HeadScan::default(),
            is_step_over: false,
            stall: None,
            closes_at: None,
            stopping: Box::pin(stopping.cancelled_owned()),
            timer: Box::pin(sleep_until(fires_at)),
            fires_at,
        })
    }

    /// For the requests of this connection.
    #[must_use]
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    fn socket(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(self.stream.get_mut())
    }

    fn deadline(&self) -> Instant {
        match (self.closes_at, &self.stall) {
            (Some(deadline), _) => deadline,
            (None, Some(stall)) => stall.deadline,
            (None, None) => self.exchange.deadline(),
        }
    }

    /// Ready after the deadline.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline();
        if deadline < self.fires_at {
            self.set_timer(deadline);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.set_timer(deadline);
        }
        Poll::Pending
    }

    fn set_timer(&mut self, at: Instant) {
        self.timer.as_mut().reset(at);
        self.fires_at = at;
    }

    /// The socket has nothing to read, or it must not be read: fails after the deadline.
    fn poll_expiry(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_deadline(cx));
        match self.exchange.phase() {
            Phase::Head { len: 0 } if self.stall.is_none() => Poll::Ready(Ok(())),
            Phase::Head { .. } if self.stall.is_none() => self.poll_refuse(cx, Code::RequestTimeout).map(Ok),
            _ => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }

    /// The peer takes its answers again, so it may be read from.
    fn end_stall(&mut self, cx: &Context<'_>) {
        if self.stall.take().is_some() {
            cx.waker().wake_by_ref();
        }
    }

    /// Answers with an error and waits until the peer has closed the connection.
    fn poll_refuse(&mut self, cx: &mut Context<'_>, code: Code) -> Poll<()> {
        if self.closes_at.is_none() {
            let answer = protocol_error::answer(code);
            // A peer that has left no room for it does not read it.
            let _ = self.socket().poll_write(cx, &answer);
            let _ = self.socket().poll_shutdown(cx);
            self.closes_at = Some(Instant::now() + LINGER);
        }
        self.poll_closed_by_peer(cx)
    }

    /// Skips what the peer still sends, until it closes the connection or the deadline.
    fn poll_closed_by_peer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let len = match Pin::new(&mut self.stream).poll_fill_buf(cx) {
                Poll::Ready(Ok([]) | Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(bytes)) => bytes.len(),
                Poll::Pending => return self.poll_deadline(cx),
            };
            Pin::new(&mut self.stream).consume(len);
            if Instant::now() >= self.deadline() {
                return Poll::Ready(());
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closes_at.is_some() {
            return this.poll_closed_by_peer(cx).map(Ok);
        }
        if this.stall.is_some() {
            return this.poll_expiry(cx);
        }
        if this.exchange.phase() == Phase::Over {
            return Poll::Ready(Ok(()));
        }
        let arrived = match Pin::new(&mut this.stream).poll_fill_buf(cx) {
            Poll::Ready(Ok(bytes)) => bytes.len(),
            Poll::Ready(Err(error)) => {
                this.exchange.record_closed();
                return Poll::Ready(Err(error));
            }
            Poll::Pending => {
                this.is_step_over = false;
                let is_idle = this.exchange.phase() == Phase::Head { len: 0 };
                if is_idle && this.stopping.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Ok(()));
                }
                return this.poll_expiry(cx);
            }
        };
        if arrived == 0 {
            this.exchange.record_closed();
        }
        if std::mem::take(&mut this.is_step_over) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let bytes = &this.stream.buffer()[..arrived.min(buf.remaining())];
        let len = match this.exchange.phase() {
            Phase::Head { len } if len >= MAX_HEAD => return this.poll_refuse(cx, Code::HeadersTooLarge).map(Ok),
            Phase::Head { .. } => this.scan.end_in(bytes).unwrap_or(bytes.len()),
            Phase::Answering(unread) => unread.first_of(bytes.len()),
            Phase::Over => 0,
        };
        if len == 0 && arrived > 0 {
            this.exchange.wake_when_answered(cx.waker());
            return this.poll_expiry(cx);
        }
        buf.put_slice(&bytes[..len]);
        Pin::new(&mut this.stream).consume(len);
        this.exchange.record_read(len);
        this.is_step_over = true;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.closes_at.is_some() {
            return this.poll_closed_by_peer(cx).map(|()| Ok(bytes.len()));
        }
        if !this.exchange.has_answer()
            && let Some(code) = protocol_error::code_of(bytes)
        {
            return this.poll_refuse(cx, code).map(|()| Ok(bytes.len()));
        }
        match this.socket().poll_write(cx, bytes) {
            Poll::Ready(Ok(len)) => {
                if let Some(stall) = &mut this.stall {
                    stall.taken += len;
                    if stall.taken >= MIN_PROGRESS {
                        this.end_stall(cx);
                    }
                }
                Poll::Ready(Ok(len))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                let deadline = Instant::now() + this.exchange.timeouts().stall;
                this.stall.get_or_insert(Stall { deadline, taken: 0 });
                ready!(this.poll_deadline(cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    /// actix calls it when all that it had to write was written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end_stall(cx);
        self.exchange.record_flush();
        self.socket().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closes_at.is_none() {
            ready!(self.socket().poll_shutdown(cx))?;
            if Pin::new(&mut self.stream).poll_fill_buf(cx).is_pending() {
                return Poll::Ready(Ok(()));
            }
            self.closes_at = Some(Instant::now() + LINGER);
        }
        self.poll_closed_by_peer(cx).map(Ok)
    }
}
