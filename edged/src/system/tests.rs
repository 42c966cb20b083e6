use aziot_files::{Mode, create_directory, write};

use super::*;

fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Machine) {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = folder.path().join(path);
        let _ = create_directory(path.parent().unwrap(), Mode::SHARED_DIRECTORY).unwrap();
        write(path, Mode::SHARED, text).unwrap();
    }
    let machine = Machine { root: folder.path().to_owned() };
    (folder, machine)
}

#[test]
fn the_machine_is_described_from_its_files() {
    let (_folder, machine) = machine(&[
        ("etc/os-release", "ID=\"debian\"\nVERSION_ID=\"12\"\n"),
        ("sys/devices/virtual/dmi/id/product_name", "Gateway 7 \n"),
        ("sys/devices/virtual/dmi/id/sys_vendor", "\n"),
        ("proc/meminfo", "MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    400 kB\n"),
    ]);
    let info = host::describe(&machine);
    assert_eq!(info.os_type, "Linux");
    assert!(info.kernel_release.is_some() && info.cpus > 0);
    assert_eq!(info.operating_system.as_deref(), Some("debian"));
    assert_eq!(info.operating_system_version.as_deref(), Some("12"));
    assert_eq!(info.total_memory, Some(1_024_000));
    assert_eq!((info.product_name.as_deref(), info.system_vendor), (Some("Gateway 7"), None));
}

#[test]
fn the_distributions_own_file_counts_where_there_is_no_other() {
    let (_folder, machine) = machine(&[("usr/lib/os-release", "ID=alpine\n")]);
    assert_eq!(host::describe(&machine).operating_system.as_deref(), Some("alpine"));
}

#[test]
fn how_it_fares_is_read_from_the_kernels_files() {
    let (_folder, machine) = machine(&[
        ("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 400 kB\n"),
        ("proc/uptime", "84000.51 1.0\n"),
        ("proc/stat", "cpu 50 0 50 100 0 0 0 0 0 0\n"),
        ("proc/self/mounts", "tmpfs /run tmpfs rw 0 0\n"),
    ]);
    let resources = fares(&machine, &Mutex::new(Load::new(Sample::default()))).unwrap();
    assert_eq!((resources.host_uptime, resources.used_ram, resources.total_ram), (84_000, 614_400, 1_024_000));
    assert_eq!(resources.used_cpu.to_string(), "50");
    assert!(resources.disks.is_empty());
}

#[tokio::test]
async fn a_reading_that_hangs_is_the_only_one() {
    let readings = Readings::default();
    let (let_go, hangs) = std::sync::mpsc::channel::<()>();
    tokio::time::pause();
    let hanging = readings.read(move || {
        // The sender is dropped in the end.
        let _ = hangs.recv();
        Ok(())
    });
    // Blocking work keeps the clock from running by itself.
    let later = async {
        tokio::task::yield_now().await;
        tokio::time::advance(RESOURCES_LIMIT + Duration::from_secs(1)).await;
    };
    let (outcome, ()) = tokio::join!(hanging, later);
    assert!(matches!(outcome, Err(MachineError::TimedOut)));
    let (begins, has_begun) = std::sync::mpsc::channel();
    let next = readings.read(move || {
        let _ = begins.send(());
        Ok(())
    });
    let later = async {
        tokio::task::yield_now().await;
        tokio::time::advance(RESOURCES_LIMIT + Duration::from_secs(1)).await;
    };
    let (outcome, ()) = tokio::join!(next, later);
    assert!(matches!(outcome, Err(MachineError::TimedOut)));
    assert!(has_begun.recv().is_err(), "no second thread hangs");
    tokio::time::resume();
    drop(let_go);
    assert!(matches!(readings.read(|| Ok(7)).await, Ok(7)), "the disk is back");
}

#[test]
fn a_file_without_what_it_always_had_is_named() {
    let (folder, machine) = machine(&[("proc/meminfo", "MemTotal: 1000 kB\n")]);
    let error = host::Memory::read(&machine).unwrap_err();
    assert_eq!(error.to_string(), format!("{}/proc/meminfo has no MemAvailable", folder.path().display()));
}

#[test]
fn this_machine_tells_how_it_fares() {
    let resources = fares(&Machine::this(), &Mutex::new(Load::new(Sample::default()))).unwrap();
    assert!(resources.host_uptime > 0 && resources.total_ram > resources.used_ram);
}

#[test]
fn additional_information_overrides_what_was_found_out() {
    let mut info = SystemInfo { os_type: "Linux".to_owned(), virtualized: "no".to_owned(), ..SystemInfo::default() };
    let names = [
        "kernel",
        "kernel_release",
        "kernel_version",
        "operating_system",
        "operating_system_version",
        "operating_system_variant",
        "operating_system_build",
        "architecture",
        "virtualized",
        "product_name",
        "system_vendor",
        "server_version",
        "plant",
    ];
    override_with(&mut info, &names.map(|name| (name.to_owned(), format!("my {name}"))).into());
    let told = serde_json::to_value(&info).unwrap();
    assert_eq!(told["osType"], "my kernel");
    for name in &names[1..] {
        assert_eq!(told[*name], format!("my {name}"));
    }
    assert_eq!(info.others.len(), 1);
}
