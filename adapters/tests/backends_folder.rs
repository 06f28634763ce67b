//! The folder of the development servers. `scripts/backends` rejects a folder that another user owns, can write to or
//! can replace, because servers would run programs from that folder.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs an action that needs the folder and no server, with a permissive umask.
fn backends(folder: &Path) -> (Option<i32>, String) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/backends");
    let spare = format!("umask 000; exec {script} spare redpanda none stop");
    let out = Command::new("sh").args(["-c", &spare]).env("QI_BACKENDS_DIR", folder).output().unwrap();
    (out.status.code(), String::from_utf8(out.stderr).unwrap())
}

/// Returns whether the tests run as root. The script checks for root before it checks the folder.
fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n")
}

fn folder_with(parent: &Path, name: &str, mode: u32) -> PathBuf {
    let folder = parent.join(name);
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
    folder
}

#[test]
fn an_unsafe_folder_is_rejected() {
    if !is_root() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let at = place.path();
    let foreign = folder_with(at, "foreign", 0o755);
    std::os::unix::fs::chown(&foreign, Some(65_534), None).unwrap();
    let good = folder_with(at, "good", 0o755);
    let link = at.join("link");
    symlink(&good, &link).unwrap();
    let planted = at.join("planted");
    symlink(&good, &planted).unwrap();
    std::os::unix::fs::lchown(&planted, Some(65_534), None).unwrap();
    fs::write(at.join("file"), "").unwrap();
    for (folder, reason) in [
        (folder_with(at, "world", 0o777), "other users can write"),
        (folder_with(at, "group", 0o775), "other users can write"),
        (folder_with(at, "sticky", 0o1777), "other users can write"),
        (folder_with(at, "open", 0o777).join("below"), "other users can write"),
        (at.join("open/deep/below"), "other users can write"),
        (foreign.clone(), "belongs to user 65534"),
        (foreign.join("below"), "belongs to user 65534"),
        (link, "is a symbolic link"),
        (planted.join("below"), "belongs to user 65534"),
        (at.join("file"), "is not a folder"),
    ] {
        let (code, said) = backends(&folder);
        assert_eq!(code, Some(1), "{}: {said}", folder.display());
        assert!(said.contains("rejects QI_BACKENDS_DIR") && said.contains(reason), "{said}");
    }
    assert_eq!(fs::read_dir(at.join("open")).unwrap().count(), 0, "nothing is created in a rejected folder");
    assert_eq!(fs::read_dir(&good).unwrap().count(), 0, "nothing is created behind a link");
}

#[test]
fn a_new_folder_is_writable_only_by_its_owner() {
    if !is_root() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let folder = folder_with(place.path(), "sticky", 0o1777).join("a/b");
    let (code, said) = backends(&folder);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(folder.parent().unwrap()).unwrap().permissions().mode() & 0o7777, 0o755);
}
