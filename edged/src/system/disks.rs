//! File systems on disks: those whose device is a file of `/dev`, each once however often it is mounted.

use std::{
    collections::BTreeSet,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use aziot_edged_api::system::{Disk, DiskKind};
use rustix::fs::{major, minor, statvfs};

use super::{Machine, MachineError};

const MOUNTS: &str = "proc/self/mounts";
/// Images of programs, which are always full.
const READ_ONLY_IMAGES: [&str; 2] = ["squashfs", "iso9660"];

/// One line of the list of mounts.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    device: String,
    folder: PathBuf,
    file_system: String,
}

/// The disks. One whose size cannot be told is left out. Blocks on disks, on a failing one for long.
pub(super) fn mounted(machine: &Machine) -> Result<Vec<Disk>, MachineError> {
    let mounts = parse(&machine.read(MOUNTS)?);
    Ok(mounts.into_iter().filter_map(|mount| describe(machine, mount)).collect())
}

fn parse(text: &str) -> Vec<Mount> {
    let mut seen = BTreeSet::new();
    let mounts = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (device, folder, file_system) = (words.next()?, words.next()?, words.next()?);
        let is_disk = device.starts_with("/dev/") && !READ_ONLY_IMAGES.contains(&file_system);
        is_disk.then(|| Mount {
            device: unescaped(device),
            folder: PathBuf::from(unescaped(folder)),
            file_system: file_system.to_owned(),
        })
    });
    mounts.filter(|mount| seen.insert(mount.device.clone())).collect()
}

/// The kernel writes blanks, and the backslash itself, as three octal digits.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, others @ ..] = rest {
        let digits = others.get(..3).filter(|_| *first == b'\\');
        let octal = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &others[3..] } else { others };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn describe(machine: &Machine, mount: Mount) -> Option<Disk> {
    let Mount { device, folder, file_system } = mount;
    let sizes = statvfs(&folder).ok()?;
    let kind = Path::new(&device).metadata().map_or(DiskKind::Unknown, |metadata| kind(machine, metadata.rdev()));
    Some(Disk {
        name: device,
        available_space: sizes.f_bavail.saturating_mul(sizes.f_frsize),
        total_space: sizes.f_blocks.saturating_mul(sizes.f_frsize),
        file_system,
        file_type: kind,
    })
}

/// What a block device is. A partition has no queue of its own: its disk's folder is the one above.
fn kind(machine: &Machine, device: u64) -> DiskKind {
    let folder = format!("sys/dev/block/{}:{}", major(device), minor(device));
    let rotates = ["queue/rotational", "../queue/rotational"].iter().find_map(|file| {
        // Resolved first: the folder is a link into the tree of devices.
        let folder = machine.path(&folder).canonicalize().ok()?;
        machine.read(folder.join(file)).ok()
    });
    match rotates.as_deref().map(str::trim) {
        Some("1") => DiskKind::Rotating,
        Some("0") => DiskKind::SolidState,
        _ => DiskKind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use aziot_files::{Mode, create_directory, write};
    use rustix::fs::makedev;

    use super::*;

    #[test]
    fn disks_are_told_from_other_mounts_and_counted_once() {
        let text = "proc /proc proc rw 0 0\n/dev/sda1 / ext4 rw 0 0\n/dev/sda1 /var/lib\\040x ext4 rw 0 0\n\
                    tmpfs /run tmpfs rw 0 0\n/dev/loop3 /snap/core squashfs ro 0 0\n/dev/mapper/a\\134b /d\\040e xfs rw 0 0\n/dev/x\n";
        let mount = |device: &str, folder: &str, file_system: &str| Mount {
            device: device.to_owned(),
            folder: PathBuf::from(folder),
            file_system: file_system.to_owned(),
        };
        assert_eq!(parse(text), [mount("/dev/sda1", "/", "ext4"), mount("/dev/mapper/a\\b", "/d e", "xfs")]);
        assert_eq!(unescaped("a\\04"), "a\\04");
        assert_eq!(unescaped("a\\999"), "a\\999");
    }

    #[test]
    fn a_partition_is_what_its_disk_is() {
        let folder = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = folder.path().join(path);
            let _ = create_directory(path.parent().unwrap(), Mode::SHARED_DIRECTORY).unwrap();
            write(path, Mode::SHARED, text).unwrap();
        };
        let link = |from: &str, to: &str| {
            let path = folder.path().join("sys/dev/block").join(from);
            let _ = create_directory(path.parent().unwrap(), Mode::SHARED_DIRECTORY).unwrap();
            std::os::unix::fs::symlink(folder.path().join("sys/devices").join(to), path).unwrap();
        };
        put("sys/devices/sda/queue/rotational", "1\n");
        put("sys/devices/sda/sda1/partition", "1\n");
        put("sys/devices/dm-0/queue/rotational", "0\n");
        link("8:1", "sda/sda1");
        link("253:0", "dm-0");
        let machine = Machine { root: folder.path().to_owned() };
        assert_eq!(kind(&machine, makedev(8, 1)), DiskKind::Rotating);
        assert_eq!(kind(&machine, makedev(253, 0)), DiskKind::SolidState);
        assert_eq!(kind(&machine, makedev(7, 0)), DiskKind::Unknown);
    }

    #[test]
    fn the_disks_of_this_machine_can_be_described() {
        for disk in mounted(&Machine::this()).unwrap() {
            assert!(disk.total_space >= disk.available_space, "{disk:?}");
        }
    }
}
