//! Warnings of a certificate that comes to its end and that nobody renews.

use std::{sync::Arc, time::Duration};

use aziot_log::fields;
use aziot_pki::certificate::Validity;
use jiff::Timestamp;

use super::DeviceCertificate;

/// How often the certificate is looked at: the clock may be set, and somebody may store another one.
const PERIOD: Duration = Duration::from_secs(60 * 60);
/// The first look, when the first attempt has mostly ended.
const FIRST: Duration = Duration::from_secs(60);

/// How far a certificate has come, in stages of which each is told once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Good,
    /// Four fifths of its life are over.
    Fifth,
    /// Nine tenths.
    Tenth,
    /// Ninety-nine hundredths.
    Last,
    Over,
}

impl Stage {
    /// At `now`, in seconds since 1970.
    fn of(validity: Validity, now: i64) -> Self {
        if validity.is_over(now) {
            return Self::Over;
        }
        let lifetime = i128::from(validity.not_after) - i128::from(validity.not_before);
        let rest = i128::from(validity.not_after) - i128::from(now);
        match rest * 100 / lifetime {
            0 => Self::Last,
            1..10 => Self::Tenth,
            10..20 => Self::Fifth,
            _ => Self::Good,
        }
    }
}

/// Looks at the certificate that `current` gives, for ever.
pub(super) async fn watch(current: impl Fn() -> Option<Arc<DeviceCertificate>>) {
    let mut told = None;
    tokio::time::sleep(FIRST).await;
    loop {
        if let Some(certificate) = current() {
            certificate.look_again().await;
            if let Some((fingerprint, validity)) = certificate.shown().filter(|_| !certificate.is_renewed()) {
                let stage = Stage::of(validity, Timestamp::now().as_second());
                let news = told.is_none_or(|(other, before)| other != fingerprint || stage > before);
                if news && stage > Stage::Good {
                    warn(&certificate, validity, stage);
                }
                told = Some((fingerprint, stage));
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

fn warn(certificate: &DeviceCertificate, validity: Validity, stage: Stage) {
    let certificate_id = certificate.certificate_id();
    let not_after = Timestamp::from_second(validity.not_after).map(|date| date.to_string()).unwrap_or_default();
    if stage == Stage::Over {
        tracing::error!(
            { fields::CERTIFICATE_ID } = certificate_id,
            { fields::NOT_AFTER } = not_after,
            "the device's certificate is over, and the cloud will not accept it; replace it, or set identity_auto_renew"
        );
    } else {
        tracing::warn!(
            { fields::CERTIFICATE_ID } = certificate_id,
            { fields::NOT_AFTER } = not_after,
            "the device's certificate comes to its end, and it is not renewed: identity_auto_renew is not set"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_begins_in_time() {
        let validity = Validity { not_before: 1000, not_after: 2000 };
        for (now, stage) in [
            (0, Stage::Good),
            (1800, Stage::Good),
            (1801, Stage::Fifth),
            (1901, Stage::Tenth),
            (1991, Stage::Last),
            (1999, Stage::Last),
            (2000, Stage::Over),
        ] {
            assert_eq!(Stage::of(validity, now), stage, "at {now}");
        }
        for (not_before, not_after) in [(i64::MIN, i64::MAX), (i64::MAX, i64::MIN), (5, 5)] {
            let _ = Stage::of(Validity { not_before, not_after }, i64::MIN);
        }
    }
}
