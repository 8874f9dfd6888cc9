//! A connection with a deadline of its own.
//!
//! actix bounds the head of a connection's first request and the wait between two requests. Nothing
//! bounds the head of a second request: its clock for an idle connection stops at the first byte. So
//! a peer could send one byte and stay for ever. [`Bounded`] closes that: what has been sent must be
//! answered within the time that the longest request may take, and a connection on which nothing is
//! written for that time beyond the keep-alive ends, whatever comes in. This bounds a peer that does
//! not read its answer, too.
//!
//! There is no rule about HTTP here: only bytes that came in, bytes that went out, and the time.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::rt::net::TcpStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a connection may go without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// From the first byte of a request to the first byte of its answer.
    pub exchange: Duration,
    /// From one answer to the first byte of the next request.
    pub idle: Duration,
}

/// A stream whose reads and writes fail once its peer has used up the patience.
pub struct Bounded {
    stream: TcpStream,
    patience: Patience,
    deadline: Instant,
    /// Whether something came in since something was written.
    is_answer_due: bool,
    /// Never later than the deadline; moved only when it fires, which keeps it off the path of a
    /// request. A deadline that is set later is at least `exchange` ahead, so looking every
    /// `exchange` is often enough.
    alarm: Pin<Box<Sleep>>,
}

impl Bounded {
    #[must_use]
    pub fn new(stream: TcpStream, patience: Patience) -> Self {
        let deadline = Instant::now() + patience.exchange;
        Self { stream, patience, deadline, is_answer_due: false, alarm: Box::pin(sleep_until(deadline)) }
    }

    fn came_in(&mut self) {
        if !self.is_answer_due {
            self.is_answer_due = true;
            self.deadline = Instant::now() + self.patience.exchange;
        }
    }

    fn went_out(&mut self) {
        self.is_answer_due = false;
        self.deadline = Instant::now() + self.patience.idle + self.patience.exchange;
    }

    /// For a stream that has to wait: whether it still may, and a call when it no longer does.
    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        while self.alarm.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if now >= self.deadline {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.alarm.as_mut().reset(self.deadline.min(now + self.patience.exchange));
        }
        Poll::Pending
    }

    fn wrote(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(len)) => {
                if len > 0 {
                    self.went_out();
                }
                Poll::Ready(Ok(len))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.wait(cx),
        }
    }
}

impl AsyncRead for Bounded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(read) => {
                if buf.filled().len() > before {
                    self.came_in();
                }
                Poll::Ready(read)
            }
            Poll::Pending => self.wait(cx),
        }
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(cx, written)
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
