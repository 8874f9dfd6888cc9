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
    /// The type or the schema of its data is newer than this version.
    Newer,
    /// Why the data cannot be read.
    Unreadable(String),
}

impl Fact {
    #[must_use]
    pub fn new(event: EventRecord) -> Self {
        let known = event.event_type.known().filter(|known| event.schema_version <= known.schema_version());
        let data = match known.map(|event_type| EventData::parse(event_type, &event.data)) {
            None => FactData::Newer,
            Some(Ok(data)) => FactData::Known(Box::new(data)),
            Some(Err(error)) => FactData::Unreadable(error.to_string()),
        };
        Self { event, data }
    }
}
