//! The request id: made where a request enters the device, carried from daemon to daemon, and added to every line that is
//! logged while the request is worked on.

use std::fmt;

tokio::task_local! {
    static CURRENT: RequestId;
}

/// A short text without meaning, at most 64 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// A new id of 64 random bits. It tells requests apart in a log; it is no secret.
    #[must_use]
    pub fn random() -> RequestId {
        RequestId(format!("{:016x}", fastrand::u64(..)))
    }

    /// A caller's id, if it is fit for a log.
    #[must_use]
    pub fn parse(text: &str) -> Option<RequestId> {
        let fit = (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        fit.then(|| RequestId(text.to_owned()))
    }

    /// The id of the request that the current task works on.
    #[must_use]
    pub fn current() -> Option<RequestId> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Runs `work` as part of this request.
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        CURRENT.scope(self, work).await
    }

    /// Makes work that another thread does part of the request that the current task works on, if it does.
    pub fn carry<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
        let id = RequestId::current();
        move || match id {
            Some(id) => CURRENT.sync_scope(id, work),
            None => work(),
        }
    }

    /// The text of the id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::RequestId;

    #[test]
    fn only_what_is_fit_for_a_log_is_taken_over() {
        assert_eq!(RequestId::parse("a-1").map(|id| id.to_string()).as_deref(), Some("a-1"));
        for text in ["", "a b", "a\nb", "é", &"x".repeat(65)] {
            assert_eq!(RequestId::parse(text), None, "{text:?}");
        }
    }
}
