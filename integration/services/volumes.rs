//! Named volumes: filled from the image once, kept by `down`, shared by services.

use rustix::process::Signal;

use super::image::Readable;
use super::{IDLE, file, service};
use crate::support::program::{Program, crash, signal};

#[test]
fn a_named_volume_begins_with_the_image_s_files_and_outlives_containers() {
    let program = Program::new();
    let writer =
        service("web", IDLE).key("volumes: ['data:/app', 'tools:/bin:ro', 'data:/empty:nocopy']");
    let reader = service("reader", IDLE).key("volumes: ['data:/app:ro']");
    let services = file(&[writer, reader]);
    program.services(&format!("{services}volumes:\n  data:\n  tools: {{name: shared-tools}}\n"));
    let volumes = program.folder().join("state/volumes");
    let shown =
        |service: &str, script: &str| program.ok(["exec", service, "--", "sh", "-c", script]);
    let up = program.up();
    // With an empty `/bin` there would be no shell.
    program.running("web");
    program.running("reader");
    assert!(volumes.join("shared-tools/data/busybox").exists());
    let run = shown("web", "cat /app/run.sh");
    assert!(!run.is_empty());
    shown("web", "echo kept > /app/mine");
    assert_eq!(shown("reader", "cat /app/mine"), "kept\n");
    assert_eq!(shown("web", "cat /empty/run.sh"), run);
    let refused = program.run(["exec", "reader", "--", "sh", "-c", "echo x > /app/mine"]);
    assert!(!refused.status.success());
    program.interrupt(up);
    program.ok(["down", "-f", "services.yaml"]);
    let up = program.up();
    program.running("web");
    assert_eq!(shown("web", "cat /app/mine"), "kept\n");
    program.interrupt(up);
}

#[test]
fn configs_and_secrets_are_files_of_the_container_alone() {
    let program = Program::new();
    let web = service("web", IDLE)
        .key("configs: [motd, {source: app, target: /etc/app.conf, uid: '33', gid: '34', mode: 0440}]")
        .key("secrets: [key]");
    let top = "configs: {motd: {content: 'hello $$you'}, app: {file: ./app.conf}}\nsecrets: {key: {environment: KEY}}\n";
    program.services(&format!("{}{top}", file(&[web])));
    std::fs::write(program.folder().join("app.conf"), "one\n").unwrap();
    std::fs::write(program.folder().join(".env"), "KEY=very secret\n").unwrap();
    let shown = |script: &str| program.ok(["exec", "web", "--", "sh", "-c", script]);
    let up = program.up();
    program.running("web");
    assert_eq!(shown("cat /motd /run/secrets/key"), "hello $youvery secret");
    assert_eq!(shown("cat /etc/app.conf; stat -c '%u %g %a' /etc/app.conf"), "one\n33 34 440\n");
    let refused = program.run(["exec", "web", "--", "sh", "-c", "echo x > /motd"]);
    assert!(!refused.status.success());
    // Printed for people, a secret is the name of its variable.
    assert!(!program.ok(["config"]).contains("very secret"));
    std::fs::write(program.folder().join("app.conf"), "two\n").unwrap();
    program.ok(["restart", "web"]);
    assert_eq!(shown("cat /etc/app.conf"), "two\n");
    program.interrupt(up);
}

#[test]
fn another_image_is_seen_read_only_and_nothing_of_it_is_unpacked() {
    let program = Program::new();
    let code = Readable::pack(&program, 7, 3);
    let volume = |target: &str, subpath: &str| {
        let source = code.local();
        format!(
            "{{type: image, source: '{source}', target: {target}, image: {{subpath: {subpath}}}}}"
        )
    };
    let volumes = [volume("/all", "."), volume("/code", "data"), volume("/one", "/data/0001")];
    let web = service("web", IDLE).key(&format!("volumes: [{}]", volumes.join(", ")));
    program.services(&file(&[web]));
    let up = program.up();
    let process = program.running("web");
    // It is one of the service's images wherever these are told.
    assert!(program.ok(["config", "--images"]).lines().any(|image| image == code.local()));
    assert_eq!(program.service("web").unwrap()["OfflineReady"], false);
    let pulled = program.ok(["pull", "--complete"]);
    assert!(pulled.contains(&code.local()), "{pulled}");
    assert_eq!(program.service("web").unwrap()["OfflineReady"], true);
    let inspected = program.ok(["inspect", "web"]);
    assert!(inspected.contains("\"mounted_images\""), "{inspected}");
    let shown = |script: &str| program.ok(["exec", "web", "--", "sh", "-c", script]);
    let sums = code.sums.join("\n") + "\n";
    assert_eq!(shown("cd /all && sha256sum data/*").replace("  data", "  /data"), sums);
    assert_eq!(shown("cd /code && sha256sum *").replace("  ", "  /data/"), sums);
    assert!(code.sums[1].starts_with(shown("sha256sum < /one").split(' ').next().unwrap()));
    for script in ["echo x > /code/0000", "rm /all/data/0000", "mkdir /code/new", "echo x > /one"] {
        let refused = program.run(["exec", "web", "--", "sh", "-c", script]);
        assert!(!refused.status.success(), "{script}");
    }
    let layers = std::fs::read_dir(program.folder().join("state/layers")).unwrap();
    for layer in layers {
        assert!(!layer.unwrap().path().join("fs").exists(), "a lazy layer was unpacked");
    }
    // Another control, and another run of the container.
    crash(up);
    let up = program.up();
    assert_eq!(program.running("web"), process);
    // It is in use.
    program.ok(["prune", "--all"]);
    assert!(!program.run(["image", "rm", &code.local()]).status.success());
    program.ok(["restart", "web"]);
    assert_eq!(shown("cat /code/* | wc -c"), "300000\n");
    // What runs once beside it sees it too.
    let ran = program.ok(["run", "--rm", "-T", "web", "--", "sh", "-c", "cat /one | wc -c"]);
    assert_eq!(ran, "100000\n");
    program.interrupt(up);
}

#[test]
fn an_image_that_cannot_be_had_is_no_empty_folder() {
    let program = Program::new();
    let code = Readable::pack(&program, 9, 1);
    let with = |source: &str| {
        let volume = format!("volumes: [{{type: image, source: '{source}', target: /code}}]");
        program.services(&file(&[service("web", IDLE).key("restart: always").key(&volume)]));
    };
    with(&code.local());
    let up = program.up();
    let process = program.running("web");
    with("oci:/nowhere:code");
    let events = || program.ok(["events", "--no-follow"]);
    program
        .until("the file is followed", || events().contains("services file changed").then_some(()));
    assert_eq!(program.running("web"), process, "what runs goes on");
    signal(process, Signal::KILL);
    program.until("it is told", || events().contains("is not here yet").then_some(()));
    with(&code.local());
    program.running("web");
    let shown = program.ok(["exec", "web", "--", "sh", "-c", "cat /code/data/* | wc -c"]);
    assert_eq!(shown, "100000\n");
    program.interrupt(up);
}

#[test]
fn a_path_that_an_image_does_not_have_is_told() {
    let program = Program::new();
    let code = Readable::pack(&program, 8, 1);
    let volume = format!(
        "volumes: [{{type: image, source: '{}', target: /code, image: {{subpath: dist}}}}]",
        code.local()
    );
    program.services(&file(&[service("web", IDLE).key(&volume)]));
    let up = program.up();
    program.until("the reason is told", || {
        let told = program.service("web")?.to_string();
        told.contains("could not mount the image at `/code`").then_some(())
    });
    program.interrupt(up);
}
