//! What a container may and may not do to its image, its host and its neighbours.

use crate::support::cli::Cli;
use crate::support::image::{Image, Layer, app};
use crate::support::registry::FaultRegistry;
use crate::support::tar::{Header, TarBuilder};
use crate::unpack::snapshot::snapshot;

fn people() -> Layer {
    let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1234:1235::/home/ann:/bin/sh\n";
    let group = "root:x:0:\nann:x:1235:\nmore:x:1300:ann\n";
    let mut program = Header::new(b'0', b"bin/raise");
    program.mode = 0o4755;
    let tar = TarBuilder::default()
        .directory("etc")
        .file("etc/passwd", passwd)
        .file("etc/group", group)
        .entry(&program, "#!/bin/sh\n")
        .finish();
    Layer::lazy(tar)
}

/// Runs `script` in a service with these further lines, and returns what it wrote.
fn output(cli: &Cli, more: &str, script: &str) -> String {
    let registry = FaultRegistry::start();
    let reference = Image::shell().and(people()).put(&registry);
    let script = format!(
        "    command:\n      - sh\n      - -c\n      - |\n        exec 2>&1\n        {script}\n        echo end; exec sleep 1000\n"
    );
    cli.services(&app(&reference, &format!("{script}{more}")));
    let mut up = cli.up();
    up.until("| end");
    let text = cli.run(["logs"]).ok();
    drop(up);
    text
}

#[test]
fn a_read_only_root_stays_as_it_is_and_shared_memory_is_writable() {
    let said = output(
        &Cli::new(),
        "    read_only: true\n",
        "echo x > /new || echo refused; touch /etc/passwd || echo too; echo y > /dev/shm/z && echo shm",
    );
    assert!(said.contains("Read-only file system") && said.contains("refused"), "{said}");
    assert!(said.contains("too") && said.contains("shm"), "{said}");
}

#[test]
fn what_one_run_writes_is_its_own_and_the_image_stays() {
    let cli = Cli::new();
    let said =
        output(&cli, "", "echo mine > /etc/passwd; rm /bin/raise; cat /etc/passwd; ls /bin/raise");
    assert!(said.contains("| mine"), "{said}");
    let target = cli.directory("image");
    let images = cli.image();
    cli.run(["image", "mount", images["Image"].as_str().unwrap(), target.to_str().unwrap()]).ok();
    let passwd = std::fs::read_to_string(target.join("etc/passwd"));
    assert!(passwd.unwrap().contains("ann:"), "a container changed its image");
    assert!(target.join("bin/raise").exists());
}

#[test]
fn users_by_name_and_by_number_write_to_their_standard_streams() {
    let script = "id; echo out > /dev/stdout; echo err > /dev/stderr; echo $$HOME";
    let said = output(&Cli::new(), "    user: ann\n", script);
    assert!(said.contains("uid=1234(ann) gid=1235(ann)") && said.contains("1300(more)"), "{said}");
    assert!(
        said.contains("| out") && said.contains("| err") && said.contains("/home/ann"),
        "{said}"
    );
    let said = output(&Cli::new(), "    user: \"1000:1300\"\n", script);
    assert!(said.contains("uid=1000 gid=1300(more)"), "{said}");
    assert!(said.contains("| out") && said.contains("| err"), "{said}");
}

#[test]
fn a_user_that_the_image_does_not_know_is_told() {
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let reference = Image::shell().and(people()).put(&registry);
    cli.services(&app(&reference, "    user: nobody-here\n"));
    let mut up = cli.up();
    up.until("could not start");
    assert!(up.text().contains("nobody-here"), "{}", up.text());
    let ps = cli.ps("app");
    assert_ne!(ps["State"], "running", "{ps}");
}

#[test]
fn bound_directories_are_writable_unless_they_are_read_only() {
    let cli = Cli::new();
    std::fs::write(cli.directory("rw").join("host"), "from the host\n").unwrap();
    std::fs::write(cli.directory("ro").join("host"), "also\n").unwrap();
    let said = output(
        &cli,
        "    volumes:\n      - ./rw:/rw\n      - ./ro:/ro:ro\n",
        "cat /rw/host /ro/host; echo inside > /rw/inside; echo no > /ro/inside || echo refused; mount -o remount,rw /ro || echo kept",
    );
    assert!(said.contains("from the host") && said.contains("also"), "{said}");
    assert!(said.contains("refused") && said.contains("kept"), "{said}");
    assert_eq!(std::fs::read_to_string(cli.folder().join("rw/inside")).unwrap(), "inside\n");
    assert!(!cli.folder().join("ro/inside").exists());
}

#[test]
fn root_in_a_container_has_the_usual_capabilities_and_no_more() {
    let said = output(
        &Cli::new(),
        "",
        "grep -E 'CapEff|CapBnd|Seccomp:' /proc/self/status; mount -t tmpfs x /tmp || echo no-mount; \
         unshare -m true || echo no-unshare; echo 1 > /proc/sys/kernel/panic || echo no-sysctl; \
         mknod /tmp/disk b 8 0 && cat /tmp/disk || echo no-disk; cat /proc/kcore | head -c 1 | wc -c",
    );
    // Docker's fourteen.
    assert!(said.contains("CapEff:\t00000000a80425fb"), "{said}");
    assert!(said.contains("CapBnd:\t00000000a80425fb") && said.contains("Seccomp:\t2"), "{said}");
    for refusal in ["no-mount", "no-unshare", "no-sysctl", "no-disk"] {
        assert!(said.contains(refusal), "{refusal}: {said}");
    }
}

#[test]
fn set_user_id_programs_of_an_image_work_inside_and_are_harmless_outside() {
    let cli = Cli::new();
    let said = output(
        &cli,
        "    user: \"1000\"\n",
        "ls -ln /bin/raise; grep NoNewPrivs /proc/self/status",
    );
    assert!(said.contains("-rwsr-xr-x"), "{said}");
    assert!(said.contains("NoNewPrivs:\t0"), "{said}");
    // Nobody but root gets to the layers on the host.
    use std::os::unix::fs::PermissionsExt as _;
    for folder in [cli.run_dir(), cli.state_dir().join("layers")] {
        let mode = std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", folder.display());
    }
}

#[test]
fn attributes_of_overlay_file_systems_inside_an_image_have_no_effect() {
    let lower = TarBuilder::default()
        .directory("d")
        .file("d/below", "below")
        .file("secret", "secret")
        .finish();
    let attribute = |tar: TarBuilder, name: &str, value: &[u8]| {
        tar.pax(b'x', &[(&format!("SCHILY.xattr.{name}"), value)])
    };
    let mut upper = TarBuilder::default();
    upper =
        attribute(upper, "trusted.overlay.opaque", b"y").directory("d").file("d/above", "above");
    upper = attribute(upper, "trusted.overlay.redirect", b"/secret").directory("r");
    upper = attribute(upper, "user.overlay.opaque", b"y").directory("u");
    upper = attribute(upper, "trusted.overlay.metacopy", b"").file("meta", "own content");
    let upper = attribute(upper, "trusted.overlay.whiteout", b"y").file("white", "").finish();
    let mut trees = Vec::new();
    for (layer, options) in [
        (Layer::lazy(upper.clone()), &[][..]),
        (Layer::lazy(upper.clone()), &["--full"]),
        (Layer::gzip(&upper), &[]),
    ] {
        let cli = Cli::new();
        let registry = FaultRegistry::start();
        let reference = Image::shell().and(Layer::lazy(lower.clone())).and(layer).put(&registry);
        let target = cli.directory("image");
        let mut arguments = vec!["image", "mount", &reference, target.to_str().unwrap()];
        arguments.extend_from_slice(options);
        cli.run(arguments).ok();
        let read = |name: &str| std::fs::read_to_string(target.join(name)).unwrap();
        assert_eq!((read("d/below"), read("d/above")), ("below".to_owned(), "above".to_owned()));
        assert_eq!(read("meta"), "own content");
        assert_eq!(std::fs::read_dir(target.join("r")).unwrap().count(), 0);
        trees.push(snapshot(&target));
    }
    assert_eq!(trees[0], trees[1]);
    assert_eq!(trees[0], trees[2]);
    let overlay = |name: &&Vec<u8>| String::from_utf8_lossy(name).contains(".overlay.");
    let shown = trees[0].values().flat_map(|node| node.xattrs.keys()).filter(overlay).count();
    assert_eq!(shown, 0, "attributes of overlay file systems are shown");
}
