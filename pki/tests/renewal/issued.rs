//! Certificates of certd with their keys in keyd: what is called, in which order, and what a crash at each call leaves.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use aziot_pki::{
    certificate::Chain,
    renewal::{
        Credential, Doing, Engine, Failure, NotAvailable, Renewed,
        issued::{Issued, Observer},
    },
};

use super::{
    services::{Cut, Device, Fault},
    world::policy,
};

async fn renew(device: &Device) -> Result<(), NotAvailable> {
    device.engine().hold("device-id", "device-id").await.map(drop)
}

#[tokio::test]
async fn a_renewal_calls_in_this_order() {
    let device = Device::start();
    let old = device.certificate();
    renew(&device).await.unwrap();
    let expected = [
        // Whether the pair is whole, and no temporary key left.
        "get device-id",
        "load key device-id",
        "load key device-id-temp",
        "get device-id",
        // The renewal; nothing that is in use is touched.
        "get device-id",
        "load key device-id-temp",
        "create key device-id-temp",
        "sign with device-id-temp",
        "post device-id-temp",
        "delete device-id-temp",
        // The commit.
        "get device-id",
        "put device-id",
        "move key to device-id",
        // For the one who holds it.
        "get device-id",
    ];
    assert_eq!(device.calls(), expected);
    assert!(device.is_pair() && device.is_renewed());
    assert_eq!(device.names(), (vec!["device-id".to_owned()], vec!["device-id".to_owned()]));
    let (old, new) = (old.leaf().unwrap().to_owned(), device.certificate());
    let new = new.leaf().unwrap();
    assert_eq!(old.subject_name().to_der().unwrap(), new.subject_name().to_der().unwrap());
    assert!(!old.public_key().unwrap().public_eq(&new.public_key().unwrap()), "the key was not rotated");
}

#[tokio::test]
async fn without_rotation_the_key_stays() {
    let device = Device::start();
    let old = device.certificate().leaf().unwrap().public_key().unwrap();
    let mut policy = policy("80%", "4%");
    policy.rotate_key = false;
    let engine = Device::engine_of(&Arc::new(device.issued(policy)));
    engine.hold("device-id", "device-id").await.unwrap();
    assert!(device.is_pair() && device.is_renewed());
    assert!(device.certificate().leaf().unwrap().public_key().unwrap().public_eq(&old));
    assert!(!device.calls().iter().any(|call| call.contains("key device-id-temp")), "{:?}", device.calls());
}

/// Runs `work` until a call is cut off, and drops it there; whether that has happened.
async fn is_cut<T>(device: &Device, work: impl Future<Output = T>) -> bool {
    tokio::select! {
        biased;
        () = device.was_cut() => true,
        _ = work => false,
    }
}

/// A process that dies at any call, whether that was carried out or not, leaves what the next one makes whole: also if that
/// one dies as well.
#[tokio::test]
async fn after_a_crash_at_any_step_certificate_and_key_belong_together() {
    let mut places = Vec::new();
    for cut in [Cut::Before, Cut::After] {
        for number in 1.. {
            let device = Device::start();
            device.cut_at(number, cut);
            if !is_cut(&device, renew(&device)).await {
                assert!(device.is_pair() && device.is_renewed());
                break;
            }
            let place = device.all_calls().pop().unwrap_or_default();
            let was_whole = device.is_pair();
            places.push((place.clone(), cut, was_whole));
            device.mend();
            device.issued(policy("80%", "4%")).repair().await.unwrap();
            assert!(device.is_pair(), "after {place}, {cut:?}");
            renew(&device).await.unwrap();
            assert!(device.is_pair() && device.is_renewed(), "after {place}, {cut:?}");
            if !was_whole {
                die_again_in_each_step_of_the_repair(number, cut).await;
            }
        }
    }
    assert!(places.len() > 30, "{places:?}");
    let broken: Vec<_> =
        places.iter().filter(|(_, _, whole)| !whole).map(|(call, cut, _)| (call.as_str(), *cut)).collect();
    // The only two places at which the pair is apart.
    assert_eq!(broken, [("move key to device-id", Cut::Before), ("put device-id", Cut::After)]);
}

async fn die_again_in_each_step_of_the_repair(number: usize, cut: Cut) {
    for second in [Cut::Before, Cut::After] {
        for again in 1.. {
            let device = Device::start();
            device.cut_at(number, cut);
            assert!(is_cut(&device, renew(&device)).await);
            device.cut_at(again, second);
            if !is_cut(&device, async { device.issued(policy("80%", "4%")).repair().await.unwrap() }).await {
                assert!(device.is_pair());
                break;
            }
            device.mend();
            device.issued(policy("80%", "4%")).repair().await.unwrap();
            assert!(device.is_pair(), "after {number} {cut:?} and {again} {second:?}");
        }
    }
}

#[tokio::test]
async fn a_key_that_cannot_be_moved_brings_the_old_certificate_back() {
    let device = Device::start();
    device.fault("move key to device-id", Fault::Answers(500));
    let issued = Arc::new(device.issued(policy("80%", "4%")));
    let engine = Device::engine_of(&issued);
    let held = engine.hold("device-id", "device-id").await.unwrap();
    assert_eq!(held.chain().fingerprint(), device.certificate().fingerprint());
    assert!(device.is_pair() && !device.is_renewed());
    let status = engine.status().remove(0);
    assert_eq!(status.last_error.as_deref(), Some("could not move the key pair device-id-temp: internal error"));
    assert_eq!(status.attempts_failed, 1);
    drop(held);
    device.mend();
    renew_again(&engine, &issued).await;
    assert!(device.is_pair() && device.is_renewed());
    assert_eq!(engine.status()[0].attempts_failed, 0);
}

/// As after a reload, which has failures tried at once.
async fn renew_again(engine: &Engine, issued: &Arc<Issued>) {
    engine.replace(vec![Arc::clone(issued) as Arc<dyn Credential>]);
    engine.hold("device-id", "device-id").await.unwrap();
}

/// A preloaded key may not be replaced: 403 from our keyd, and 401 without a principal for the temporary key.
#[tokio::test]
async fn where_a_new_key_is_refused_the_old_one_is_kept() {
    for (call, status) in
        [("move key to device-id", 403), ("create key device-id-temp", 401), ("load key device-id-temp", 401)]
    {
        let device = Device::start();
        let old = device.certificate().leaf().unwrap().public_key().unwrap();
        device.fault(call, Fault::Answers(status));
        // Without waiting for the next attempt.
        renew(&device).await.unwrap();
        assert!(device.is_pair() && device.is_renewed(), "{call}");
        assert!(device.certificate().leaf().unwrap().public_key().unwrap().public_eq(&old), "{call}");
    }
}

#[tokio::test]
async fn a_crash_before_a_move_that_is_refused_ends_with_the_old_key() {
    let number = number_of("put device-id").await;
    let device = Device::start();
    let old = device.certificate().leaf().unwrap().public_key().unwrap();
    device.cut_at(number, Cut::After);
    assert!(is_cut(&device, renew(&device)).await);
    assert!(!device.is_pair());
    device.mend();
    device.fault("move key to device-id", Fault::Answers(403));
    renew(&device).await.unwrap();
    assert!(device.is_pair() && device.is_renewed());
    assert!(device.certificate().leaf().unwrap().public_key().unwrap().public_eq(&old));
}

/// The place of a call in a renewal, counted from 1.
async fn number_of(call: &str) -> usize {
    let device = Device::start();
    renew(&device).await.unwrap();
    device.all_calls().iter().position(|other| other == call).unwrap() + 1
}

#[tokio::test]
async fn a_move_that_was_done_after_all_is_a_success() {
    let device = Device::start();
    device.fault("move key to device-id", Fault::LiesAfter(500));
    renew(&device).await.unwrap();
    assert!(device.is_pair() && device.is_renewed());
}

#[tokio::test]
async fn what_became_of_a_move_without_an_answer_is_found_out() {
    let number = number_of("move key to device-id").await;
    for cut in [Cut::Before, Cut::After] {
        let device = Device::start();
        device.cut_at(number, cut);
        let issued = Arc::new(device.impatient(policy("80%", "4%"), Duration::from_secs(1)));
        let engine = Device::engine_of(&issued);
        engine.hold("device-id", "device-id").await.unwrap();
        assert!(device.is_pair() && device.is_renewed(), "{cut:?}");
        assert_eq!(engine.status()[0].last_error, None);
    }
}

#[tokio::test]
async fn a_pair_in_doubt_is_given_to_nobody() {
    let device = Device::start();
    device.fault("move key to device-id", Fault::Silent);
    let issued = Arc::new(device.impatient(policy("80%", "4%"), Duration::from_secs(1)));
    let engine = Device::engine_of(&issued);
    let all = async {
        let held = engine.hold("device-id", "device-id").await;
        // The key service is gone as soon as it has moved the key.
        assert!(matches!(held, Err(NotAvailable::Unusable { source: Some(_), .. })), "{held:?}");
    };
    let outage = async {
        device.until_called("move key to device-id").await;
        device.fault("load key device-id", Fault::Answers(500));
    };
    tokio::join!(all, outage);
    assert!(device.is_renewed(), "the certificate is not taken back");
    device.mend();
    engine.hold("device-id", "device-id").await.unwrap();
    assert!(device.is_pair() && device.is_renewed());
}

#[tokio::test]
async fn a_certificate_for_another_key_is_refused() {
    let device = Device::start();
    let pem = device.certificate().to_pem().unwrap();
    device.answer_requests_with(&pem);
    let issued = device.issued(policy("80%", "4%"));
    let failure = issued.renew(device.certificate()).await.unwrap_err();
    assert!(!failure.is_fatal());
    assert_eq!(failure.to_string(), "the certificate device-id-temp that was issued is for another key");
    device.answer_requests_with("no certificate");
    assert!(!issued.renew(device.certificate()).await.unwrap_err().is_fatal());
    assert_eq!(device.names().0, ["device-id"], "the temporary key is left behind");
}

#[tokio::test]
async fn a_temporary_certificate_that_stays_is_no_failure() {
    let device = Device::start();
    device.fault("delete device-id-temp", Fault::Answers(500));
    renew(&device).await.unwrap();
    assert!(device.is_pair() && device.is_renewed());
}

#[tokio::test]
async fn absence_is_told_from_failure() {
    let device = Device::start();
    let issued = device.issued(policy("80%", "4%"));
    device.fault("get device-id", Fault::Answers(500));
    assert!(!issued.current().await.unwrap_err().is_fatal());
    assert!(!issued.repair().await.unwrap_err().is_fatal());
    device.fault("get device-id", Fault::Answers(400));
    assert!(!issued.current().await.unwrap_err().is_fatal(), "400 alone says nothing");
    device.mend();
    for (stored, message) in [
        (None, "there is no certificate device-id"),
        (Some(""), "the certificate device-id is empty"),
        (Some("-----BEGIN CERTIFICATE-----"), "the certificate device-id is broken"),
    ] {
        device.store(stored);
        let failure = issued.current().await.unwrap_err();
        assert_eq!((failure.is_fatal(), failure.to_string().as_str()), (true, message));
        issued.repair().await.unwrap();
    }
}

#[tokio::test]
async fn a_lost_key_is_renewed_around() {
    let device = Device::start();
    device.lose_key();
    let failure = device.issued(policy("80%", "4%")).repair().await.unwrap_err();
    assert!(failure.is_fatal());
    assert_eq!(failure.to_string(), "the certificate device-id does not belong to the key pair device-id");
    renew(&device).await.unwrap();
    assert!(device.is_pair() && device.is_renewed());
}

#[derive(Default)]
struct Provisioner {
    refuses: bool,
    seen: Mutex<Vec<String>>,
}

impl Observer for Provisioner {
    fn before_commit<'a>(&'a self, new: &'a Renewed) -> Doing<'a, ()> {
        Box::pin(async move {
            self.seen.lock().unwrap().push(format!("before, key {}", new.key_id));
            if self.refuses { Err(Failure::retryable("DPS is down")) } else { Ok(()) }
        })
    }

    fn committed(&self, new: &Chain) {
        self.seen.lock().unwrap().push(format!("committed {}", new.certificates().len()));
    }
}

fn observed(device: &Device, observer: &Arc<Provisioner>) -> Issued {
    device.issued(policy("80%", "4%")).with_observer(Arc::clone(observer) as Arc<dyn Observer>)
}

#[tokio::test]
async fn the_caller_takes_part() {
    let device = Device::start();
    let observer = Arc::new(Provisioner::default());
    let engine = Device::engine_of(&Arc::new(observed(&device, &observer)));
    engine.hold("device-id", "device-id").await.unwrap();
    assert_eq!(*observer.seen.lock().unwrap(), ["before, key device-id-temp", "committed 1"]);

    let device = Device::start();
    let observer = Arc::new(Provisioner { refuses: true, ..Provisioner::default() });
    let engine = Device::engine_of(&Arc::new(observed(&device, &observer)));
    drop(engine.hold("device-id", "device-id").await);
    assert_eq!(*observer.seen.lock().unwrap(), ["before, key device-id-temp"]);
    assert!(device.is_pair() && !device.is_renewed());
    assert!(!device.calls().iter().any(|call| call.starts_with("put")), "{:?}", device.calls());
    assert_eq!(engine.status()[0].last_error.as_deref(), Some("DPS is down"));
}
