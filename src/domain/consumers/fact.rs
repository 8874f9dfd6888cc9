//! An event as a consumer reads it.

use crate::domain::cloud_event::EventRecord;
use crate::domain::event::EventData;

/// An event with its data.
#[derive(Clone, Debug)]
pub struct Fact {
    pub event: EventRecord,
    pub data: FactData,
}

/// The data of an event, as far as this version of the server can read it.
#[derive(Clone, Debug)]
pub enum FactData {
    Known(Box<EventData>),
    /// The data has a newer schema than this version knows.
    Newer,
    /// Why the data cannot be read.
    Unreadable(String),
}

impl Fact {
    #[must_use]
    pub fn new(event: EventRecord) -> Self {
        let data = if event.schema_version > event.event_type.schema_version() {
            FactData::Newer
        } else {
            match EventData::parse(event.event_type, &event.data) {
                Ok(data) => FactData::Known(Box::new(data)),
                Err(error) => FactData::Unreadable(error.to_string()),
            }
        };
        Self { event, data }
    }
}
