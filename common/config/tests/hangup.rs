//! SIGHUP as a reload request. Alone in its process, since the signal reaches every watch in it.

use std::time::Duration;

use aziot_config::{Change, Sources, Watch};
use rustix::process::{Signal, getpid, kill_process};

#[test]
fn a_hangup_asks_for_a_reload_even_if_nothing_changed() {
    let sources = Sources { main: "/nonexistent/config.toml".into(), directory: "/nonexistent/config.d".into() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut watch = Watch::start(&sources).unwrap();
        for _ in 0..2 {
            kill_process(getpid(), Signal::HUP).unwrap();
            let change = tokio::time::timeout(Duration::from_secs(30), watch.changed()).await;
            assert_eq!(change, Ok(Change::Requested));
        }
    });
}
