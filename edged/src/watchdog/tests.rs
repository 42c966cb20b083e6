use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use aziot_edged_api::{config::AGENT, module::Status};
use aziot_http::Shutdown;
use tokio::sync::Notify;

use super::{round::Agent, *};

/// What the engine says to the next look at the agent.
enum Look {
    Is(Status),
    Gone,
    Fails,
    /// Never answers.
    Hangs,
}

/// An engine that says what it is told, and notes when what was done.
#[derive(Default)]
struct Engine {
    looks: Mutex<VecDeque<Look>>,
    done: Mutex<Vec<(u64, String)>>,
    looked: Notify,
    is_busy: AtomicBool,
    modules: Vec<&'static str>,
    /// What fails the first time, and then does not: `list`, or an action and its module.
    failing: Mutex<Vec<&'static str>>,
}

struct Scripted<'a>(&'a Engine);

impl Engine {
    fn new(looks: impl IntoIterator<Item = Look>) -> Self {
        Self { looks: Mutex::new(looks.into_iter().collect()), ..Self::default() }
    }

    fn note(&self, begun: Instant, what: String) {
        self.done.lock().unwrap().push((begun.elapsed().as_secs(), what));
    }

    fn fails(&self, what: &str) -> bool {
        let mut failing = self.failing.lock().unwrap();
        failing.iter().position(|failure| *failure == what).map(|position| failing.swap_remove(position)).is_some()
    }

    fn done(&self) -> Vec<String> {
        self.done.lock().unwrap().iter().map(|(_, what)| what.clone()).collect()
    }
}

/// The engine and the time at which the test began.
struct World {
    engine: Engine,
    begun: Instant,
}

impl Runtime for &World {
    type Agent<'a>
        = Scripted<'a>
    where
        Self: 'a;

    fn agent(&self) -> Option<Scripted<'_>> {
        let is_free = !self.engine.is_busy.load(Ordering::Relaxed);
        is_free.then_some(Scripted(&self.engine))
    }

    async fn running(&self) -> Result<Vec<String>, BoxError> {
        if self.engine.fails("list") {
            return Err("the engine is busy".into());
        }
        Ok(self.engine.modules.iter().map(|name| (*name).to_owned()).collect())
    }

    async fn stop(&self, module: &str) -> Result<(), BoxError> {
        let what = format!("stop {module}");
        let outcome = if self.engine.fails(&what) { Err("it cannot".into()) } else { Ok(()) };
        self.engine.note(self.begun, what);
        outcome
    }

    async fn start(&self, module: &str) -> Result<(), BoxError> {
        let what = format!("start {module}");
        let outcome = if module == "broken" || self.engine.fails(&what) { Err("it cannot".into()) } else { Ok(()) };
        self.engine.note(self.begun, what);
        outcome
    }
}

impl Agent for Scripted<'_> {
    async fn status(&self) -> Result<Option<Status>, BoxError> {
        let look = self.0.looks.lock().unwrap().pop_front();
        self.0.looked.notify_one();
        match look {
            Some(Look::Is(status)) => Ok(Some(status)),
            Some(Look::Gone) => Ok(None),
            Some(Look::Fails) => Err("the engine is busy".into()),
            Some(Look::Hangs) | None => std::future::pending().await,
        }
    }

    async fn start(&self) -> Result<(), BoxError> {
        self.0.done.lock().unwrap().push((0, "start".to_owned()));
        Ok(())
    }

    async fn remove(&self) -> Result<(), BoxError> {
        self.0.done.lock().unwrap().push((0, "remove".to_owned()));
        Ok(())
    }

    async fn make(&self) -> Result<(), BoxError> {
        self.0.done.lock().unwrap().push((0, "make".to_owned()));
        Ok(())
    }
}

fn world(looks: impl IntoIterator<Item = Look>) -> World {
    World { engine: Engine::new(looks), begun: Instant::now() }
}

fn watchdog(world: &World, max_retries: MaxRetries) -> Watchdog<&World> {
    Watchdog::new(world, Arc::new(Requests::new(Shutdown::new())), max_retries)
}

/// Runs the watchdog until it has looked `looks` times, and tells after how many seconds each look came.
async fn looks(world: &World, watchdog: &Watchdog<&World>, looks: usize) -> Vec<u64> {
    let mut times = Vec::new();
    let script = async {
        while times.len() < looks {
            world.engine.looked.notified().await;
            times.push(world.begun.elapsed().as_secs());
        }
    };
    tokio::select! {
        biased;
        () = script => {}
        outcome = watchdog.run() => panic!("{outcome:?}"),
    }
    times
}

#[tokio::test(start_paused = true)]
async fn it_looks_at_once_and_then_each_minute() {
    let world = world([Look::Is(Status::Running), Look::Is(Status::Running), Look::Is(Status::Running)]);
    assert_eq!(looks(&world, &watchdog(&world, MaxRetries::Infinite), 3).await, [0, 60, 120]);
    assert!(world.engine.done().is_empty());
}

#[tokio::test(start_paused = true)]
async fn each_finding_has_its_action() {
    use Status::{Dead, Failed, Stopped, Unknown};
    for (look, expected) in [
        (Look::Is(Stopped), &["start"][..]),
        (Look::Is(Failed), &["start"]),
        (Look::Is(Dead), &["remove", "make"]),
        (Look::Is(Unknown), &["remove", "make"]),
        (Look::Gone, &["make"]),
        (Look::Fails, &[]),
    ] {
        let world = world([look, Look::Hangs]);
        looks(&world, &watchdog(&world, MaxRetries::Infinite), 2).await;
        assert_eq!(world.engine.done(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_done_while_somebody_else_is_at_work_on_the_agent() {
    let world = world([Look::Gone]);
    world.engine.is_busy.store(true, Ordering::Relaxed);
    let watchdog = watchdog(&world, MaxRetries::Number(1));
    let run = tokio::time::timeout(Duration::from_secs(3600), watchdog.run());
    assert!(run.await.is_err(), "it goes on");
    assert!(world.engine.done().is_empty());
    assert_eq!(world.engine.looks.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_keeps_ending_is_started_ever_more_seldom() {
    let world = world((0..9).map(|_| Look::Is(Status::Failed)));
    let times = looks(&world, &watchdog(&world, MaxRetries::Infinite), 9).await;
    let pauses: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses[..3].iter().all(|pause| (53..=60).contains(pause)), "{pauses:?}");
    assert!((107..=120).contains(&pauses[3]), "{pauses:?}");
    assert!((215..=240).contains(&pauses[4]), "{pauses:?}");
    assert!(pauses[5..].iter().all(|pause| (269..=300).contains(pause)), "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn only_failures_in_a_row_count() {
    let running = || Look::Is(Status::Running);
    let world = world([Look::Fails, Look::Fails, running(), Look::Fails, Look::Fails, Look::Fails, running()]);
    let watchdog = watchdog(&world, MaxRetries::Number(3));
    let given_up = watchdog.run().await.unwrap_err();
    assert_eq!(
        aziot_log::chain(&given_up).to_string(),
        "Watchdog error count has exceeded allowed retries: the engine is busy"
    );
    let elapsed = world.begun.elapsed();
    assert!((Duration::from_secs(276)..Duration::from_secs(300)).contains(&elapsed), "{elapsed:?}");
    assert_eq!(world.engine.looks.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_to_reprovision_does_not_wait_for_the_round() {
    let world = world([Look::Hangs]);
    let watchdog = watchdog(&world, MaxRetries::Infinite);
    let requests = Arc::clone(&watchdog.requests);
    let ask = async {
        world.engine.looked.notified().await;
        assert!(requests.reprovision());
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = ask => {}
        ended = watchdog.run() => assert_eq!(ended.unwrap(), ReprovisionRequested),
    }
}

#[tokio::test]
async fn nobody_reprovisions_once_the_runtime_ends() {
    let ended = Shutdown::new();
    let requests = Requests::new(ended.clone());
    assert!(requests.reprovision());
    ended.cancel();
    assert!(!requests.reprovision());
}

#[tokio::test(start_paused = true)]
async fn a_renewed_ca_restarts_what_runs_and_the_agent_last() {
    let mut world = world([Look::Is(Status::Running), Look::Is(Status::Running)]);
    world.engine.modules = vec!["a", AGENT, "broken", "b"];
    let watchdog = watchdog(&world, MaxRetries::Infinite);
    watchdog.requests.restart_modules();
    watchdog.requests.restart_modules();
    assert_eq!(looks(&world, &watchdog, 2).await, [0, 60]);
    let done = world.engine.done();
    assert_eq!(done[..4], ["stop a", "stop edgeAgent", "stop broken", "stop b"]);
    assert_eq!(done[4..], ["start a", "start broken", "start b", "start broken", "start edgeAgent"]);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_stop_or_start_gets_a_second_chance() {
    let mut world = world([Look::Is(Status::Running), Look::Hangs]);
    world.engine.modules = vec![AGENT, "a", "b"];
    *world.engine.failing.lock().unwrap() = vec!["stop a", "start b", "stop edgeAgent"];
    let watchdog = watchdog(&world, MaxRetries::Infinite);
    watchdog.requests.restart_modules();
    looks(&world, &watchdog, 2).await;
    let done = world.engine.done();
    assert_eq!(done[3..], ["start a", "start b", "stop a", "start a", "start b", "stop edgeAgent", "start edgeAgent"]);
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_does_not_list_is_asked_again_after_the_next_round() {
    let mut world = world([Look::Is(Status::Running), Look::Is(Status::Running), Look::Hangs]);
    world.engine.modules = vec![AGENT];
    *world.engine.failing.lock().unwrap() = vec!["list"];
    let watchdog = watchdog(&world, MaxRetries::Infinite);
    watchdog.requests.restart_modules();
    looks(&world, &watchdog, 3).await;
    let done = world.engine.done.lock().unwrap();
    assert_eq!(*done, [(60, "stop edgeAgent".to_owned()), (60, "start edgeAgent".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn the_pauses_after_failures_and_starts_differ_from_device_to_device() {
    let failed = Record { failures: 1, starts: 0 };
    let started = Record { failures: 0, starts: 1 };
    for record in [failed, started] {
        let pauses: std::collections::BTreeSet<Duration> = (0..8).map(|_| record.pause()).collect();
        assert!(pauses.len() > 1, "{pauses:?}");
        assert!(pauses.iter().all(|pause| (PERIOD.mul_f64(0.9)..=PERIOD).contains(pause)), "{pauses:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_agent_nothing_is_restarted() {
    let mut world = world([Look::Is(Status::Running), Look::Hangs]);
    world.engine.modules = vec!["a"];
    let watchdog = watchdog(&world, MaxRetries::Infinite);
    watchdog.requests.restart_modules();
    looks(&world, &watchdog, 2).await;
    assert!(world.engine.done().is_empty());
}
