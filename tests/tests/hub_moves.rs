//! The device is moved to another hub by DPS while a module runs: its identities follow, and a module's key stays valid where the module stays
//! the same.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{
    Daemon, Device, Reply, at_once,
    calls::{VERSION, create_module, module_ids},
    device::REGISTRATION_ID,
    eventually,
    module::{self, Identity},
    provisioned::{Certificate, Kind, Provisioned, Setup},
    raw,
};
use serde_json::json;

const LIFETIME: Duration = Duration::from_secs(300);
const RECOVERY: Duration = Duration::from_secs(90);
/// The other hub is this machine too, by another name.
const OTHER_HUB: &str = "127.0.0.1";
const KINDS: [Kind; 3] = [Kind::DpsKey, Kind::DpsCertificate(Certificate::LocalCa), Kind::DpsTpm];

/// A device with a cloud of two hubs, at the first of which are its modules `sampler` and, by configuration, `resident`.
struct Scene {
    device: Provisioned,
    kind: Kind,
    sampler: Identity,
    /// What the key of `sampler` makes of a message.
    signature: String,
}

impl Scene {
    fn new(kind: Kind) -> Result<Self> {
        let mut device = Setup::of(kind).cloud_argument("--hub").cloud_argument(OTHER_HUB).configure()?;
        device.be_impatient()?;
        let principal = "[[principal]]\nuid = 4711\nname = \"resident\"\nidtype = [\"module\"]\n";
        device.drop_in(Daemon::Identity, "40-resident.toml", principal)?;
        device.start_all()?;
        let sampler = Identity::create(&device, "sampler").with_context(|| format!("{kind:?}"))?;
        ensure!(module_ids(&device)?.contains(&"resident".to_owned()), "{kind:?}: no resident");
        let signature = module::sign(&device, &sampler.key_handle, b"message")?;
        Ok(Self { device, kind, sampler, signature })
    }

    fn other_hub(&self) -> Result<String> {
        Ok(self.device.cloud()?.replace("localhost", OTHER_HUB))
    }

    /// Moves the device to this hub. At the one that it had it is unknown at once.
    fn move_to(&self, hub: &str, migrate: bool) -> Result<()> {
        let change = json!({ "assignedHub": hub, "migrate": migrate }).to_string();
        let target = format!("/registrations/{REGISTRATION_ID}");
        self.device.control("PUT", &target, Some(&change))?.expect(204).map(|_| ())
    }

    fn hub(&self) -> Result<String> {
        Ok(self.device.identity()?["hubName"].as_str().context("no hub")?.to_owned())
    }

    /// The same module with the same key, at this hub.
    fn sampler_is_the_same_at(&self, hub: &str) -> Result<()> {
        let kind = self.kind;
        assert_eq!(self.hub()?, hub, "{kind:?}");
        let read = Identity::load(&self.device, "sampler").with_context(|| format!("{kind:?}"))?;
        assert_eq!((&read.hub, &read.generation), (&hub.to_owned(), &self.sampler.generation), "{kind:?}");
        assert_eq!(module::sign(&self.device, &read.key_handle, b"message")?, self.signature, "{kind:?}");
        // A module that has not asked again goes on with the handle that it has.
        let old = Identity { key_handle: self.sampler.key_handle.clone(), ..read.clone() };
        token_works(&self.device, &old).with_context(|| format!("{kind:?}, old handle"))?;
        token_works(&self.device, &read).with_context(|| format!("{kind:?}"))
    }
}

fn reprovision(device: &Device) -> Result<Reply> {
    let target = "/identities/device/reprovision?api-version=2021-12-01";
    raw::call(&device.socket(Daemon::Identity), "POST", target, Some(r#"{"type":"aziot"}"#))
}

fn token_works(device: &Device, module: &Identity) -> Result<()> {
    let sent = module.send_message(device, &module.token(device, LIFETIME)?, "{}")?;
    ensure!(sent.status == 204, "{sent:?}");
    Ok(())
}

fn fault(device: &Device, fault: &str) -> Result<()> {
    device.control("PUT", "/fault", Some(fault))?.expect(204).map(|_| ())
}

/// The first read of the module, by a program that asks all the time, that is neither the old module nor the new; and how many there were.
fn read_in_a_loop(device: &Device, hubs: &[String], is_over: &AtomicBool) -> Result<usize> {
    let mut reads = 0;
    while !is_over.load(Ordering::SeqCst) {
        let target = format!("/identities/modules/sampler?{VERSION}&type=aziot");
        let reply = raw::call(&device.socket(Daemon::Identity), "GET", &target, None)?;
        match reply.status {
            200 => {
                let (device_id, hub) = (reply.text("/spec/deviceId")?, reply.text("/spec/hubName")?);
                ensure!(device_id == REGISTRATION_ID && hubs.contains(&hub), "{reply:?}");
            }
            // The hub that was left says so, until the device has learned of the other.
            404 => ensure!(reply.message().starts_with("Hub client error"), "{reply:?}"),
            _ => ensure!(false, "{reply:?}"),
        }
        reads += 1;
    }
    Ok(reads)
}

/// `design.md`: "modules and their identities are kept when the new identity is the same as the old".
#[test]
fn modules_that_move_along_keep_their_keys() -> Result<()> {
    at_once(KINDS, |kind| {
        let scene = Scene::new(kind)?;
        let (first, second) = (scene.device.cloud()?, scene.other_hub()?);
        let hubs = [first.clone(), second.clone()];
        let is_over = AtomicBool::new(false);
        let reads = thread::scope(|scope| -> Result<usize> {
            let device: &Device = &scene.device;
            let reader = scope.spawn(|| read_in_a_loop(device, &hubs, &is_over));
            // There and back again.
            let moved = [&second, &first].into_iter().try_for_each(|hub| {
                scene.move_to(hub, true)?;
                reprovision(device)?.expect(204)?;
                scene.sampler_is_the_same_at(hub)
            });
            is_over.store(true, Ordering::SeqCst);
            let reads = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
            moved.map(|()| reads)
        })?;
        ensure!(reads > 10, "{kind:?}: only {reads} reads");
        ensure!(module_ids(&scene.device)?.contains(&"resident".to_owned()), "{kind:?}");
        Ok(())
    })
    .map(drop)
}

/// Modules that stay behind are gone: what the device remembers of them was the old hub's. Those that the settings ask for come anew.
#[test]
fn modules_that_stay_behind_are_not_served_any_more() -> Result<()> {
    at_once(KINDS, |kind| {
        let mut scene = Scene::new(kind)?;
        let second = scene.other_hub()?;
        scene.move_to(&second, false)?;
        reprovision(&scene.device)?.expect(204)?;
        assert_eq!(scene.hub()?, second, "{kind:?}");
        let target = format!("/identities/modules/sampler?{VERSION}&type=aziot");
        let gone = scene.device.call(Daemon::Identity, "GET", &target, None)?;
        ensure!(gone.expect(404)?.message().starts_with("Hub client error"), "{kind:?}");
        let ids = module_ids(&scene.device)?;
        ensure!(ids.contains(&"resident".to_owned()) && !ids.contains(&"sampler".to_owned()), "{kind:?}: {ids:?}");
        token_works(&scene.device, &Identity::load(&scene.device, "resident")?)?;

        let again = Identity::create(&scene.device, "sampler")?;
        ensure!(again.generation != scene.sampler.generation && again.hub == second, "{kind:?}: {again:?}");
        token_works(&scene.device, &again)?;
        // The copies are those of the new hub from now on.
        scene.device.stop_cloud()?;
        scene.device.restart_all()?;
        assert_eq!(Identity::load(&scene.device, "sampler")?.generation, again.generation, "{kind:?}");
        assert_eq!(scene.hub()?, second, "{kind:?}");
        Ok(())
    })
    .map(drop)
}

/// `identity.md`, 3.4: a hub that does not know the device sends it back to DPS at its start, without anybody asking.
#[test]
fn a_device_that_was_off_follows_at_its_start() -> Result<()> {
    at_once(KINDS, |kind| {
        let mut scene = Scene::new(kind)?;
        let second = scene.other_hub()?;
        let _ = scene.device.stop_daemons()?;
        scene.move_to(&second, true)?;
        scene.device.start_all()?;
        eventually("the other hub", RECOVERY, || Ok((scene.hub()? == second).then_some(())))
            .with_context(|| format!("{kind:?}"))?;
        scene.sampler_is_the_same_at(&second)?;
        Ok(())
    })
    .map(drop)
}

/// `identity.md`, W5: "provision first, then replace state; on failure keep serving the old device and return the same 404".
#[test]
fn a_move_that_dps_cannot_tell_yet_leaves_the_device_as_it_was() -> Result<()> {
    at_once(KINDS, |kind| {
        let mut scene = Scene::new(kind)?;
        let (first, second) = (scene.device.cloud()?, scene.other_hub()?);
        scene.move_to(&second, true)?;
        fault(&scene.device, r#"{"kind":"status","status":503,"matching":"/registrations/"}"#)?;
        let refused = reprovision(&scene.device)?;
        ensure!(refused.expect(404)?.message().starts_with("DPS client error"), "{kind:?}");
        assert_eq!(scene.hub()?, first, "{kind:?}");
        // Not even a restart takes it away.
        scene.device.kill_all()?;
        assert_eq!(scene.hub()?, first, "{kind:?}");
        assert_eq!(create_module(&scene.device, "new")?.status, 404, "{kind:?}");

        scene.device.control("DELETE", "/fault", None)?.expect(204)?;
        eventually("the other hub", RECOVERY, || Ok((scene.hub()? == second).then_some(())))
            .with_context(|| format!("{kind:?}"))?;
        eventually("the module there", RECOVERY, || Ok(Identity::load(&scene.device, "sampler").ok()))?;
        scene.sampler_is_the_same_at(&second)?;
        Ok(())
    })
    .map(drop)
}
