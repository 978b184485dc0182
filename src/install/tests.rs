//! Tests of placing and removing files below a root.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::*;

const RECORD: &str = "/usr/local/lib/supervisor/installed.json";

fn items(version: &str) -> Vec<Item> {
    let options = UnitOptions {
        program: "/usr/local/bin/supervisor".into(),
        state_dir: "/var/lib/supervisor".into(),
        run_dir: "/run/supervisor".into(),
        socket_group: None,
    };
    let mut items = vec![Item {
        path: options.program.clone(),
        content: Content::Program(version.as_bytes().to_vec()),
    }];
    items.extend(units(&options).unwrap());
    items
}

fn kinds(changes: &[Change]) -> Vec<ChangeKind> {
    changes.iter().map(|change| change.kind).collect()
}

/// Everything below a folder: mode and content.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_dir() {
                folders.push(path.clone());
                Vec::new()
            } else if metadata.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            found.insert(path, (metadata.permissions().mode(), content));
        }
    }
    found
}

#[test]
fn what_was_placed_goes_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("usr/local")).unwrap();
    fs::write(root.path().join("usr/other"), "theirs").unwrap();
    let before = tree(root.path());
    let changes = place(root.path(), Path::new(RECORD), &items("1")).unwrap();
    assert!(changes.iter().all(|change| change.kind == ChangeKind::Placed), "{changes:?}");
    let program = root.path().join("usr/local/bin/supervisor");
    assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o7777, 0o755);
    let wanted = root.path().join("etc/systemd/system/multi-user.target.wants/supervisor.service");
    // As the installed host sees it, not as this one does.
    assert_eq!(fs::read_link(wanted).unwrap(), Path::new("/etc/systemd/system/supervisor.service"));

    let installed = tree(root.path());
    let again = place(root.path(), Path::new(RECORD), &items("1")).unwrap();
    assert!(again.iter().all(|change| change.kind == ChangeKind::Unchanged), "{again:?}");
    assert_eq!(tree(root.path()), installed);

    remove(root.path(), Path::new(RECORD)).unwrap();
    assert_eq!(tree(root.path()), before);
    assert!(matches!(remove(root.path(), Path::new(RECORD)), Err(InstallError::NotInstalled(_))));
}

#[test]
fn a_newer_version_replaces_an_older_one_and_what_it_lacks_goes() {
    let root = tempfile::tempdir().unwrap();
    place(root.path(), Path::new(RECORD), &items("1")).unwrap();
    let newer = vec![items("2").swap_remove(0)];
    let changes = place(root.path(), Path::new(RECORD), &newer).unwrap();
    assert_eq!(kinds(&changes)[0], ChangeKind::Replaced);
    assert_eq!(kinds(&changes)[1..], [ChangeKind::Removed; 4]);
    assert!(!root.path().join("etc/systemd/system/supervisor.service").exists());
    remove(root.path(), Path::new(RECORD)).unwrap();
    assert!(tree(root.path()).is_empty());
}

#[test]
fn a_foreign_file_stops_everything_before_it_begins() {
    let root = tempfile::tempdir().unwrap();
    let units = root.path().join("etc/systemd/system");
    fs::create_dir_all(&units).unwrap();
    fs::write(units.join("supervisor.service"), "[Service]\nExecStart=/opt/other").unwrap();
    let before = tree(root.path());
    let error = place(root.path(), Path::new(RECORD), &items("1")).unwrap_err();
    assert!(matches!(error, InstallError::Foreign(_)), "{error}");
    assert_eq!(tree(root.path()), before);
}

#[test]
fn what_was_changed_by_hand_is_neither_replaced_nor_removed() {
    let root = tempfile::tempdir().unwrap();
    place(root.path(), Path::new(RECORD), &items("1")).unwrap();
    let unit = root.path().join("etc/systemd/system/supervisor.service");
    fs::write(&unit, "mine now").unwrap();
    let error = place(root.path(), Path::new(RECORD), &items("2")).unwrap_err();
    assert!(matches!(error, InstallError::Changed(_)), "{error}");
    let changes = remove(root.path(), Path::new(RECORD)).unwrap();
    assert_eq!(kinds(&changes).iter().filter(|kind| **kind == ChangeKind::Kept).count(), 1);
    assert_eq!(fs::read_to_string(unit).unwrap(), "mine now");
}

#[test]
fn a_link_in_an_image_does_not_lead_out_of_it() {
    let root = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("usr")).unwrap();
    std::os::unix::fs::symlink(outside.path(), root.path().join("usr/local")).unwrap();
    let error = place(root.path(), Path::new(RECORD), &items("1")).unwrap_err();
    assert!(matches!(error, InstallError::NotFolder(_)), "{error}");
    assert!(tree(outside.path()).is_empty());
}

/// The settings of one section of a unit.
fn section(unit: &str, name: &str) -> Vec<String> {
    let header = format!("[{name}]");
    let lines = unit.lines().skip_while(|line| *line != header).skip(1);
    let own = lines.take_while(|line| !line.starts_with('['));
    own.filter(|line| line.contains('=') && !line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn the_units_let_containers_outlive_control_and_stop_them_with_the_host() {
    let unit = |name: &str| {
        let path = format!("/etc/systemd/system/{name}");
        let items = items("1");
        let item = items.iter().find(|item| item.path == Path::new(&path)).unwrap();
        match &item.content {
            Content::File(bytes) => String::from_utf8(bytes.clone()).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    let service = section(&unit(SERVICE), "Service");
    let options = "--state-dir /var/lib/supervisor --run-dir /run/supervisor";
    for setting in [
        &format!("ExecStart=/usr/local/bin/supervisor {options} daemon"),
        "Type=notify",
        "NotifyAccess=main",
        "KillMode=process",
        "Delegate=yes",
        "OOMPolicy=continue",
        "Restart=always",
        "WatchdogSec=60",
        "FileDescriptorStoreMax=16",
    ] {
        assert!(service.iter().any(|line| line == setting), "`{setting}` is missing: {service:?}");
    }
    // Either would take what is mounted there away with the unit.
    let gone = ["RuntimeDirectory=", "PrivateMounts=", "ProtectSystem=", "ExecStop="];
    assert!(!service.iter().any(|line| gone.iter().any(|gone| line.starts_with(gone))));

    let shutdown = unit(SHUTDOWN_SERVICE);
    let stops = section(&shutdown, "Service");
    for setting in [
        &format!("ExecStop=/usr/local/bin/supervisor {options} shutdown-services"),
        &format!("ExecStart=/usr/local/bin/supervisor {options} resume-services"),
        "Type=oneshot",
        "RemainAfterExit=yes",
    ] {
        assert!(stops.iter().any(|line| line == setting), "`{setting}` is missing: {stops:?}");
    }
    // Units stop in the reverse of their order, so this one before control.
    let order = section(&shutdown, "Unit");
    let after = order.iter().find_map(|line| line.strip_prefix("After=")).unwrap();
    assert!(after.split(' ').any(|unit| unit == SERVICE), "{after}");
    assert!(section(&unit(SERVICE), "Install").contains(&format!("Also={SHUTDOWN_SERVICE}")));
}
