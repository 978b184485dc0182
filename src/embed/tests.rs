//! Waiting for services, without any that runs.

use serde_json::json;

use super::*;
use crate::host::Features;

#[test]
fn what_runs_or_is_done_is_not_waited_for_and_what_ended_badly_has_failed() {
    let report = |service: &str, state: &str, exit_code: Option<i32>, standing: Standing| {
        let report = json!({
            "project": "shop", "service": service, "container": null, "image": "", "command": "",
            "state": state, "status": state, "exit_code": exit_code, "pid": null,
            "created_at": null, "started_at": null, "restarts": 0, "content": null,
            "standing": standing,
        });
        serde_json::from_value::<ServiceReport>(report).unwrap()
    };
    let (rest, failed) = not_up(vec![
        report("web", "running", None, Standing::Up),
        report("job", "exited", Some(0), Standing::Done),
        report("bad", "exited", Some(3), Standing::Failed),
        report("again", "failed", None, Standing::Coming),
        report("held", "exited", Some(0), Standing::Stopped),
    ]);
    let names = |services: &BTreeMap<String, String>| services.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&rest), ["again", "held"]);
    assert_eq!(names(&failed), ["bad"]);
}

#[tokio::test]
async fn a_limit_may_be_longer_than_any_clock() {
    let folder = tempfile::tempdir().unwrap();
    let (state_dir, run_dir) = (folder.path().join("state"), folder.path().join("run"));
    let options = ControlOptions::with_features(state_dir, run_dir.clone(), Features::assumed());
    let control = Control::start(options).unwrap();
    let supervisor = Supervisor { control, serving: None, run_dir, losses: Vec::new() };
    // Nobody is at that address, which is asked again and again.
    let text = "services: {web: {image: '127.0.0.1:1/web'}}";
    supervisor.apply(Services::from_text("shop", text)).await.unwrap();
    let waiting = supervisor.wait_until_running("shop", Duration::MAX);
    assert!(tokio::time::timeout(Duration::ZERO, waiting).await.is_err(), "it waits");
    supervisor.stop_leaving_running().await;
}
