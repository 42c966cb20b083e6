//! Containers that are exchanged or removed on an engine that fails, or is cut off, at any step.

use super::*;

const OLD: &str = "POST /containers/0000000000000000000000000000000000000000000000000000000000000001";
const NEW: &str = "POST /containers/0000000000000000000000000000000000000000000000000000000000000002";
const DEAD: Fault = Fault::Leave("dead", 500, "unable to remove filesystem: device or resource busy");

impl World {
    /// Asserts that the running module `mm` with this mark is all that there is.
    fn assert_only(&self, mark: &str, what: &str) {
        assert_eq!(self.engine.containers(), [("mm".to_owned(), "running")], "{what}");
        assert_eq!(self.mark("mm").unwrap(), mark, "{what}");
    }

    /// As `assert_only`, where the old container is left under another name, and removed by the next start.
    async fn assert_new_beside_litter(&self, what: &str) {
        let made = self.engine.container("mm").unwrap();
        assert_eq!((made.options["Mark"].as_str(), made.status), (Some("new"), "running"), "{what}");
        assert_eq!(self.modules.list().await.unwrap().len(), 1, "{what}");
        assert_eq!(self.modules.names().await.unwrap().len(), 1, "{what}");
        assert_eq!(self.engine.containers().len(), 2, "{what}");
        self.modules.mend().await.unwrap();
        self.assert_only("new", what);
    }
}

#[tokio::test(start_paused = true)]
async fn an_old_container_that_cannot_be_removed_is_litter() {
    for fault in [DEAD, Fault::Refuse(500, "device or resource busy"), Fault::Down] {
        let world = World::with_module().await;
        world.engine.fail("DELETE /containers/", fault);
        if fault == Fault::Down {
            assert!(world.update(true).await.is_err(), "the start fails");
            world.engine.recover();
            world.modules.start(&name("mm")).await.unwrap();
        } else {
            world.update(true).await.unwrap();
        }
        world.assert_new_beside_litter(&format!("{fault:?}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_that_removes_itself_is_replaced_and_removed() {
    let options = json!({ "Image": "image:1", "Mark": "old", "HostConfig": { "AutoRemove": true },
        "Labels": { OWNER_LABEL: OWNER } });
    for call in ["", "rename", "stop"] {
        let world = World::new().await;
        world.engine.add_container("mm", "running", options.clone());
        match call {
            "rename" => world.engine.fail(&format!("{OLD}/rename"), Fault::Refuse(500, "no name any more")),
            "stop" => world.engine.fail(&format!("{OLD}/stop"), Fault::Leave("removing", 500, "no answer")),
            _ => {}
        }
        world.update(true).await.unwrap_or_else(|error| panic!("{call}: {error:?}"));
        let made = world.engine.container("mm").unwrap();
        assert_eq!((made.options["Mark"].as_str(), made.status), (Some("new"), "running"), "{call}");
    }
    let world = World::new().await;
    world.engine.add_container("mm", "running", options);
    world.modules.stop(&name("mm")).await.unwrap();
    world.modules.remove(&name("mm")).await.unwrap();
    assert!(world.engine.containers().is_empty());
}

#[tokio::test]
async fn a_dead_container_blocks_no_name() {
    let world = World::with_module().await;
    world.engine.fail("DELETE /containers/", DEAD);
    world.modules.remove(&name("mm")).await.unwrap();
    assert!(world.modules.list().await.unwrap().is_empty());
    world.modules.create(request("mm", "image:1")).await.unwrap();
    world.modules.start(&name("mm")).await.unwrap();
    world.assert_new_beside_litter("removed").await;

    // One that was dead before, and cannot be removed now either.
    for way in ["remove", "create", "update"] {
        let world = World::new().await;
        world.engine.add_container("mm", "dead", options("old"));
        world.engine.fail("DELETE /containers/", DEAD);
        if way == "remove" {
            world.modules.remove(&name("mm")).await.unwrap();
        }
        if way == "update" {
            world.update(false).await.unwrap();
        } else {
            world.modules.create(request("mm", "image:1")).await.unwrap();
        }
        world.modules.start(&name("mm")).await.unwrap();
        world.assert_new_beside_litter(way).await;
    }
}

#[tokio::test]
async fn a_half_removed_container_gives_way_to_the_new_one() {
    for (way, fault) in [("mend", None), ("start", None), ("mend", Some(DEAD)), ("start", Some(DEAD))] {
        let world = World::new().await;
        world.engine.add_container("mm", "dead", options("old"));
        world.engine.add_container("mm.aziot-edged-replacement", "created", options("new"));
        if let Some(fault) = fault {
            world.engine.fail("DELETE /containers/", fault);
        }
        if way == "mend" {
            world.modules.mend().await.unwrap();
        }
        world.modules.start(&name("mm")).await.unwrap();
        match fault {
            Some(_) => world.assert_new_beside_litter(way).await,
            None => world.assert_only("new", way),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_module_that_could_not_be_replaced_goes_on() {
    let faults = [
        (format!("{OLD}/stop"), Fault::Leave("exited", 500, "the answer is lost")),
        (format!("{OLD}/stop"), Fault::Refuse(500, "cannot stop")),
        (format!("{OLD}/rename"), Fault::Refuse(500, "no such name")),
        (format!("{NEW}/rename"), Fault::Refuse(500, "no such name")),
    ];
    for (call, fault) in faults {
        for state in ["running", "restarting", "paused"] {
            let world = World::new().await;
            world.engine.add_container("mm", state, options("old"));
            world.engine.fail(&call, fault);
            assert!(world.update(true).await.is_err());
            let left = if fault == Fault::Refuse(500, "cannot stop") { state } else { "running" };
            assert_eq!(world.engine.containers(), [("mm".to_owned(), left)], "{call} {fault:?}");
            assert_eq!(world.mark("mm").unwrap(), "old");
            // The new one never ran: what was made for it alone goes as well.
            let new = format!("DELETE /containers/{:064x}?force=true&v=true", 2);
            assert!(world.engine.changes().contains(&new), "{call} {fault:?}");
        }
    }
    let world = World::new().await;
    world.engine.add_container("mm", "exited", options("old"));
    world.engine.fail(&format!("{OLD}/rename"), Fault::Refuse(500, "no such name"));
    assert!(world.update(true).await.is_err());
    assert_eq!(world.engine.containers(), [("mm".to_owned(), "exited")]);
}

#[tokio::test(start_paused = true)]
async fn one_broken_connection_breaks_no_update_off() {
    for call in [&format!("{OLD}/rename"), &format!("{NEW}/rename"), "DELETE /containers/"] {
        for fault in [Fault::Cut, Fault::CutAfter] {
            let world = World::with_module().await;
            world.engine.fail(call, fault);
            world.update(true).await.unwrap_or_else(|error| panic!("{call} {fault:?}: {error:?}"));
            world.assert_only("new", call);
        }
    }
}

/// Wherever an update breaks off, the next try has the new module, and a start of the runtime has the old or the new one; nothing else is left.
#[tokio::test(start_paused = true)]
async fn an_update_that_breaks_off_is_ended_by_the_next_try_and_by_the_next_start() {
    let (stop, leave, take) = (format!("{OLD}/stop"), format!("{OLD}/rename"), format!("{NEW}/rename"));
    for call in ["POST /containers/create", &stop, &leave, &take, "DELETE /containers/"] {
        for fault in [Fault::Down, Fault::DownAfter, Fault::Refuse(500, "no space left on device")] {
            for again in [true, false] {
                let what = format!("{call} {fault:?} {again}");
                let world = World::with_module().await;
                world.engine.fail(call, fault);
                let _ = world.update(true).await;
                world.engine.recover();
                if again {
                    world.update(true).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
                    world.modules.mend().await.unwrap();
                    world.assert_only("new", &what);
                } else {
                    world.modules.mend().await.unwrap();
                    let left = world.engine.containers();
                    assert!(matches!(left.as_slice(), [(left, _)] if left == "mm"), "{what}: {left:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_removed_module_does_not_come_back() {
    let world = World::with_module().await;
    world.engine.add_container("mm.aziot-edged-replacement", "created", options("new"));
    world.modules.remove(&name("mm")).await.unwrap();
    assert!(world.engine.containers().is_empty());

    // Nor is anything removed as long as it could.
    let world = World::with_module().await;
    world.engine.add_container("mm.aziot-edged-replacement", "created", options("new"));
    world.engine.fail("DELETE /containers/", Fault::Refuse(500, "busy"));
    assert!(world.modules.remove(&name("mm")).await.is_err());
    assert_eq!(world.engine.containers().len(), 2);
}

#[tokio::test]
async fn the_beginning_of_many_ids_is_no_modules_name() {
    let world = World::new().await;
    let many = Fault::Refuse(500, "Multiple IDs found with provided prefix: db");
    world.engine.fail("GET /containers/db/json", many);
    assert_eq!(world.modules.get(&name("db")).await.unwrap_err().status(), StatusCode::NOT_FOUND);
    world.engine.fail("GET /containers/db/json", many);
    world.engine.fail("GET /containers/db/json", many);
    world.modules.create(request("db", "image:1")).await.unwrap();
}
