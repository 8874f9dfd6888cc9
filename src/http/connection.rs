//! A connection with a deadline.
//!
//! actix limits the time for the head of the first request and for an idle connection. It does not limit the head
//! of a second request: the idle timeout stops at its first byte, so a peer could send one byte and keep the
//! connection open for ever. [`DeadlineStream`] prevents that. A request must be answered within the time that the
//! longest request may take. A connection without any write for that time plus the keep-alive is closed, whatever
//! the peer sends. This also applies to a peer that does not read its answer.
//!
//! This module knows nothing of HTTP: it sees reads, writes and the time.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::rt::net::TcpStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a connection may be open without a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionTimeouts {
    /// From the first byte of a request to the first byte of its answer.
    pub exchange: Duration,
    /// From one answer to the first byte of the next request.
    pub idle: Duration,
}

/// A stream whose reads and writes fail after its deadline.
pub struct DeadlineStream {
    stream: TcpStream,
    timeouts: ConnectionTimeouts,
    deadline: Instant,
    /// Whether there was a read since the last write.
    is_answer_due: bool,
    /// Never later than the deadline. It is reset only when it fires, so that a request does not pay for it. Any new
    /// deadline is at least `exchange` ahead, so firing every `exchange` is often enough.
    timer: Pin<Box<Sleep>>,
}

impl DeadlineStream {
    #[must_use]
    pub fn new(stream: TcpStream, timeouts: ConnectionTimeouts) -> Self {
        let deadline = Instant::now() + timeouts.exchange;
        Self { stream, timeouts, deadline, is_answer_due: false, timer: Box::pin(sleep_until(deadline)) }
    }

    fn record_read(&mut self) {
        if !self.is_answer_due {
            self.is_answer_due = true;
            self.deadline = Instant::now() + self.timeouts.exchange;
        }
    }

    fn record_write(&mut self) {
        self.is_answer_due = false;
        self.deadline = Instant::now() + self.timeouts.idle + self.timeouts.exchange;
    }

    /// Called when the stream is pending: fails after the deadline, and otherwise wakes the task at the deadline.
    fn poll_deadline<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if now >= self.deadline {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.timer.as_mut().reset(self.deadline.min(now + self.timeouts.exchange));
        }
        Poll::Pending
    }

    fn finish_write(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(len)) => {
                if len > 0 {
                    self.record_write();
                }
                Poll::Ready(Ok(len))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.poll_deadline(cx),
        }
    }
}

impl AsyncRead for DeadlineStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(read) => {
                if buf.filled().len() > before {
                    self.record_read();
                }
                Poll::Ready(read)
            }
            Poll::Pending => self.poll_deadline(cx),
        }
    }
}

impl AsyncWrite for DeadlineStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.finish_write(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.finish_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
