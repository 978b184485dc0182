//! Records in every state that a crash, a bad disk or another version can leave.

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Sample {
    text: String,
}

impl Record for Sample {
    const KIND: &'static str = "sample";
    const VERSION: u32 = 2;

    fn from_older(version: u32, body: serde_json::Value) -> Option<Self> {
        (version == 1).then(|| Self { text: format!("old {body}") })
    }
}

fn sample(text: &str) -> Sample {
    Sample { text: text.to_owned() }
}

fn value(path: &Path) -> Option<Sample> {
    match load(path).unwrap() {
        Loaded::Value(value) => Some(value),
        _ => None,
    }
}

#[test]
fn a_record_reads_back_what_was_saved_last() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    assert!(matches!(load::<Sample>(&path).unwrap(), Loaded::Missing));
    for text in ["a", "b"] {
        save(&path, &sample(text)).unwrap();
        assert_eq!(value(&path), Some(sample(text)));
    }
    remove(&path).unwrap();
    remove(&path).unwrap();
    assert!(matches!(load::<Sample>(&path).unwrap(), Loaded::Missing));
}

#[test]
fn every_cut_of_a_record_is_recovered_from_the_previous_copy_and_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    save(&path, &sample("old")).unwrap();
    save(&path, &sample("new")).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let (value, finding) = load::<Sample>(&path).unwrap().into_parts();
        assert_eq!(value, Some(sample("old")), "cut at {length}");
        let aside = finding.and_then(|finding| finding.aside).unwrap();
        assert_eq!(std::fs::read(&aside).unwrap(), whole[..length]);
        assert!(!path.exists());
    }
}

#[test]
fn a_changed_byte_another_kind_and_a_version_too_old_are_unreadable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    save(&path, &sample("new")).unwrap();
    let whole = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
    for (damaged, expected) in [
        (whole.replace("new", "nev"), "checksum"),
        (whole.replace("\"sample\"", "\"other\""), "`other`"),
        (whole.replace("\"version\":2", "\"version\":0"), "no longer"),
        ("\0".repeat(whole.len()), "cut off"),
    ] {
        std::fs::write(&path, damaged).unwrap();
        let (value, finding) = load::<Sample>(&path).unwrap().into_parts();
        let finding = finding.unwrap();
        assert_eq!(value, None);
        assert!(finding.reason.contains(expected), "{finding:?}");
        assert!(finding.aside.unwrap().exists());
    }
}

#[test]
fn a_record_of_the_version_before_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    save(&path, &sample("x")).unwrap();
    let older = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
    std::fs::write(&path, older.replace("\"version\":2", "\"version\":1")).unwrap();
    assert_eq!(value(&path), Some(sample("old {\"text\":\"x\"}")));
}

#[test]
fn a_crash_at_any_step_of_a_save_leaves_the_old_or_the_new_value() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    save(&path, &sample("older")).unwrap();
    save(&path, &sample("old")).unwrap();
    // The states between the operations of a save: temporary written; previous linked; renamed.
    let new = dir.path().join(".tmp-new");
    std::fs::write(&new, b"half").unwrap();
    assert_eq!(value(&path), Some(sample("old")));
    std::fs::hard_link(&path, dir.path().join(".tmp-link")).unwrap();
    assert_eq!(value(&path), Some(sample("old")));
    std::fs::rename(dir.path().join(".tmp-link"), durable::previous_of(&path)).unwrap();
    assert_eq!(value(&path), Some(sample("old")));
    sweep(dir.path());
    assert!(!new.exists());
    assert_eq!(value(&path), Some(sample("old")));
    // A file system without hard links: the record itself was renamed.
    std::fs::remove_file(&path).unwrap();
    let (value, finding) = load::<Sample>(&path).unwrap().into_parts();
    assert_eq!((value, finding.unwrap().aside), (Some(sample("old")), None));
}

#[test]
fn a_record_of_a_newer_program_stays_for_it_and_a_save_moves_it_out_of_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    save(&path, &sample("old")).unwrap();
    save(&path, &sample("new")).unwrap();
    let newer = std::fs::read_to_string(&path).unwrap().replace("\"version\":2", "\"version\":3");
    std::fs::write(&path, &newer).unwrap();
    for _ in 0..2 {
        let (value, finding) = load::<Sample>(&path).unwrap().into_parts();
        let finding = finding.unwrap();
        assert_eq!(value, Some(sample("old")));
        assert!(finding.kept == Kept::InPlace && finding.reason.contains("newer supervisor"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), newer, "it is not touched");
    }
    for text in ["a", "b", "c"] {
        save(&path, &sample(text)).unwrap();
    }
    assert_eq!(value(&path), Some(sample("c")));
    let kept = dir.path().join("r.version-3");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), newer);
    // Both of its copies, and again.
    std::fs::write(&path, &newer).unwrap();
    std::fs::write(durable::previous_of(&path), &newer).unwrap();
    assert_eq!(load::<Sample>(&path).unwrap().into_parts().0, None);
    save(&path, &sample("d")).unwrap();
    assert!(dir.path().join("r.version-3-2").exists());
    assert!(dir.path().join("r.prev.version-3").exists());
    assert_eq!(aside::set_aside_below(dir.path()).iter().filter(|aside| aside.newer).count(), 3);
}

#[test]
fn what_is_no_file_in_the_place_of_a_record_is_set_aside_and_never_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    let make: [fn(&Path); 3] = [
        |path| std::fs::create_dir_all(path.join("deep/er")).unwrap(),
        |path| std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
        |path| {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)
                .unwrap();
        },
    ];
    for make in make {
        save(&path, &sample("old")).unwrap();
        save(&path, &sample("new")).unwrap();
        std::fs::remove_file(&path).unwrap();
        make(&path);
        let (value, finding) = load::<Sample>(&path).unwrap().into_parts();
        assert_eq!(value, Some(sample("old")));
        assert!(finding.unwrap().aside.is_some());
        // Likewise where only a save meets it, in both places.
        std::fs::remove_file(durable::previous_of(&path)).unwrap();
        make(&path);
        make(&durable::previous_of(&path));
        save(&path, &sample("a")).unwrap();
        save(&path, &sample("b")).unwrap();
        assert!(
            matches!(load::<Sample>(&path).unwrap(), Loaded::Value(found) if found == sample("b"))
        );
    }
}

#[test]
fn only_the_last_few_unreadable_copies_of_a_record_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    std::fs::write(dir.path().join("r2.unreadable-19990101T000000Z"), b"of another").unwrap();
    for number in 0..20_u8 {
        std::fs::write(&path, [number]).unwrap();
        assert!(load::<Sample>(&path).unwrap().into_parts().1.unwrap().aside.is_some());
    }
    let kept = aside::set_aside_below(dir.path());
    assert_eq!(kept.iter().filter(|aside| aside.record == path).count(), 5);
    assert_eq!(kept.len(), 6);
}

#[test]
fn a_record_that_is_written_once_survives_the_loss_of_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    save_with_copy(&path, &sample("once")).unwrap();
    std::fs::write(&path, b"damaged").unwrap();
    assert_eq!(load::<Sample>(&path).unwrap().into_parts().0, Some(sample("once")));
}
