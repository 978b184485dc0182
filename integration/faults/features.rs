//! The same services file on hosts that lack one thing each, and several at once: it runs, reads right, and what is
//! lost is said.

use supervisor::host::FeatureName;

use crate::golden::image;
use crate::support::cli::Cli;
use crate::support::image::app;

const SAY: &str = "    command: [sh, -c, 'cat /etc/passwd; echo alive; exec sleep 1000']\n    stop_signal: KILL\n";
/// What the container reads, and what it could not do otherwise: write, and execute.
const LOOK: &str =
    "sha256sum /bin/busybox /etc/passwd | cut -c-64; echo x > /written && cat /written";

/// Runs the services with `disabled` features, and returns what was read and what was said.
fn outcome(disabled: &str) -> (String, String, serde_json::Value) {
    let cli = Cli::new().with("SUPERVISOR_DISABLE", disabled);
    cli.services(&app(&image("small-esgz"), SAY));
    let mut up = cli.up();
    up.until("| alive");
    let ps = cli.ps("app");
    assert_eq!(ps["State"], "running", "without {disabled}: {ps}");
    let read = cli.run(["exec", "-T", "app", "--", "sh", "-c", LOOK]).ok();
    (read, up.text(), ps)
}

fn check(sets: &[&str]) {
    let (expected, said, ps) = outcome("");
    assert!(!said.contains("no fuse") && ps["LazyLayers"] == 2, "{said}");
    for disabled in sets {
        let (read, said, ps) = outcome(disabled);
        assert_eq!(read, expected, "without {disabled}");
        let off: Vec<FeatureName> = FeatureName::ALL
            .into_iter()
            .filter(|name| disabled.split(',').any(|word| word == name.as_str()))
            .collect();
        for name in &off {
            let told = said.contains(&format!("no {name} (it is switched off): {}", name.loss()));
            assert_eq!(told, name.is_noticed(), "without {disabled}: {said}");
        }
        let lazy = if off.contains(&FeatureName::Fuse) { 0 } else { 2 };
        assert_eq!(ps["LazyLayers"], lazy, "without {disabled}: {ps}");
    }
}

#[test]
fn without_one_feature_of_the_data_path_the_same_services_run() {
    check(&["fuse", "passthrough", "resend", "lowerdir+", "mount-api", "userns-overlay"]);
}

#[test]
fn without_one_feature_of_confinement_the_same_services_run() {
    check(&["cgroup", "seccomp", "landlock", "nftables", "exit-codes", "resource-limits"]);
}

#[test]
fn without_several_features_the_same_services_run() {
    check(&[
        // Linux 6.1, and one of a small appliance.
        "passthrough,resend,lowerdir+,exit-codes",
        "fuse,lowerdir+,cgroup,seccomp,landlock,nftables",
        "passthrough,resend,lowerdir+,mount-api,userns-overlay,cgroup,seccomp,landlock,nftables,exit-codes,\
         resource-limits",
    ]);
}

#[test]
fn without_overlay_nothing_starts_and_the_reason_is_said() {
    let cli = Cli::new().with("SUPERVISOR_DISABLE", "overlay");
    cli.services(&app(&image("small-esgz"), SAY));
    let mut up = cli.up();
    up.until("no overlay (it is switched off): no container can start");
    up.until(": no overlay: it is switched off");
}

#[test]
fn a_feature_that_does_not_exist_is_wrong_use() {
    let cli = Cli::new().with("SUPERVISOR_DISABLE", "fuze");
    cli.services(&app(&image("small-esgz"), SAY));
    let said = cli.run(["up"]).failed(1);
    assert!(said.contains("`fuze` is no feature; expected some of fuse,"), "{said}");
}

#[test]
fn without_lowerdir_plus_an_image_can_still_be_looked_into() {
    let cli = Cli::new().with("SUPERVISOR_DISABLE", "lowerdir+");
    let target = cli.directory("look");
    cli.run(["image", "mount", &image("small-esgz"), target.to_str().unwrap()]).ok();
    assert!(target.join("bin/busybox").exists());
    cli.run(["image", "umount", target.to_str().unwrap()]).ok();
}

#[test]
fn a_container_on_a_host_without_control_groups_is_stopped_with_all_its_processes() {
    let cli = Cli::new().with("SUPERVISOR_DISABLE", "cgroup");
    // What runs in the container is told from everything else on the host by its environment.
    let mark = format!("OF={}", cli.folder().display());
    let tree = format!(
        "    command: [sh, -c, \"trap '' TERM; sleep 1001 & echo alive; wait; sleep 1002\"]\n    \
         environment: [\"{mark}\"]\n    stop_grace_period: 100ms\n"
    );
    let processes = || {
        let found = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).filter(|entry| {
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|pair| pair == mark.as_bytes())
        });
        found.count()
    };
    cli.services(&app(&image("small-esgz"), &tree));
    let mut up = cli.up();
    up.until("| alive");
    assert_eq!(processes(), 2, "a shell and what it waits for");
    drop(up);
    assert_eq!(processes(), 0);
}

#[test]
fn the_old_call_mounts_hundreds_of_layers() {
    use supervisor::sys::mount::{self, MountCall, Overlay, Upper};
    // Characters that mean something in the options of that call.
    let folder = tempfile::Builder::new().prefix("old, call: \\ ").tempdir().unwrap();
    let at = |name: String| {
        let path = folder.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    for (round, count) in [2, 120, 450].into_iter().enumerate() {
        let lower: Vec<_> =
            (0..count).map(|n| at(format!("a-rather-long-name-{round}-{n}"))).collect();
        for (number, dir) in lower.iter().enumerate() {
            std::fs::write(dir.join("top"), number.to_string()).unwrap();
            std::fs::write(dir.join(format!("file-{number}")), "").unwrap();
        }
        let dir = at(format!("upper-{round}"));
        let upper = Upper { dir, work: at(format!("work-{round}")), volatile: true };
        let target = at(format!("target-{round}"));
        let before = std::env::current_dir().unwrap();
        let seen = std::thread::scope(|scope| {
            let mounting = scope.spawn(|| {
                mount::enter_private_namespace().unwrap();
                let overlay =
                    Overlay { source: "supervisor-test", lower: &lower, upper: Some(&upper) };
                mount::overlay(overlay, &target, MountCall::Legacy).unwrap();
                std::fs::write(target.join("written"), "").unwrap();
                let entries = std::fs::read_dir(&target).unwrap().count();
                (std::fs::read_to_string(target.join("top")).unwrap(), entries)
            });
            mounting.join().unwrap()
        });
        assert_eq!(seen, ((count - 1).to_string(), count + 2));
        assert!(upper.dir.join("written").exists());
        assert_eq!(std::env::current_dir().unwrap(), before);
    }
}
