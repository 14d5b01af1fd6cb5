//! MeteredBody: a provider's response on its way to the client, read as it passes.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::{fmt, mem};

use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::split_key::usage::{scanner::Scanner, stated::TokenUsage};

pin_project! {
    /// A provider's response body that is read as it passes: its length, and the tokens that it states.
    ///
    /// Each frame passes at once and unchanged. The body keeps no text but the name of a member or model, at most 64
    /// bytes, whatever the response holds.
    ///
    /// | a response with this media type | is read as |
    /// |---|---|
    /// | `text/event-stream` | events with JSON in their `data` |
    /// | one that contains `json` | JSON, one document or several |
    /// | any other, or compressed | bytes only |
    ///
    /// These statements count, in whole numbers:
    ///
    /// | provider | tokens of the prompt | tokens of the answer |
    /// |---|---|---|
    /// | OpenAI: chat, embeddings | `usage.prompt_tokens` | `usage.completion_tokens` |
    /// | OpenAI: responses, images | `usage.input_tokens` | `usage.output_tokens` |
    /// | Anthropic | `usage.input_tokens`, without those of its cache | `usage.output_tokens` |
    /// | Google | `usageMetadata.promptTokenCount` | `usageMetadata.candidatesTokenCount` and `thoughtsTokenCount` |
    ///
    /// They count at the top of a document or event, and in its member `response` or `message`, but not deeper, and not
    /// within a string. The model's name is the member `model` or `modelVersion` of the same places. If a response
    /// states a number again, the last one counts: streams state sums.
    ///
    /// A chat stream of OpenAI states no usage unless the client asks with `stream_options.include_usage`.
    pub struct MeteredBody<B> {
        #[pin]
        body: B,
        // The body is dropped first, so that whatever it holds is released before the report.
        meter: Meter,
    }
}

/// The result of a [`MeteredBody`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metered {
    /// The bytes of data that passed.
    pub bytes: u64,
    /// The statements that passed.
    pub usage: TokenUsage,
}

type Finished = Box<dyn FnOnce(Metered) + Send>;

struct Meter {
    scanner: Option<Scanner>,
    bytes: u64,
    finished: Option<Finished>,
}

impl<B> MeteredBody<B> {
    /// Reads the body of a response with these headers to a request with this method.
    ///
    /// Only answers to `POST` are searched for tokens: an answer to `GET` repeats what an earlier one has stated.
    ///
    /// `finished` is called once, when the body ends or fails, or when it is dropped, which a client causes by leaving:
    /// then it gets what has passed until then. It must not block.
    #[must_use]
    pub fn new(
        body: B,
        method: &Method,
        headers: &HeaderMap,
        finished: impl FnOnce(Metered) + Send + 'static,
    ) -> Self {
        let scanner = Some(headers).filter(|_| method == Method::POST).and_then(Scanner::of);
        Self { body, meter: Meter { scanner, bytes: 0, finished: Some(Box::new(finished)) } }
    }
}

impl Meter {
    fn finish(&mut self) {
        let Some(finished) = self.finished.take() else { return };
        let usage = self.scanner.as_ref().map(Scanner::usage).unwrap_or_default();
        finished(Metered { bytes: mem::take(&mut self.bytes), usage });
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.finish();
    }
}

impl<B: Body<Data = Bytes>> Body for MeteredBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let polled = this.body.poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    this.meter.bytes = this.meter.bytes.saturating_add(data.len() as u64);
                    if let Some(scanner) = &mut this.meter.scanner {
                        scanner.read(data);
                    }
                }
            }
            Poll::Ready(None | Some(Err(_))) => this.meter.finish(),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> fmt::Debug for MeteredBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeteredBody").field("bytes", &self.meter.bytes).finish_non_exhaustive()
    }
}
