//! Far more modules than a device usually has: how often the hub is asked about them.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use tokio::time::timeout;

use super::world::{World, eventually};

const MODULES: usize = 500;
const LIST: &str = "/devices/dev-1/modules";

/// Settings with a principal for each number.
fn config(world: &World, numbers: impl IntoIterator<Item = usize>) -> String {
    let mut more = world.daemon();
    for number in numbers {
        let uid = 1_000_000 + number;
        writeln!(more, "[[principal]]\nuid = {uid}\nname = 'module-{number:03}'\nidtype = ['module']").unwrap();
    }
    world.dps("dev-1", &more)
}

/// Calls to the hub so far: of the list, and in all.
fn calls(world: &World) -> (usize, usize) {
    (world.network.count_exactly(&format!("GET {LIST}")), world.network.count("", LIST))
}

#[tokio::test]
async fn five_hundred_cost_a_list_and_two_calls_for_each_new_one() {
    let world = World::with_cloud(|cloud| cloud.max_modules = 600).await;
    let service = world.start(&config(&world, 0..MODULES)).await;
    service.settled().await;
    assert_eq!(calls(&world), (1, 1 + 2 * MODULES));
    assert_eq!(world.network.count("PUT", "/modules/"), 2 * MODULES);
    assert_eq!(world.modules_at_hub("dev-1").await.len(), MODULES + 2);
    drop(service);

    // All are known to be ours.
    let service = world.start(&config(&world, 0..MODULES)).await;
    service.settled().await;
    assert_eq!(calls(&world), (2, 2 + 2 * MODULES));

    // One goes, two come.
    service.reload(&config(&world, 1..MODULES + 2)).await;
    eventually("the modules follow", async || world.network.count("PUT", "/modules/") == 2 * MODULES + 4).await;
    eventually("the first one goes", async || world.network.count("DELETE", "/modules/module-000") == 1).await;
    assert_eq!(calls(&world), (3, 3 + 2 * MODULES + 5));
}

#[tokio::test]
async fn one_that_the_hub_refuses_does_not_keep_the_others_back() {
    let world = World::new().await;
    world.control("PUT", "/fault", r#"{"kind":"status","status":403,"matching":"/modules/module-003"}"#).await;
    let service = world.start(&config(&world, 0..20)).await;
    service.settled().await;
    assert_eq!(calls(&world), (1, 1 + 2 * 19 + 1));
    world.control("PUT", "/fault", r#"{"kind":"none"}"#).await;
    // The remainder is tried again by itself.
    eventually("the last one is made", async || world.network.count("PUT", "/modules/") == 2 * 20 + 1).await;
    eventually("it has its keys", async || service.identities.own(1_000_003).await.is_ok()).await;
    assert_eq!(world.modules_at_hub("dev-1").await.len(), 22);
}

#[tokio::test]
async fn a_hub_that_goes_away_is_not_asked_for_each_module() {
    let world = World::new().await;
    world.control("PUT", "/fault", r#"{"kind":"status","status":503,"matching":"/modules/module-"}"#).await;
    let service = world.start(&config(&world, 0..40)).await;
    service.settled().await;
    let (_, all) = calls(&world);
    assert!((8..=16).contains(&all), "{all} calls");
}

/// How many files are in the folders of this one.
fn copies(modules: &Path) -> usize {
    fs::read_dir(modules).unwrap().map(|folder| fs::read_dir(folder.unwrap().path()).unwrap().count()).sum()
}

#[tokio::test]
async fn all_copies_follow_the_list_however_many() {
    const MANY: usize = 300;
    let world = World::with_cloud(|cloud| cloud.max_modules = 600).await;
    let service = world.start(&config(&world, 0..MANY)).await;
    service.settled().await;
    drop(service);

    // Restored without its copies: the list brings them all, and is word enough for each when the hub is silent afterwards.
    let folder = world.home().join("modules");
    fs::remove_dir_all(&folder).unwrap();
    let service = world.start(&config(&world, 0..MANY)).await;
    service.settled().await;
    assert_eq!(copies(&folder), MANY + 2);
    world.network.swallow("").await;
    for number in (0..MANY).step_by(20) {
        let path = format!("/identities/modules/module-{number:03}?type=aziot");
        timeout(Duration::from_secs(5), service.json("GET", &path, "")).await.expect(&path);
    }
    world.network.mend();
    drop(service);

    // And all go that were deleted elsewhere.
    let elsewhere = world.start(&config(&world, []).replace("/identityd'", "/elsewhere'")).await;
    for number in 0..MANY {
        let path = format!("/identities/modules/module-{number:03}?type=aziot");
        assert_eq!(elsewhere.send("DELETE", &path, "").await.status, 204);
    }
    let service = world.start(&config(&world, [])).await;
    service.settled().await;
    assert_eq!(copies(&folder), 2);
}
