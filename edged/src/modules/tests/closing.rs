//! The end of the runtime: what it stops stays stopped.

use aziot_http::Shutdown;
use tokio::task::JoinSet;

use super::*;
use crate::shutdown::{self, Running};

impl World {
    /// Ends the runtime as a signal does.
    async fn shut_down(&self) {
        let management = Shutdown::new();
        let ended = management.clone();
        let mut server = JoinSet::new();
        server.spawn(async move {
            ended.cancelled().await;
            Ok(())
        });
        let (modules, sockets) = (Arc::clone(&self.modules), Arc::clone(&self.sockets));
        shutdown::stop(Running { modules, sockets, management, server }).await;
    }
}

#[tokio::test]
async fn the_end_stops_all_modules_and_closes_their_sockets() {
    let world = World::with_module().await;
    world.engine.add_container("nn", "exited", options("other"));
    world.modules.start(&name("mm")).await.unwrap();
    world.shut_down().await;
    assert_eq!(world.engine.containers(), [("mm".to_owned(), "exited"), ("nn".to_owned(), "exited")]);
    let stops: Vec<_> = world.engine.changes().into_iter().filter(|call| call.contains("/stop")).collect();
    assert!(stops.iter().all(|call| call.ends_with("/stop?t=25")) && !stops.is_empty(), "{stops:?}");
    assert!(world.sockets.ensure(&name("mm")).await.is_err());
}

#[tokio::test]
async fn nothing_starts_after_the_end_has_begun() {
    for module in ["mm", AGENT] {
        let world = World::new().await;
        world.engine.add_container(module, "running", options("old"));
        world.engine.publish("r.example/x:2");
        world.engine.fail("POST /images/create", Fault::Hang);
        let modules = Arc::clone(&world.modules);
        let mut updates = JoinSet::new();
        updates.spawn(
            async move { modules.update(&name(module), pulling(module, "r.example/x:2"), true).await.map(drop) },
        );
        while world.engine.changes().is_empty() {
            tokio::task::yield_now().await;
        }
        world.shut_down().await;
        // The agent's update was answered before it began.
        let outcome = updates.join_next().await.unwrap().unwrap();
        assert_eq!(outcome.is_ok(), module == AGENT);
        assert_eq!(world.engine.containers(), [(module.to_owned(), "exited")]);
        assert_eq!(world.mark(module).unwrap(), "old");

        let errors = [
            world.modules.start(&name(module)).await,
            world.modules.restart(&name(module)).await,
            world.modules.create(request("other", "image:1")).await.map(drop),
            world.modules.hold(&name(module)).await.replace(&checked(request(module, "image:1")).unwrap()).await,
        ];
        for error in errors.map(Result::unwrap_err) {
            assert!(chain(&error).to_string().contains("the runtime is stopping"), "{error:?}");
        }
        assert_eq!(world.engine.containers(), [(module.to_owned(), "exited")]);
    }
}

#[tokio::test]
async fn a_start_that_waits_for_the_stop_of_all_does_not_come_after_it() {
    let world = World::with_module().await;
    let turn = world.modules.hold(&name("mm")).await;
    let modules = Arc::clone(&world.modules);
    let start = async { modules.start(&name("mm")).await };
    let release = async {
        tokio::task::yield_now().await;
        world.modules.close();
        drop(turn);
    };
    let (stopped, started, ()) = tokio::join!(world.modules.stop_all(Duration::from_secs(1)), start, release);
    assert_eq!(stopped.unwrap(), []);
    assert!(started.is_err());
    assert_eq!(world.engine.containers(), [("mm".to_owned(), "exited")]);
}

#[tokio::test]
async fn a_module_whose_stop_fails_is_told() {
    let world = World::with_module().await;
    world.engine.fail(&format!("POST /containers/{:064x}/stop", 1), Fault::Refuse(500, "cannot stop"));
    assert_eq!(world.modules.stop_all(Duration::from_secs(1)).await.unwrap(), [name("mm")]);
    assert_eq!(world.modules.stop_all(Duration::from_secs(1)).await.unwrap(), []);
}
