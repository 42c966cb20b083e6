//! The management API on the wire.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::world::{V, World, files, refusal, specification, status_line};

const PATIENCE: Duration = Duration::from_secs(20);

/// Guarded calls: only the agent may make them.
fn guarded() -> Vec<String> {
    let body = specification("sensor");
    vec![
        format!("POST /modules {body}"),
        format!("PUT /modules/sensor {body}"),
        "DELETE /modules/sensor".to_owned(),
        format!("POST /modules/sensor/prepareupdate {body}"),
        "GET /identities".to_owned(),
        r#"POST /identities {"moduleId":"m1"}"#.to_owned(),
        r#"PUT /identities/m1 {"generationId":"1"}"#.to_owned(),
        "DELETE /identities/m1".to_owned(),
        "POST /device/reprovision".to_owned(),
    ]
}

#[tokio::test]
async fn the_version_comes_before_everything_and_every_published_one_is_answered() {
    let world = World::new().await;
    let server = world.management();
    for (target, text) in [
        ("/modules", "api-version not specified"),
        ("/nope", "api-version not specified"),
        ("/modules?api-version=2020-09-01", r#"invalid api-version "2020-09-01""#),
        ("/modules?api-version=2022-08-03&api-version=a%22b", r#"invalid api-version "a\"b""#),
    ] {
        assert_eq!(refusal(&server.send("GET", target, "").await), (400, text.to_owned()), "{target}");
    }
    for version in
        ["2018-06-28", "2019-01-30", "2019-10-22", "2019-11-05", "2020-07-07", "2021-05-11", "2021-12-07", "2022-08-03"]
    {
        let reply = server.send("GET", &format!("/modules?api-version={version}"), "").await;
        assert_eq!(reply.status, 200, "{version}");
    }
}

#[tokio::test]
async fn routes_are_there_from_the_version_that_brought_them() {
    let world = World::new().await;
    for (method, path, before, first) in [
        ("POST", "/modules/sensor/prepareupdate", "2018-06-28", "2019-01-30"),
        ("POST", "/device/reprovision", "2019-01-30", "2019-10-22"),
        ("GET", "/systeminfo/resources", "2019-10-22", "2019-11-05"),
        ("GET", "/systeminfo/supportbundle", "2019-11-05", "2020-07-07"),
    ] {
        let ask =
            async |version, method| world.management().send(method, &format!("{path}?api-version={version}"), "").await;
        assert_eq!(refusal(&ask(before, method).await), (404, "not found".to_owned()), "{path}");
        assert_eq!(refusal(&ask(first, "PATCH").await), (400, "method not allowed".to_owned()), "{path}");
    }
    for call in [
        "GET /modules",
        "POST /modules",
        "GET /modules/sensor",
        "PUT /modules/sensor",
        "DELETE /modules/nn",
        "POST /modules/nn/start",
        "POST /modules/nn/stop",
        "POST /modules/nn/restart",
        "GET /modules/nn/logs",
        "GET /identities",
        "POST /identities",
        "PUT /identities/m",
        "DELETE /identities/m",
        "GET /systeminfo",
    ] {
        let (method, path) = call.split_once(' ').unwrap();
        let reply = world.management().send(method, &format!("{path}?api-version=2018-06-28"), "").await;
        assert!(reply.status != 400 && !reply.body.contains(r#""not found""#), "{call}: {}", reply.body);
    }
    for target in ["/", "/nope", "/modules/sensor/", "/modules/%ff/start", "/systeminfo/", "/trust-bundle"] {
        assert_eq!(refusal(&world.manage(&format!("GET {target}")).await), (404, "not found".to_owned()), "{target}");
    }
}

#[tokio::test]
async fn strangers_and_other_modules_are_forbidden_whatever_they_send() {
    let world = World::new().await;
    for module in [None, Some('b'), Some('c')] {
        module.map_or_else(|| world.be_nobody(), |digit| world.be(digit));
        for call in guarded() {
            let reply = world.manage(&call).await;
            assert_eq!(refusal(&reply), (403, "forbidden".to_owned()), "{call}");
            assert_eq!(status_line(&reply), "HTTP/1.1 403 Forbidden");
        }
    }
    for body in ["", "{", r#"{"name":1}"#] {
        for call in ["POST /modules", "PUT /modules/..%2Fx", "POST /identities", "POST /modules/a%00/prepareupdate"] {
            let reply = world.manage(&format!("{call} {body}")).await;
            assert_eq!(reply.status, 403, "{call} {body}");
        }
    }
    let large = format!("POST /modules?{V} HTTP/1.1\r\ncontent-length: {}\r\n\r\n", 10 * 1024 * 1024);
    assert_eq!(world.management().send_raw(&large).await.status, 403);
    assert_eq!(world.engine.changes(), Vec::<String>::new());
    assert_eq!(world.services.identityd.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn what_the_cli_needs_is_open_to_all_who_reach_the_socket() {
    let world = World::new().await;
    for (call, status) in [
        ("GET /modules", 200),
        ("GET /modules/sensor", 200),
        ("POST /modules/sensor/stop", 204),
        ("POST /modules/sensor/start", 204),
        ("POST /modules/sensor/restart", 204),
    ] {
        assert_eq!(world.manage(call).await.status, status, "{call}");
    }
}

#[tokio::test]
async fn the_agent_finds_what_it_expects() {
    let world = World::new().await;
    world.be_agent();
    let created = world.manage(&format!("POST /modules {}", specification("fresh"))).await;
    assert_eq!((created.status, status_line(&created).as_str()), (201, "HTTP/1.1 201 Created"));
    let body = specification("fresh");
    for (call, status, line) in [
        (format!("POST /modules/fresh/prepareupdate {body}"), 204, "HTTP/1.1 204 No Content"),
        (format!("PUT /modules/fresh?start=true {body}"), 201, "HTTP/1.1 201 Created"),
        ("GET /modules/fresh".to_owned(), 200, "HTTP/1.1 200 OK"),
        ("DELETE /modules/fresh".to_owned(), 204, "HTTP/1.1 204 No Content"),
        ("GET /modules/fresh".to_owned(), 404, "HTTP/1.1 404 Not Found"),
        (r#"POST /identities {"moduleId":"m1","managedBy":"IotEdge"}"#.to_owned(), 200, "HTTP/1.1 200 OK"),
        ("GET /identities".to_owned(), 200, "HTTP/1.1 200 OK"),
        (r#"PUT /identities/m1 {"generationId":"1","managedBy":"IotEdge"}"#.to_owned(), 200, "HTTP/1.1 200 OK"),
        ("DELETE /identities/m1".to_owned(), 204, "HTTP/1.1 204 No Content"),
        ("POST /device/reprovision".to_owned(), 204, "HTTP/1.1 204 No Content"),
        ("PATCH /modules".to_owned(), 400, "HTTP/1.1 400 Bad Request"),
    ] {
        let reply = world.manage(&call).await;
        assert_eq!((reply.status, status_line(&reply).as_str()), (status, line), "{call}: {}", reply.body);
        if status < 300 {
            assert!(!reply.body.contains("\"message\""), "{call}: the client takes that for an error");
        }
    }
}

#[tokio::test]
async fn bodies_are_read_as_the_public_runtime_reads_them() {
    let world = World::new().await;
    world.be_agent();
    let json = "content-type: application/json\r\n";
    for (call, head, status, text) in [
        // The agent's client says that an empty body is JSON.
        ("POST /modules/sensor/start", json, 204, ""),
        ("POST /modules/sensor/stop", json, 204, ""),
        ("POST /modules/sensor/restart", "content-type: application/json; charset=utf-8\r\n", 204, ""),
        ("POST /device/reprovision", json, 204, ""),
        ("POST /modules", json, 400, "missing request body"),
        ("POST /modules", "content-type: text/plain\r\n", 400, "missing request body"),
        ("POST /modules/sensor/prepareupdate", json, 400, "missing request body"),
        ("POST /identities", "", 400, "missing request body"),
        ("PUT /modules/sensor", json, 422, "EOF while parsing a value at line 1 column 0"),
        ("PUT /identities/m1", "", 422, "EOF while parsing a value at line 1 column 0"),
        ("PUT /modules/sensor", "content-type: text/plain\r\n", 415, "request body must be application/json"),
    ] {
        let request = format!("{call}?{V} HTTP/1.1\r\nHost: mgmt.sock:80\r\n{head}content-length: 0\r\n\r\n");
        let reply = world.management().send_raw(&request).await;
        assert_eq!(reply.status, status, "{call} {head}: {}", reply.body);
        if status != 204 {
            assert_eq!(refusal(&reply).1, text, "{call} {head}");
        }
    }
    for call in ["POST /modules {", "POST /modules/sensor/start {", r#"PUT /modules/sensor {"name":"sensor"}"#] {
        assert_eq!(world.manage(call).await.status, 422, "{call}");
    }
    let large = format!("POST /modules?{V} HTTP/1.1\r\ncontent-length: {}\r\n\r\n", 10 * 1024 * 1024);
    assert_eq!(world.management().send_raw(&large).await.status, 413);
}

#[tokio::test]
async fn names_that_no_container_can_have_are_refused_before_anything_is_done() {
    let world = World::new().await;
    world.be_agent();
    let long = "n".repeat(256);
    for name in [
        "%2E%2E%2F%2E%2E%2Fetc",
        "..%2Fx",
        "%2E%2E",
        "a%2Fb",
        "a%3Fx%3Dy",
        "%24edgeAgent",
        "%24",
        "a",
        "-a",
        "a%20b",
        "a%00b",
        "a%0Ab",
        "%C3%A9%C3%A9",
        "a%252Fb",
        "_a",
        "%20",
    ] {
        for call in [
            format!("GET /modules/{name}"),
            format!("PUT /modules/{name} {}", specification("sensor")),
            format!("DELETE /modules/{name}"),
            format!("POST /modules/{name}/start"),
            format!("POST /modules/{name}/stop"),
            format!("POST /modules/{name}/restart"),
            format!("POST /modules/{name}/prepareupdate {}", specification("sensor")),
            format!("GET /modules/{name}/logs"),
        ] {
            assert_eq!(refusal(&world.manage(&call).await).0, 400, "{call}");
        }
    }
    assert_eq!(refusal(&world.manage("POST /modules//start").await), (400, "module name cannot be empty".to_owned()));
    for name in ["../x", "a/b", "$edgeAgent", "", " "] {
        let call = format!("POST /modules {}", specification(name));
        assert_eq!(refusal(&world.manage(&call).await).0, 400, "{call}");
    }
    assert_eq!(world.engine.changes(), Vec::<String>::new());
    assert_eq!(files(&world.sockets()), Vec::<String>::new());
    // These could be names, and nothing is called so.
    for name in [&long[long.len() - 250..], "%2Fnothing", "nothing"] {
        assert_eq!(refusal(&world.manage(&format!("POST /modules/{name}/start")).await).0, 404, "{name}");
    }
    assert_eq!(files(&world.sockets()), Vec::<String>::new());
    // Leading slashes count for nothing.
    assert_eq!(world.manage("POST /modules/%2F%2Fsensor/stop").await.status, 204);
}

#[tokio::test]
async fn foreign_containers_are_not_there() {
    let world = World::new().await;
    world.be_agent();
    for call in [
        "GET /modules/database".to_owned(),
        "GET /modules/database/logs".to_owned(),
        "POST /modules/database/start".to_owned(),
        "POST /modules/database/stop".to_owned(),
        "POST /modules/database/restart".to_owned(),
        "DELETE /modules/database".to_owned(),
        format!("PUT /modules/database {}", specification("database")),
    ] {
        assert_eq!(refusal(&world.manage(&call).await).0, 404, "{call}");
    }
    assert_eq!(world.engine.changes(), Vec::<String>::new());
}

#[tokio::test]
async fn paths_are_taken_as_clients_write_them() {
    let world = World::new().await;
    world.be_agent();
    for (call, status) in [
        ("GET /modules/", 200),
        ("GET /identities/", 200),
        ("POST /modules/sensor/START", 204),
        ("POST /modules/sensor/reStart", 204),
        ("POST /modules/sensor/Stop", 204),
        ("POST /modules/sensor/PrepareUpdate", 404),
        ("GET /Modules", 404),
    ] {
        assert_eq!(world.manage(call).await.status, status, "{call}");
    }
}

#[tokio::test]
async fn parameters_are_checked() {
    let world = World::new().await;
    world.be_agent();
    let body = specification("sensor");
    for (call, text) in [
        (format!("PUT /modules/sensor?start=maybe {body}"), "invalid parameter: start"),
        ("GET /modules/sensor/logs?follow=1".to_owned(), "invalid parameter: follow"),
        ("GET /modules/sensor/logs?timestamps=yes".to_owned(), "invalid parameter: timestamps"),
        ("GET /modules/sensor/logs?tail=-1".to_owned(), "invalid parameter: tail"),
        ("GET /modules/sensor/logs?since=x".to_owned(), "invalid parameter: since"),
        ("GET /modules/sensor/logs?until=%25".to_owned(), "invalid parameter: until"),
        ("GET /systeminfo/supportbundle?edge_runtime_only=1".to_owned(), "invalid parameter: edge_runtime_only"),
        (format!("POST /modules/other/prepareupdate {body}"), "module name in spec does not match URI"),
    ] {
        assert_eq!(refusal(&world.manage(&call).await), (400, text.to_owned()), "{call}");
    }
}

#[tokio::test]
async fn a_log_comes_as_one_chunk_for_each_frame() {
    let world = World::on_stage().await;
    let frame = |stream: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[stream, 0, 0, 0], &length[..], payload].concat()
    };
    let frames = [frame(1, b"one\n"), frame(2, b"two\n"), frame(1, &[b'x'; 16 * 1024]), frame(1, b"")];
    world.stage.log(frames.concat());
    let mut stream = world.management().connect().await;
    let request =
        format!("GET /modules/sensor/logs?{V}&tail=all HTTP/1.1\r\nHost: mgmt.sock:80\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"), "{head}");
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    let chunk = |frame: &Vec<u8>| [format!("{:X}\r\n", frame.len()).as_bytes(), frame, b"\r\n"].concat();
    let chunks: Vec<u8> = frames.iter().flat_map(chunk).chain(*b"0\r\n\r\n").collect();
    assert!(answer[end..] == chunks, "{:?}", String::from_utf8_lossy(&answer[end..]));

    let refused = world.manage("GET /modules/nothing/logs").await;
    assert_eq!(refused.status, 404, "{}", refused.body);
}
