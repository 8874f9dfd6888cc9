//! Links from the span of background work to the traces of what caused it.

use std::collections::{BTreeSet, HashMap};

use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// A span has at most so many links.
const MAX_LINKS: usize = 32;

/// Links the span to the traces that these `traceparent`s name, each once: the first 32 of them.
pub fn link<'t>(span: &Span, traceparents: impl Iterator<Item = &'t str>) {
    if span.is_disabled() {
        return;
    }
    let mut seen = BTreeSet::new();
    for traceparent in traceparents {
        if seen.len() < MAX_LINKS && seen.insert(traceparent) {
            let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
            span.add_link(TraceContextPropagator::new().extract(&carrier).span().span_context().clone());
        }
    }
}
