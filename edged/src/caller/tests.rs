//! Who a caller is taken for, with an engine whose containers the test makes up and a `/proc` of the test's own. The processes are real.

pub(crate) mod stage;

use std::{sync::Arc, time::Duration};

use aziot_http::{Peer, testing};
use serde_json::json;

use super::*;
use stage::{Killed, Stage, id, own_pid};

/// Container ids of the tests.
const SENSOR: char = 'a';
const AGENT_ID: char = 'b';

fn peer_of(pid: u32) -> Peer {
    let process = Some(testing::process(pid));
    Peer { process, ..Peer::new(0, 0, i32::try_from(pid).unwrap()) }
}

/// A new connection of this process.
fn peer() -> Peer {
    peer_of(own_pid())
}

fn by_socket(listener: &str) -> Peer {
    Peer { listener: Some(Arc::from(listener)), ..peer() }
}

/// This process is one of the module `sensor`.
async fn stage() -> Stage {
    let stage = Stage::new().await;
    stage.module(SENSOR, "sensor");
    stage.place(own_pid(), &format!("0::/docker/{}\n", id(SENSOR)), 2);
    stage
}

#[tokio::test]
async fn a_process_is_the_module_of_its_container_and_the_engine_is_asked_once_for_each() {
    let stage = stage().await;
    let callers = stage.callers();
    let connection = peer();
    let caller = callers.module(&connection).await.unwrap();
    assert_eq!((&*caller.module, &*caller.container), ("sensor", id(SENSOR).as_str()));
    assert_eq!(callers.module(&connection).await.unwrap(), caller);
    assert_eq!(callers.module(&peer()).await.unwrap(), caller, "another connection of the process");
    // The second time about the container's first process.
    assert_eq!(stage.questions(), 2);

    // Another process with the same pid, as it seems.
    stage.start(own_pid(), 77);
    assert_eq!(callers.module(&peer()).await.unwrap(), caller);
    assert_eq!(stage.questions(), 3);
    assert_eq!(callers.module(&connection).await.unwrap(), caller, "a connection stays with its process");
    assert_eq!(stage.questions(), 3);
}

#[tokio::test]
async fn a_module_acts_for_itself_and_by_its_own_socket_alone() {
    let stage = stage().await;
    let callers = stage.callers();
    for identity in ["sensor", "$sensor"] {
        assert_eq!(&*callers.own(&peer(), identity).await.unwrap().module, "sensor");
        assert!(callers.own(&by_socket("sensor"), identity).await.is_ok());
    }
    let other_socket = callers.own(&by_socket("other"), "sensor").await.unwrap_err();
    assert!(matches!(other_socket, NotAModule::OtherSocket { .. }), "{other_socket}");
    for identity in ["other", "$edgeAgent", "senso", "sensor2", "Sensor", "sensor$", "$$sensor", "/sensor", ""] {
        let refused = callers.own(&peer(), identity).await.unwrap_err();
        assert!(matches!(refused, NotAModule::Other { .. }), "{identity}: {refused}");
    }
    let refused = callers.agent(&peer()).await.unwrap_err();
    assert_eq!(refused.to_string(), "sensor is not edgeAgent");

    stage.module(AGENT_ID, "edgeAgent");
    let agent = Killed::start();
    stage.place(agent.0.id(), &format!("0::/docker/{}\n", id(AGENT_ID)), 2);
    assert!(callers.agent(&peer_of(agent.0.id())).await.is_ok());
    assert!(callers.own(&peer_of(agent.0.id()), "$edgeAgent").await.is_ok());
}

#[tokio::test]
async fn whoever_is_in_no_container_of_the_engine_is_nobody() {
    let stage = stage().await;
    for cgroups in ["0::/\n", "0::/user.slice/user-0.slice/session-1.scope\n", "", &format!("0::/docker/{}\n", id('c'))]
    {
        stage.place(own_pid(), cgroups, 1);
        let refused = stage.callers().module(&peer()).await.unwrap_err();
        assert!(matches!(refused, NotAModule::NoContainer(_)), "{cgroups}: {refused}");
    }
    let unknown = Peer::new(0, 0, 1);
    assert!(matches!(stage.callers().module(&unknown).await, Err(NotAModule::NoProcess)));
}

#[tokio::test]
async fn a_container_without_the_owners_label_is_no_module_whatever_its_name() {
    let stage = stage().await;
    stage.change(SENSOR, |container| container["Config"]["Labels"] = json!({ "x": "y" }));
    let refused = stage.callers().own(&peer(), "sensor").await.unwrap_err();
    assert!(matches!(&refused, NotAModule::Foreign(name) if name == "sensor"), "{refused}");
    // One that is about to take a module's place does not run yet.
    stage.module(SENSOR, &Name::new("sensor").unwrap().replacement());
    assert!(matches!(stage.callers().module(&peer()).await, Err(NotAModule::Foreign(_))));
}

#[tokio::test]
async fn a_container_called_like_anothers_id_is_not_that_one() {
    let stage = stage().await;
    stage.change(SENSOR, |container| container["Id"] = json!(id('d')));
    assert!(matches!(stage.callers().module(&peer()).await, Err(NotAModule::NoContainer(_))));
}

#[tokio::test]
async fn a_cgroup_that_only_bears_the_name_of_a_containers_is_not_it() {
    let stage = stage().await;
    let forged = format!("0::/user.slice/user-1000.slice/user@1000.service/docker/{}\n", id(SENSOR));
    stage.place(own_pid(), &forged, 2);
    let refused = stage.callers().module(&peer()).await.unwrap_err();
    assert!(matches!(refused, NotAModule::Outside { why: Outside::Cgroup, .. }), "{refused}");
}

#[tokio::test]
async fn the_innermost_container_that_the_process_is_really_in_counts() {
    let stage = stage().await;
    stage.module('e', "nested");
    // This engine runs in a container of another one.
    let outer = format!("0::/docker/{}/docker/{}\n", id('f'), id(SENSOR));
    stage.place(own_pid(), &outer, 2);
    stage.place_first(SENSOR, &outer);
    assert_eq!(&*stage.callers().module(&peer()).await.unwrap().module, "sensor");
    // A module has made a cgroup with the id of another module in its own.
    stage.place_first(SENSOR, &format!("0::/docker/{}\n", id(SENSOR)));
    stage.place(own_pid(), &format!("0::/docker/{}/docker/{}\n", id(SENSOR), id('e')), 2);
    assert_eq!(&*stage.callers().module(&peer()).await.unwrap().module, "sensor");
}

#[tokio::test]
async fn a_container_that_is_put_below_a_modules_cgroup_is_not_that_module() {
    let stage = stage().await;
    stage.module('e', "other");
    let below = format!("0::/docker/{}/{}\n", id(SENSOR), id('e'));
    stage.place_first('e', &below);
    stage.place(own_pid(), &below, 2);
    assert_eq!(&*stage.callers().module(&peer()).await.unwrap().module, "other");
    stage.change('e', |container| container["Config"]["Labels"] = json!({}));
    let refused = stage.callers().module(&peer()).await.unwrap_err();
    assert!(matches!(&refused, NotAModule::Foreign(name) if name == "other"), "{refused}");
}

#[tokio::test]
async fn a_first_process_whose_pid_may_be_anothers_by_now_shows_nothing() {
    let stage = stage().await;
    for change in [
        |stage: &Stage| stage.change(SENSOR, |container| container["State"]["Pid"] = json!(1)),
        |stage: &Stage| {
            stage.change(SENSOR, |container| container["State"]["StartedAt"] = json!("2024-05-01T11:00:00Z"));
        },
        |stage: &Stage| stage.end_first(SENSOR),
    ] {
        stage.module(SENSOR, "sensor");
        let callers = stage.callers();
        let asked = stage.questions();
        stage.hold_after(asked + 1);
        let peer = peer();
        let (refused, ()) = tokio::join!(callers.module(&peer), async {
            stage.asked(asked + 2).await;
            change(&stage);
            stage.let_go();
        });
        let refused = refused.unwrap_err();
        assert!(matches!(refused, NotAModule::Outside { why: Outside::NotRunning, .. }), "{refused}");
    }
    // One that is known is held, and counts no more once it has ended.
    stage.module(SENSOR, "sensor");
    let callers = stage.callers();
    assert!(callers.module(&peer()).await.is_ok());
    stage.end_first(SENSOR);
    stage.start(own_pid(), 77);
    assert!(matches!(callers.module(&peer()).await, Err(NotAModule::Outside { .. })));
}

#[tokio::test]
async fn the_pid_namespace_must_be_that_of_the_container() {
    let stage = stage().await;
    let cgroups = format!("0::/docker/{}\n", id(SENSOR));
    // A process of the host in the container's cgroup.
    stage.place(own_pid(), &cgroups, 1);
    let refused = stage.callers().module(&peer()).await.unwrap_err();
    assert!(matches!(refused, NotAModule::Outside { why: Outside::Namespace, .. }), "{refused}");
    // The container has the host's pids, or those of another container, which has the host's.
    stage.place_first_at(SENSOR, &cgroups, 1);
    assert!(stage.callers().module(&peer()).await.is_ok());
    // One of its processes has made a namespace for its children.
    stage.place_first(SENSOR, &cgroups);
    stage.place(own_pid(), &cgroups, 3);
    assert_eq!(&*stage.callers().module(&peer()).await.unwrap().module, "sensor");
}

#[tokio::test]
async fn a_container_in_which_nothing_runs_has_no_callers() {
    let stage = stage().await;
    stage.change(SENSOR, |container| container["State"]["Pid"] = json!(0));
    let refused = stage.callers().module(&peer()).await.unwrap_err();
    assert!(matches!(refused, NotAModule::Outside { why: Outside::NotRunning, .. }), "{refused}");
    // Its first process has ended since.
    stage.change(SENSOR, |container| container["State"]["Pid"] = json!(i32::MAX));
    assert!(matches!(stage.callers().module(&peer()).await, Err(NotAModule::Outside { .. })));
}

#[tokio::test]
async fn whoever_ends_while_the_engine_is_asked_has_no_rights() {
    let stage = stage().await;
    let callers = stage.callers();
    let mut child = Killed::start();
    stage.place(child.0.id(), &format!("0::/docker/{}\n", id(SENSOR)), 2);
    let peer = peer_of(child.0.id());
    stage.hold();
    let (refused, ()) = tokio::join!(callers.own(&peer, "sensor"), async {
        stage.asked(1).await;
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        stage.let_go();
    });
    assert!(matches!(refused, Err(NotAModule::Ended(_))), "{refused:?}");
}

#[tokio::test]
async fn rights_end_with_the_process_though_its_connection_lives_on() {
    let stage = stage().await;
    let callers = stage.callers();
    let mut child = Killed::start();
    stage.place(child.0.id(), &format!("0::/docker/{}\n", id(SENSOR)), 2);
    let (old, new) = (peer_of(child.0.id()), peer_of(child.0.id()));
    assert!(callers.own(&old, "sensor").await.is_ok());
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    for peer in [old, new] {
        assert!(matches!(callers.own(&peer, "sensor").await, Err(NotAModule::Ended(_))));
    }
}

#[tokio::test]
async fn an_engine_that_fails_says_nothing_about_the_caller() {
    let stage = stage().await;
    let callers = stage.callers();
    stage.refuse(503);
    let failed = callers.own(&peer(), "sensor").await.unwrap_err();
    assert!(matches!(failed, NotAModule::Engine(_)), "{failed}");
    stage.refuse(404);
    assert!(matches!(callers.own(&peer(), "sensor").await, Err(NotAModule::NoContainer(_))));
    stage.refuse(200);
    assert!(callers.own(&peer(), "sensor").await.is_ok(), "nothing of it is remembered");
    stage.refuse(503);
    assert!(callers.own(&peer(), "sensor").await.is_ok(), "who is known stays known");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_hangs_is_not_waited_for() {
    let stage = stage().await;
    stage.hold();
    let (callers, peer) = (stage.callers(), peer());
    let failed = tokio::time::timeout(LIMIT + Duration::from_secs(1), callers.module(&peer));
    assert!(matches!(failed.await.unwrap(), Err(NotAModule::TimedOut)));
}
