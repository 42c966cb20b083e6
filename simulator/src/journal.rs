//! What the simulator saw: the last requests and the last messages of devices, for tests and for people who wonder.
//!
//! In memory only and bounded. Holds no authorization header; a message's body is the device's own data.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

/// So many requests are remembered.
const MAX_REQUESTS: usize = 10_000;
/// So many messages are remembered, at most 256 KiB each.
const MAX_MESSAGES: usize = 100;

/// One request on the TLS port and how it ended.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Request {
    pub(crate) time: Timestamp,
    #[serde(rename = "requestId")]
    pub(crate) id: u64,
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    /// What the client calls us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) host: Option<String>,
    /// Absent when the connection was cut instead of answered.
    pub(crate) status: Option<u16>,
    pub(crate) elapsed_us: u64,
    /// Why it was refused or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// How many requests there were since the start.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Counts {
    requests: u64,
    /// Those that were too many in a second.
    throttled: u64,
    /// By status; connections that were cut have none.
    statuses: BTreeMap<u16, u64>,
}

/// One message that a hub took from a device or module.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Message {
    pub(crate) time: Timestamp,
    /// Name of the hub.
    pub(crate) hub: String,
    pub(crate) device_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) module_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content_type: Option<String>,
    pub(crate) bytes: usize,
    /// Standard base64.
    pub(crate) body: String,
}

#[derive(Debug, Default)]
pub(crate) struct Journal {
    requests: Mutex<VecDeque<Request>>,
    messages: Mutex<VecDeque<Message>>,
    counts: Mutex<Counts>,
}

impl Journal {
    pub(crate) fn add_request(&self, request: Request, is_throttled: bool) {
        {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            counts.requests += 1;
            counts.throttled += u64::from(is_throttled);
            if let Some(status) = request.status {
                *counts.statuses.entry(status).or_default() += 1;
            }
        }
        add(&self.requests, request, MAX_REQUESTS);
    }

    pub(crate) fn add_message(&self, message: Message) {
        add(&self.messages, message, MAX_MESSAGES);
    }

    /// The last requests, the oldest first.
    pub(crate) fn requests(&self) -> Vec<Request> {
        all(&self.requests)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last messages, the oldest first.
    pub(crate) fn messages(&self) -> Vec<Message> {
        all(&self.messages)
    }
}

/// Adds to a queue that forgets its oldest entries.
pub(crate) fn add<T>(queue: &Mutex<VecDeque<T>>, entry: T, limit: usize) {
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    if queue.len() >= limit {
        queue.pop_front();
    }
    queue.push_back(entry);
}

/// What is in such a queue, the oldest first.
pub(crate) fn all<T: Clone>(queue: &Mutex<VecDeque<T>>) -> Vec<T> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first() {
        let queue = Mutex::default();
        (0..5).for_each(|number| add(&queue, number, 3));
        assert_eq!(all(&queue), [2, 3, 4]);
    }
}
