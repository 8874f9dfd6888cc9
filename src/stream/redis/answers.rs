//! What Redis answers, as values of this crate.

use std::collections::BTreeMap;

use deadpool_redis::redis::Value;

use crate::stream::{EntryId, GroupPosition, StreamEntry, StreamError};

/// An entry's id and its fields, as alternating names and values.
pub(super) type RawEntry = (String, Vec<Vec<u8>>);

fn entry_id(id: &str) -> Result<EntryId, StreamError> {
    let parse = || -> Option<EntryId> {
        let (seq, sub) = id.split_once('-')?;
        Some(EntryId { seq: seq.parse().ok()?, sub: sub.parse().ok()? })
    };
    parse().ok_or_else(|| StreamError::Corrupt(format!("an entry has the id {id}")))
}

/// The other members of the answer are not used. `lag` would be wrong after a trim on Redis 7.0.
pub(super) fn group_position(group: &BTreeMap<String, Value>) -> Result<GroupPosition, StreamError> {
    let text = |name: &str| -> Result<String, StreamError> {
        match group.get(name) {
            Some(Value::BulkString(bytes)) => Ok(String::from_utf8_lossy(bytes).into_owned()),
            _ => Err(StreamError::Corrupt(format!("a consumer group has no {name}"))),
        }
    };
    Ok(GroupPosition { name: text("name")?, last_delivered: entry_id(&text("last-delivered-id")?)? })
}

pub(super) fn entry((id, fields): RawEntry) -> Result<StreamEntry, StreamError> {
    let id = entry_id(&id)?;
    let mut entry = StreamEntry { id, ..StreamEntry::default() };
    for pair in fields.chunks_exact(2) {
        // Bytes that are not UTF-8 differ from every event, and still do after a lossy conversion.
        let value = String::from_utf8_lossy(&pair[1]).into_owned();
        match pair[0].as_slice() {
            b"event_id" => entry.event_id = value,
            b"event_type" => entry.event_type = value,
            b"workspace_id" => entry.workspace_id = value,
            b"event" => entry.event = value,
            _ => {}
        }
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_fields_of_an_entry_are_empty() {
        let read = entry(("5-1".into(), vec![b"event_id".to_vec(), b"a".to_vec(), b"x".to_vec()])).unwrap();
        assert_eq!((read.id, read.event_id.as_str(), read.event.as_str()), (EntryId { seq: 5, sub: 1 }, "a", ""));
        assert!(entry(("five".into(), vec![])).is_err());
    }
}
