//! Logs, traces and metrics of the process.
//!
//! `main` calls [`Telemetry::start`] once, before everything else. It installs the log subscriber (text or JSON
//! lines on stderr) and, if an OTLP endpoint is configured, an exporter of spans. The names of metrics are in
//! [`metric`], the names of log fields in `docs/LOGGING.md`.
//!
//! The exporter has a thread and a blocking HTTP client of its own, so it needs no async runtime, and a slow
//! receiver delays nothing else. Spans that cannot be sent are dropped.
//!
//! Deliberately absent: metrics over OTLP (`/metrics` is the only way), and log files (the supervisor of the
//! process collects stderr).

mod links;
pub mod metric;
mod prometheus;

use std::io::{self, IsTerminal};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer};

pub use self::links::link;
pub use self::prometheus::{RenderMetrics, metrics};
use crate::config::{LogFormat, Telemetry as Settings};

/// The name of this service in traces.
const SERVICE_NAME: &str = "visionscope-billing";
/// How long one export may take. Meanwhile spans wait in a bounded queue; when it is full, they are dropped.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a stop waits for the last spans. It is part of the time that a supervisor allows between SIGTERM and
/// SIGKILL.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// The path of traces below the endpoint (OTLP/HTTP, section "Request").
const TRACES_PATH: &str = "v1/traces";
/// Exporting the spans of the exporter itself would create further spans, without end.
const NOT_EXPORTED: [&str; 6] = ["opentelemetry", "hyper", "hyper_util", "reqwest", "h2", "rustls"];

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("the log filter is wrong: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("the trace exporter cannot be created: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("another subscriber is already installed")]
    Installed(#[from] tracing::subscriber::SetGlobalDefaultError),
}

/// The running telemetry. [`Telemetry::stop`] sends the queued spans.
#[must_use = "queued spans are lost unless it is stopped"]
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Installs the subscriber, the trace exporter and the metrics of this process.
    pub fn start(settings: &Settings) -> Result<Self, TelemetryError> {
        global::set_text_map_propagator(TraceContextPropagator::new());
        let traces = settings.otlp_endpoint.as_deref().map(|endpoint| exporter(endpoint, settings)).transpose()?;
        let subscriber = subscriber(settings, traces.as_ref(), io::stderr, io::stderr().is_terminal())?;
        tracing::subscriber::set_global_default(subscriber)?;
        if let Some(traces) = &traces {
            global::set_tracer_provider(traces.clone());
        }
        let _ = metrics();
        Ok(Self { traces })
    }

    /// Sends the last spans, within the shutdown timeout. It blocks, so call it through `spawn_blocking` in async
    /// code, or after the runtime has ended.
    pub fn stop(self) {
        if let Some(traces) = self.traces
            && let Err(error) = traces.shutdown_with_timeout(SHUTDOWN_TIMEOUT)
        {
            tracing::warn!(error = %error, "the last spans may not have been sent");
        }
    }
}

/// The log subscriber, with the exporter if there is one.
fn subscriber<W>(
    settings: &Settings,
    traces: Option<&SdkTracerProvider>,
    writer: W,
    with_colors: bool,
) -> Result<impl Subscriber + Send + Sync + use<W>, TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(&settings.log_filter)?;
    let spans = traces.map(|traces| {
        tracing_opentelemetry::layer().with_tracer(traces.tracer(SERVICE_NAME)).with_filter(filter_fn(is_exported))
    });
    Ok(tracing_subscriber::registry().with(filter).with(spans).with(log(settings.log_format, writer, with_colors)))
}

fn is_exported(metadata: &Metadata<'_>) -> bool {
    let source = metadata.target().split("::").next().unwrap_or_default();
    !NOT_EXPORTED.iter().any(|name| source == *name || source.starts_with("opentelemetry"))
}

/// One line per event: text, or a JSON object with the fields at its top level.
fn log<S, W>(format: LogFormat, writer: W, with_colors: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(with_colors);
    match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_span_list(false).with_ansi(false).boxed(),
    }
}

fn exporter(endpoint: &str, settings: &Settings) -> Result<SdkTracerProvider, TelemetryError> {
    let base = endpoint.trim_end_matches('/');
    let address = if base.ends_with(TRACES_PATH) { base.to_owned() } else { format!("{base}/{TRACES_PATH}") };
    let exporter = SpanExporter::builder().with_http().with_endpoint(address).with_timeout(EXPORT_TIMEOUT).build()?;
    let mut resource = Resource::builder()
        .with_service_name(SERVICE_NAME)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if let Some(instance) = &settings.service_instance {
        resource = resource.with_attribute(KeyValue::new("service.instance.id", instance.clone()));
    }
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::mpsc::{self, Receiver};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Long enough for a busy machine. Only a failing test waits that long.
    const TEST_TIMEOUT: Duration = Duration::from_secs(20);

    const LINKED: &str = "00-1a2b3c4d5e6f708192a3b4c5d6e7f809-0123456789abcdef-01";

    fn settings(log_format: LogFormat, otlp_endpoint: Option<String>) -> Settings {
        Settings {
            log_format,
            log_filter: "info".to_owned(),
            otlp_endpoint,
            service_instance: Some("replica-7".to_owned()),
        }
    }

    #[derive(Clone, Default)]
    struct LogBuffer(Arc<Mutex<Vec<u8>>>);

    impl Write for LogBuffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl LogBuffer {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn logged(format: LogFormat) -> String {
        let log = LogBuffer::default();
        let writer = log.clone();
        let subscriber = subscriber(&settings(format, None), None, move || writer.clone(), false).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("batch", partition = 3);
            let _entered = span.enter();
            tracing::info!(commands = 12, "committed");
            tracing::debug!("not at this level");
        });
        log.text()
    }

    #[test]
    fn a_json_line_is_one_object_with_the_fields_at_its_top_level() {
        let text = logged(LogFormat::Json);
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(
            (&line["level"], &line["message"], &line["commands"]),
            (&"INFO".into(), &"committed".into(), &12.into())
        );
        assert_eq!(line["span"], serde_json::json!({"name": "batch", "partition": 3}));
    }

    #[test]
    fn a_text_line_has_the_span_and_the_fields_without_colors() {
        let text = logged(LogFormat::Text);
        assert!(text.contains("INFO batch{partition=3}:") && text.contains("committed commands=12"), "{text}");
        assert!(!text.contains('\u{1b}') && text.lines().count() == 1, "{text}");
    }

    /// An OTLP receiver: answers each request with 200 and sends it to the channel.
    fn receiver() -> (String, Receiver<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (sender, requests) = mpsc::channel();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut request = Vec::new();
                let mut chunk = [0; 4096];
                while !is_complete(&request) {
                    match stream.read(&mut chunk) {
                        Ok(0) | Err(_) => break,
                        Ok(n) => request.extend_from_slice(&chunk[..n]),
                    }
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let _ = sender.send(request);
            }
        });
        (address, requests)
    }

    fn is_complete(request: &[u8]) -> bool {
        let text = String::from_utf8_lossy(request).to_lowercase();
        let Some(head) = text.find("\r\n\r\n") else { return false };
        let length = text[..head].lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        let head_bytes = request.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        request.len() >= head_bytes + length.unwrap_or(0_usize)
    }

    fn send_one_span(endpoint: &str) {
        let settings = settings(LogFormat::Json, Some(endpoint.to_owned()));
        let traces = exporter(endpoint, &settings).unwrap();
        let subscriber = subscriber(&settings, Some(&traces), io::sink, false).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("deduct_credits");
            link(&span, [LINKED, LINKED].into_iter());
            span.in_scope(|| tracing::info!("done"));
        });
        Telemetry { traces: Some(traces) }.stop();
    }

    fn assert_is_the_span(request: &[u8]) {
        let holds = |text: &str| request.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(request.starts_with(b"POST /v1/traces HTTP/1.1\r\n"), "{}", String::from_utf8_lossy(request));
        assert!(["deduct_credits", SERVICE_NAME, "replica-7"].into_iter().all(holds));
        let linked = 0x1a2b_3c4d_5e6f_7081_92a3_b4c5_d6e7_f809_u128.to_be_bytes();
        assert_eq!(request.windows(16).filter(|window| *window == linked).count(), 1, "it is linked once");
    }

    #[test]
    fn a_stop_sends_the_last_spans_to_the_receiver() {
        let (address, requests) = receiver();
        send_one_span(&format!("{address}/"));
        assert_is_the_span(&requests.recv_timeout(TEST_TIMEOUT).unwrap());
    }

    #[tokio::test]
    async fn the_exporter_starts_and_stops_within_an_async_runtime() {
        let (address, requests) = receiver();
        tokio::task::spawn_blocking(move || send_one_span(&format!("{address}/v1/traces"))).await.unwrap();
        assert_is_the_span(&requests.recv_timeout(TEST_TIMEOUT).unwrap());
    }

    #[test]
    fn a_stop_takes_bounded_time_when_the_receiver_does_not_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let before = std::time::Instant::now();
        send_one_span(&address);
        assert!(before.elapsed() < EXPORT_TIMEOUT + SHUTDOWN_TIMEOUT, "{:?}", before.elapsed());
    }
}
