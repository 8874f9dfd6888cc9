//! VisionScope Billing: usage credits and events.
//!
//! Data flows one way: HTTP → [`engine`] → [`domain`] → [`store`] → outbox → [`publisher`] → [`stream`], and from the outbox
//! to the figures of the [`consumers`].
//! No module knows one to its left; only [`app`] knows all.

pub mod app;
pub mod background;
pub mod cleaning;
pub mod cli;
pub mod clock;
pub mod config;
pub mod consumers;
pub mod contract;
pub mod demo;
pub mod domain;
pub mod engine;
pub mod http;
pub mod outbox;
pub mod publisher;
pub mod queues;
pub mod scheduler;
pub mod store;
pub mod stream;
pub mod telemetry;
