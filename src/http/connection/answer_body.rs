//! The body of an answer, given to the connection in small pieces.
//!
//! actix copies each piece to the connection's buffer. A file of the documentation is the same bytes for all callers,
//! so a peer that does not read it costs a piece and not the file.

use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::Error;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::web::Bytes;

use super::exchange::Answering;

/// How large a piece is at most.
const PIECE: usize = 8 * 1024;

/// Any body in pieces. While it exists, its request is being answered.
pub struct AnswerBody {
    body: BoxBody,
    rest: Bytes,
    _answering: Option<Answering>,
}

impl AnswerBody {
    #[must_use]
    pub fn new(body: BoxBody, answering: Option<Answering>) -> Self {
        Self { body, rest: Bytes::new(), _answering: answering }
    }
}

impl MessageBody for AnswerBody {
    type Error = Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        while self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_next(cx) {
                Poll::Ready(Some(Ok(bytes))) => self.rest = bytes,
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Some(Err(actix_web::error::ErrorInternalServerError(error))));
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
        let len = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(self.rest.split_to(len))))
    }
}
