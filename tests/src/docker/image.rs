//! Images without a registry: a program of this build with the libraries that it loads, as a file system in a tar archive.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

/// Where the program is in the image.
pub const PROGRAM: &str = "/module";

/// Makes the archive of `program` at `archive`. What says `mark` makes images different that are otherwise alike.
pub fn make(program: &Path, archive: &Path, mark: &str) -> Result<()> {
    let root = tempfile::Builder::new().prefix("aziot-image-").tempdir().context("could not make a folder")?;
    let root = root.path();
    for folder in ["etc", "tmp", "run", "proc", "sys", "dev"] {
        fs::create_dir(root.join(folder)).with_context(|| format!("could not make /{folder} of the image"))?;
    }
    put(program, root, Path::new(PROGRAM))?;
    for library in libraries(program)? {
        put(&library, root, &library)?;
    }
    let text = |name: &str, text: &str| {
        crate::device::write_private(&root.join(name), text).and_then(|()| open(&root.join(name)))
    };
    text("etc/nsswitch.conf", "hosts: files dns\n")?;
    text("etc/passwd", "root:x:0:0:root:/:/module\n")?;
    text("etc/mark", mark)?;
    // The same program makes the same archive, byte for byte.
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--file"]);
    let output = tar.arg(archive).arg("--directory").arg(root).arg(".").output().context("could not run tar")?;
    ensure!(output.status.success(), "tar failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// What the loader would load, itself included; nothing for a static program.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("could not run ldd")?;
    let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if text.contains("statically linked") || error.contains("not a dynamic executable") {
        return Ok(BTreeSet::new());
    }
    if !output.status.success() || text.contains("not found") {
        bail!("ldd {} failed: {}{}", program.display(), text.trim(), error.trim());
    }
    // `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader; what the kernel brings has no path.
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

fn put(file: &Path, root: &Path, place: &Path) -> Result<()> {
    let target = root.join(place.strip_prefix("/").context("places in an image are absolute")?);
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
    }
    fs::copy(file, &target).with_context(|| format!("could not copy {}", file.display()))?;
    open(&target)
}

/// Everybody may read and run it.
fn open(file: &Path) -> Result<()> {
    fs::set_permissions(file, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("could not open {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_comes_with_its_loader_and_its_libraries() {
        let libraries = libraries(Path::new("/bin/sh")).unwrap();
        let names: Vec<_> = libraries.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        assert!(names.iter().any(|name| name.starts_with("libc.so")), "{names:?}");
        assert!(names.iter().any(|name| name.starts_with("ld-")), "{names:?}");
    }
}
