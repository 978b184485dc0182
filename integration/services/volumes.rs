//! Named volumes: filled from the image once, kept by `down`, shared by services.

use super::{IDLE, file, service};
use crate::support::program::Program;

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
