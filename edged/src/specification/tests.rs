use std::path::Path;

use aziot_edged_api::module::EnvironmentVariable;
use proptest::{collection::vec, prelude::*};
use serde_json::json;

use super::*;

fn request(settings: Value) -> ModuleSpecification {
    ModuleSpecification {
        name: "mm".to_owned(),
        r#type: "docker".to_owned(),
        image_pull_policy: None,
        config: ModuleConfig { settings, env: None },
    }
}

fn with_options(options: Value) -> ModuleSpecification {
    let mut settings = json!({ "image": "image:1" });
    settings["createOptions"] = options;
    request(settings)
}

fn body(options: Value, privileges: &Privileges) -> Value {
    Specification::new(with_options(options)).unwrap_or_else(|error| panic!("{error}")).body(privileges).0
}

fn error(request: ModuleSpecification) -> String {
    Specification::new(request).err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn unknown_members_reach_the_engine_on_every_level() {
    let options = json!({
        "Unknown": [1, 2.5, { "x": null }],
        "Image": "other",
        "HostConfig": {
            "Unknown": true,
            "PortBindings": { "80/tcp": [{ "HostPort": "8080", "Unknown": 1 }], "81/tcp": null },
            "Mounts": [{ "Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": true, "Unknown": {} }],
        },
        "NetworkingConfig": { "Unknown": 1, "EndpointsConfig": { "net": { "NetworkID": "n", "Unknown": [] }, "other": null } },
        "Labels": { "net.azure-devices.edge.owner": "somebody", "mine": "x" },
    });
    let mut expected = options.clone();
    expected["Image"] = json!("image:1");
    expected["Env"] = json!([]);
    expected["Labels"] = json!({
        "mine": "x",
        "net.azure-devices.edge.owner": "Microsoft.Azure.Devices.Edge.Agent",
        "net.azure-devices.edge.original-image": "image:1",
    });
    assert_eq!(body(options, &Privileges::Elevated), expected);
}

#[test]
fn the_least_request_is_a_module() {
    let labels = json!({
        "net.azure-devices.edge.owner": "Microsoft.Azure.Devices.Edge.Agent",
        "net.azure-devices.edge.original-image": "image:1",
    });
    let expected = json!({ "Image": "image:1", "Env": [], "Labels": labels });
    let least = Specification::new(request(json!({ "image": "image:1" }))).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(least.body(&Privileges::Elevated).0, expected);
    let nulls = json!({ "Env": null, "Labels": null, "HostConfig": null, "NetworkingConfig": null });
    let mut with_nulls = expected.clone();
    with_nulls["HostConfig"] = Value::Null;
    with_nulls["NetworkingConfig"] = Value::Null;
    assert_eq!(body(nulls, &Privileges::Elevated), with_nulls);
}

#[test]
fn the_environment_is_merged_and_sorted_and_the_options_win() {
    let mut request = with_options(json!({ "Env": ["B=options=1", "EMPTY", "Z="] }));
    let variable = |key: &str, value: &str| EnvironmentVariable { key: key.to_owned(), value: value.to_owned() };
    request.config.env = Some(vec![variable("C", "3"), variable("B", "env"), variable("A", "a=b")]);
    let made = Specification::new(request).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(made.body(&Privileges::Elevated).0["Env"], json!(["A=a=b", "B=options=1", "C=3", "EMPTY=", "Z="]));
}

#[test]
fn the_echo_has_no_credentials_and_the_engine_gets_all_of_them() {
    let settings =
        json!({ "image": "r/x", "digest": null, "imageHash": "h", "auth": { "password": "p", "identitytoken": "t" } });
    let made = Specification::new(request(settings)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(made.auth(), Some(&json!({ "password": "p", "identitytoken": "t" })));
    let echo = made.details(Status::Stopped);
    assert_eq!(echo.config.settings, json!({ "image": "r/x", "digest": null, "imageHash": "h" }));
    assert!(echo.config.env.is_none());
    let none =
        Specification::new(request(json!({ "image": "x", "auth": null }))).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(none.auth(), None);
    let empty =
        Specification::new(request(json!({ "image": "x", "auth": {} }))).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(empty.auth(), Some(&json!({})));
}

#[test]
fn requests_that_cannot_be_carried_out_say_why() {
    let changed = |change: fn(&mut ModuleSpecification)| {
        let mut request = with_options(json!({}));
        change(&mut request);
        error(request)
    };
    assert_eq!(changed(|request| request.name = " ".to_owned()), "module name cannot be empty");
    assert_eq!(changed(|request| request.name = "../x".to_owned()), r#"invalid module name "../x""#);
    assert_eq!(changed(|request| request.r#type = String::new()), "module type cannot be empty");
    assert_eq!(changed(|request| request.r#type = "wasm".to_owned()), r#"invalid module type: "wasm""#);
    assert_eq!(changed(|request| request.image_pull_policy = Some("always".to_owned())), "invalid imagePullPolicy");
    assert_eq!(changed(|request| request.image_pull_policy = Some("On-Create".to_owned())), "");
    assert_eq!(changed(|request| request.image_pull_policy = Some("NEVER".to_owned())), "");
    let twice = |key: &str| {
        let mut request = with_options(json!({}));
        let variable = EnvironmentVariable { key: key.to_owned(), value: "secret".to_owned() };
        request.config.env = Some(vec![variable.clone(), variable]);
        error(request)
    };
    assert_eq!(twice("A"), "duplicate env var key: A");
    assert_eq!(twice(""), "environment variable without a name");
    for (settings, expected) in [
        (json!("x"), "settings must be an object"),
        (json!({}), "missing field `image`"),
        (json!({ "image": 1 }), "image must be a string"),
        (json!({ "image": " " }), "the image has no name"),
        (json!({ "image": "../containers/x" }), r#""../containers/x" is no name of an image"#),
        (json!({ "image": "x", "digest": 1 }), "digest must be a string"),
        (json!({ "image": "x", "auth": "secret" }), "auth must be an object"),
        (json!({ "image": "x", "auth": { "password": 1 } }), "auth.password must be a string"),
        (json!({ "image": "x", "createOptions": null }), "createOptions must be an object"),
        (json!({ "image": "x", "createOptions": "{}" }), "createOptions must be an object"),
    ] {
        assert_eq!(error(request(settings)), format!("invalid Docker config: {expected}"));
    }
}

#[test]
fn known_members_have_their_types() {
    let host = |member: &str, value: Value| json!({ "HostConfig": { member: value } });
    for (options, expected) in [
        (json!({ "Hostname": 1 }), "createOptions.Hostname must be a string"),
        (json!({ "Env": "secret" }), "createOptions.Env must be an array of strings"),
        (json!({ "env": ["A", 1] }), "createOptions.Env must be an array of strings"),
        (json!({ "Cmd": {} }), "createOptions.Cmd must be an array of strings"),
        (json!({ "Entrypoint": "x" }), "createOptions.Entrypoint must be an array of strings"),
        (json!({ "Image": [] }), "createOptions.Image must be a string"),
        (json!({ "Volumes": [] }), "createOptions.Volumes must be an object"),
        (json!({ "Labels": { "a": 1 } }), "createOptions.Labels must be an object of strings"),
        (json!({ "HostConfig": [] }), "createOptions.HostConfig must be an object"),
        (host("Memory", json!(1.5)), "createOptions.HostConfig.Memory must be an integer"),
        (host("memory", json!("1")), "createOptions.HostConfig.Memory must be an integer"),
        (host("Binds", json!([null])), "createOptions.HostConfig.Binds must be an array of strings"),
        (host("CapAdd", json!("ALL")), "createOptions.HostConfig.CapAdd must be an array of strings"),
        (host("CapDrop", json!(1)), "createOptions.HostConfig.CapDrop must be an array of strings"),
        (host("ExtraHosts", json!({})), "createOptions.HostConfig.ExtraHosts must be an array of strings"),
        (host("PortBindings", json!([])), "createOptions.HostConfig.PortBindings must be an object"),
        (host("PortBindings", json!({ "1": {} })), "createOptions.HostConfig.PortBindings.1 must be an array"),
        (host("PortBindings", json!({ "1": [1] })), "createOptions.HostConfig.PortBindings.1 must be an object"),
        (
            host("PortBindings", json!({ "1": [{ "hostport": 1 }] })),
            "createOptions.HostConfig.PortBindings.1.HostPort must be a string",
        ),
        (host("Mounts", json!({})), "createOptions.HostConfig.Mounts must be an array"),
        (host("Mounts", json!([{ "ReadOnly": "no" }])), "createOptions.HostConfig.Mounts.ReadOnly must be a boolean"),
        (host("Mounts", json!([{ "Source": 1 }])), "createOptions.HostConfig.Mounts.Source must be a string"),
        (host("Privileged", json!("true")), "createOptions.HostConfig.Privileged must be a boolean"),
        (json!({ "NetworkingConfig": 1 }), "createOptions.NetworkingConfig must be an object"),
        (
            json!({ "NetworkingConfig": { "EndpointsConfig": [] } }),
            "createOptions.NetworkingConfig.EndpointsConfig must be an object",
        ),
        (
            json!({ "NetworkingConfig": { "EndpointsConfig": { "n": { "NetworkID": 1 } } } }),
            "createOptions.NetworkingConfig.EndpointsConfig.n.NetworkID must be a string",
        ),
        (json!({ "HostConfig": {}, "hostconfig": {} }), "duplicate field `createOptions.HostConfig`"),
        (
            json!({ "HostConfig": { "Privileged": false, "privileged": true } }),
            "duplicate field `createOptions.HostConfig.Privileged`",
        ),
    ] {
        assert_eq!(error(with_options(options.clone())), format!("invalid Docker config: {expected}"), "{options}");
    }
    let unnamed = error(with_options(json!({ "Env": ["=secret"] })));
    assert_eq!(unnamed, "environment variable without a name");
}

#[test]
fn elevated_rights_are_taken_away_whatever_their_spelling() {
    for host in ["HostConfig", "hostconfig", "HOSTCONFIG", "ho\u{17f}tconfig"] {
        for (privileged, added) in [("Privileged", "CapAdd"), ("privileged", "capadd"), ("PRIVILEGED", "CAPADD")] {
            let options = json!({ host: { privileged: true, added: ["SYS_ADMIN"], "Memory": 1 } });
            let made = Specification::new(with_options(options)).unwrap_or_else(|error| panic!("{error}"));
            let (body, taken) = made.body(&Privileges::Filtered);
            let expected = json!({ "Privileged": false, "CapDrop": ["CHOWN", "SETUID"], "Memory": 1 });
            assert_eq!(body["HostConfig"], expected);
            assert_eq!(body.as_object().map(|body| body.keys().filter(|key| key.len() == 10).count()), Some(1));
            assert_eq!(taken, ["Privileged", "CapAdd"]);
        }
    }
    assert_eq!(body(json!({}), &Privileges::Filtered)["HostConfig"], json!({ "CapDrop": ["CHOWN", "SETUID"] }));
    assert_eq!(
        body(json!({ "HostConfig": null }), &Privileges::Filtered)["HostConfig"],
        json!({ "CapDrop": ["CHOWN", "SETUID"] })
    );
}

#[test]
fn the_two_capabilities_that_are_always_dropped_are_left_to_who_asks_for_them() {
    let host = |capabilities: Value, dropped: Value| {
        body(json!({ "HostConfig": { "CapAdd": capabilities, "CapDrop": dropped } }), &Privileges::Filtered)["HostConfig"].clone()
    };
    assert_eq!(
        host(json!(["cap_chown", "NET_ADMIN"]), json!(["KILL"])),
        json!({ "CapAdd": ["CHOWN"], "CapDrop": ["SETUID", "KILL"] })
    );
    assert_eq!(host(json!(["SETUID", "CHOWN"]), json!(null)), json!({ "CapAdd": ["CHOWN", "SETUID"], "CapDrop": [] }));
    assert_eq!(host(json!(["ALL"]), json!(null)), json!({ "CapDrop": ["CHOWN", "SETUID"] }));
}

#[test]
fn confined_modules_get_no_hold_of_the_host() {
    let options = json!({ "hostconfig": {
        "pidmode": "host",
        "IpcMode": "container:other",
        "NetworkMode": "azure-iot-edge",
        "UTSMode": "",
        "usernsmode": "host",
        "Devices": [{ "PathOnHost": "/dev/mem" }],
        "securityopt": ["apparmor=unconfined"],
        "VolumesFrom": ["other"],
        "Runtime": "mine",
        "Binds": [
            "/srv/data:/data",
            "volume:/v",
            "/var/run/docker.sock:/s",
            "//var/lib/../run//docker.sock:/s",
            "/:/host:ro",
            "/var:/var",
            "/var/run/iotedge/mgmt.sock:/m",
            "/etc/localtime:/etc/localtime:ro",
            "/etcetera:/e",
            "/lib:/l",
            "/bin/sh:/sh",
            "/lib64/x:/x",
            "/home/user/.ssh:/k",
            "/opt/agent:/o",
            "/var/spool/cron:/c",
            "/var/lib/containers/storage:/s",
            "/var/lib/aziot/keyd:/k",
        ],
        "mounts": [
            { "type": "bind", "source": "/proc", "target": "/p" },
            { "type": "bind", "source": "/srv/x", "target": "/x" },
            { "type": "volume", "source": "v", "target": "/v", "volumeoptions": { "DriverConfig": { "Options": { "device": "/" } } } },
            { "type": "tmpfs", "target": "/t" },
        ],
    } });
    let made = Specification::new(with_options(options.clone())).unwrap_or_else(|error| panic!("{error}"));
    let (body, taken) = made.body(&Privileges::Confined(OwnFiles::default()));
    assert_eq!(
        body["HostConfig"],
        json!({
            "CapDrop": ["CHOWN", "SETUID"],
            "NetworkMode": "azure-iot-edge",
            "UTSMode": "",
            "Binds": ["/srv/data:/data", "volume:/v", "/var/run/iotedge/mgmt.sock:/m", "/etc/localtime:/etc/localtime:ro", "/etcetera:/e"],
            "Mounts": [{ "Type": "bind", "Source": "/srv/x", "Target": "/x" }, { "Type": "tmpfs", "Target": "/t" }],
        })
    );
    assert_eq!(
        taken,
        ["Devices", "SecurityOpt", "IpcMode", "PidMode", "UsernsMode", "Binds", "Mounts", "VolumesFrom", "Runtime"]
    );
    let (filtered, taken) = made.body(&Privileges::Filtered);
    assert_eq!(filtered["HostConfig"]["PidMode"], json!("host"));
    assert!(taken.is_empty());
}

fn confined_binds(own: OwnFiles, binds: &[String]) -> Value {
    body(json!({ "HostConfig": { "Binds": binds } }), &Privileges::Confined(own))["HostConfig"]["Binds"].clone()
}

#[test]
fn confined_modules_do_not_get_at_the_host_by_links() {
    let folder = tempfile::tempdir().unwrap();
    let real = folder.path().canonicalize().unwrap();
    let link = |name: &str, target: &Path| std::os::unix::fs::symlink(target, real.join(name)).unwrap();
    link("etc", Path::new("/etc"));
    link("all", Path::new("/"));
    link("nowhere", Path::new("/nowhere/yet"));
    link("circle", &real.join("circle"));
    link("data", &real.join("."));
    let bind = |name: &str| format!("{}/{name}:/x", real.display());
    let taken = ["etc", "etc/shadow", "etc/not/there", "all", "all/srv", "nowhere", "nowhere/x", "circle", "data/etc"]
        .map(bind);
    let left = ["data", "data/not/there", "new"].map(bind);
    let binds = confined_binds(OwnFiles::default(), &[&taken[..], &left[..]].concat());
    // `/srv` itself may be had, by whatever way.
    let expected = [&[bind("all/srv")][..], &left[..]].concat();
    assert_eq!(binds, json!(expected));
}

#[test]
fn confined_modules_have_the_runtimes_sockets_and_no_more_of_its_home() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().canonicalize().unwrap();
    for home in [home.as_path(), Path::new("/var/lib/aziot/edged")] {
        let mut config = crate::settings::tests::config(home);
        let text =
            r#"{ "management_uri": "unix:///run/aziot/mgmt.sock", "workload_uri": "unix:///run/aziot/workload.sock" }"#;
        config.connect = serde_json::from_str(text).unwrap();
        config.listen.management_uri = aziot_http::Endpoint::Unix("/etc/own/mgmt.sock".into());
        let own = OwnFiles::new(&config, &home.join("mnt"));
        let bind = |path: &str| format!("{path}:/x");
        let socket = |name: &str| format!("{}/mnt/{name}.sock:/x", home.display());
        let allowed = [
            bind("/run/aziot/mgmt.sock"),
            bind("/run/aziot/workload.sock"),
            bind("/etc/own/mgmt.sock"),
            socket(with_options(json!({})).name.as_str()),
        ];
        let others = [
            bind("/run/aziot"),
            bind("/etc/own"),
            socket("other"),
            bind(&home.display().to_string()),
            bind("/run/docker.sock"),
        ];
        assert_eq!(confined_binds(own, &[&allowed[..], &others[..]].concat()), json!(allowed));
    }
}

#[test]
fn a_body_is_about_its_paths_module() {
    let made = || Specification::new(with_options(json!({}))).unwrap_or_else(|error| panic!("{error}"));
    let name = |text| Name::new(text).unwrap_or_else(|error| panic!("{error}"));
    assert!(made().named(&name("mm")).is_ok());
    assert_eq!(
        made().named(&name("nn")).err().map(|error| error.to_string()).as_deref(),
        Some("module name in spec does not match URI")
    );
}

/// Any JSON, with members that are known, misspelt or unknown.
fn json_value() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        "(?i)(HostConfig|Privileged|CapAdd|CapDrop|Env|Labels|Image|PortBindings|Mounts|NetworkingConfig|EndpointsConfig)",
        Just("Ho\u{17f}tConfig".to_owned()),
        "[a-z]{1,3}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[A-Z=]{0,5}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((key.clone(), inner), 0..6).prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Whether the engine would take `key` for `name`.
fn is(key: &str, name: &str) -> bool {
    key.replace('\u{17f}', "s").eq_ignore_ascii_case(name)
}

proptest! {
    #[test]
    fn no_body_that_leaves_the_filter_is_privileged(host in json_value(), rest in json_value(), key in "(?i)HostConfig|Ho\u{17f}tConfig") {
        let mut options = rest.as_object().cloned().unwrap_or_default();
        options.insert(key, host);
        if let Ok(made) = Specification::new(with_options(Value::Object(options))) {
            let (body, _) = made.body(&Privileges::Filtered);
            let body = body.as_object().expect("an object");
            let hosts: Vec<&Value> = body.iter().filter(|(key, _)| is(key, "HostConfig")).map(|(_, host)| host).collect();
            prop_assert_eq!(hosts.len(), 1);
            for (key, value) in hosts[0].as_object().expect("an object") {
                prop_assert!(!(is(key, "Privileged") && *value == Value::Bool(true)));
                let spared = json!(["CHOWN", "SETUID"]);
                let harmless = |value: &Value| value.as_array().is_some_and(|all| {
                    all.iter().all(|name| spared.as_array().is_some_and(|spared| spared.contains(name)))
                });
                prop_assert!(!is(key, "CapAdd") || harmless(value));
            }
        }
    }

    #[test]
    fn what_was_normalized_once_stays_as_it_is(options in json_value()) {
        if let Ok(once) = CreateOptions::new(Some(options)) {
            let once = once.into_value();
            let twice = CreateOptions::new(Some(once.clone())).unwrap_or_else(|error| panic!("{error}"));
            prop_assert_eq!(twice.into_value(), once);
        }
    }
}
