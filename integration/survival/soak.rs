//! Roles are killed at random moments, again and again, while containers read, write, end and are changed; and in the
//! end the figures. `scripts/soak-kills` runs the long one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use supervisor::sys::process::ProcessIdentity;

use super::figures::{Figures, Random};
use super::reader::Reader;
use crate::services::image::Readable;
use crate::services::{Service, file, service};
use crate::support::program::{Program, crash};
use crate::support::registry::FaultRegistry;

/// Bytes a second that the registry sends: most first reads wait for it.
const RATE: u64 = 3_000_000;
/// Writes a sequence, so that a hole or a line said twice is seen.
const SEQUENCE: &str =
    "trap 'exit 0' TERM; n=0; while :; do echo seq $n; n=$((n+1)); sleep 0.02; done";
/// Ends by itself with a code that no signal and no failure of ours has.
const ENDING: &str = "echo run; sleep 0.2; exit 7";
/// Reads all files, in the container itself, over and over.
const READING: &str = "trap 'exit 0' TERM; while :; do for f in /data/*; do \
    cat $f >/dev/null || echo error $f; done; echo round; done";
/// Who dies, and how often of a hundred deaths.
const WEIGHTS: [(&str, u64); 4] =
    [("control", 20), ("keeper", 15), ("worker", 35), ("monitor", 30)];
/// Two that may die together: without a descriptor store, keeper and worker may not (the table in the README).
const PAIRS: [[&str; 2]; 5] = [
    ["control", "monitor"],
    ["control", "worker"],
    ["control", "keeper"],
    ["monitor", "worker"],
    ["monitor", "keeper"],
];

/// What 99 of 100 deaths may cost a reader of files that are here, in an optimised build with the machine to itself.
const STALL_LIMIT: Duration = Duration::from_millis(500);

struct Soak {
    program: Program,
    image: Readable,
    reference: String,
    up: Option<Child>,
    random: Random,
    figures: Figures,
    /// Raised by every change of the changing service.
    generation: u32,
    /// Containers that live through everything.
    lasting: Vec<(&'static str, ProcessIdentity)>,
    /// How often the ending service was seen to have ended with each code; without one where nobody knew.
    codes: BTreeMap<Option<i64>, u64>,
    /// The record of its last end.
    last_end: Vec<u8>,
    /// How often its monitor was killed, each of which may cost an exit code.
    ending_killed: u64,
    /// How often that of the writing service was, each of which may cost what it had read and not written yet.
    writing_killed: u64,
}

impl Soak {
    fn services(&self) -> Vec<Service> {
        let changing = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done";
        let generation = format!("environment: {{GENERATION: \"{}\"}}", self.generation);
        vec![
            service("reading", READING).image(self.reference.clone()),
            service("writing", SEQUENCE),
            service("ending", ENDING).key("restart: always"),
            service("changing", changing).image(self.reference.clone()).key(&generation),
        ]
    }

    /// The process of a role, if somebody plays it; with a random container for monitors.
    fn find(&mut self, role: &str) -> Option<(String, Pid)> {
        match role {
            "control" => Some((String::new(), Pid::from_child(self.up.as_ref()?))),
            "monitor" => {
                let services = ["reading", "writing", "ending", "changing"];
                let service = services[self.random.below(4) as usize];
                Some((service.to_owned(), self.program.role("monitor", service)?))
            }
            role => Some((String::new(), self.program.role(role, "")?)),
        }
    }

    /// Kills them at once, and waits until somebody plays each role again.
    fn kill(&mut self, roles: &[&'static str]) {
        let found: Vec<_> =
            roles.iter().filter_map(|role| Some((*role, self.find(role)?))).collect();
        let start = Instant::now();
        for (role, (service, pid)) in &found {
            // One that ended by itself just now is no death of ours.
            if rustix::process::kill_process(*pid, Signal::KILL).is_ok() {
                self.figures.killed(role);
                self.ending_killed += u64::from(service == "ending");
                self.writing_killed += u64::from(service == "writing");
            }
        }
        let is_control = |role: &str| role == "control";
        let control = found.iter().any(|(role, _)| is_control(role));
        if control {
            crash(self.up.take().unwrap());
        }
        // A container that ends, or is changed, has another monitor later or none.
        let lasts = |service: &str| !["ending", "changing"].contains(&service);
        let mut waiting = found;
        waiting.retain(|(role, (service, _))| !is_control(role) && lasts(service));
        let Self { program, figures, up, .. } = self;
        // Side by side, so that the time of one has nothing of another's.
        std::thread::scope(|scope| {
            let next = control.then(|| scope.spawn(|| (program.up(), start.elapsed())));
            program.until(&format!("{waiting:?} are replaced"), || {
                waiting.retain(|(role, (service, pid))| {
                    let next = program.role(role, service).filter(|next| next != pid);
                    // With control it is the worker alone that holds the connection, until the next keeper does: a
                    // death of the worker before that would be one of all three at once.
                    let next = next.filter(|next| *role != "keeper" || holds_connection(*next));
                    if next.is_some() {
                        figures.replaced(role, start.elapsed());
                    }
                    next.is_none()
                });
                waiting.is_empty().then_some(())
            });
            if let Some(next) = next {
                let (child, after) = next.join().unwrap();
                *up = Some(child);
                figures.replaced("control", after);
            }
        });
    }

    fn change(&mut self) {
        self.generation += 1;
        self.program.services(&file(&self.services()));
    }

    fn check(&mut self) {
        for (name, process) in &self.lasting {
            assert!(process.open().is_some(), "{name} was lost");
        }
        if let Some((record, code)) = self.end_of("ending")
            && record != self.last_end
        {
            *self.codes.entry(code).or_default() += 1;
            self.last_end = record;
        }
    }

    /// How the last run of a service ended: the monitor's record, and the code in it if anybody knew one.
    fn end_of(&self, service: &str) -> Option<(Vec<u8>, Option<i64>)> {
        let containers = std::fs::read_dir(self.program.folder().join("state/containers")).ok()?;
        let part = format!("-{service}-");
        let own = containers.flatten().map(|entry| entry.path());
        let folder = own.into_iter().find(|path| path.to_string_lossy().contains(&part))?;
        let text = std::fs::read(folder.join("exit.json")).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let code = match record["outcome"]["outcome"].as_str() {
            Some("unknown") => None,
            // It is started again.
            Some("not_started") => return None,
            _ => Some(record["outcome"]["code"].as_i64().unwrap_or(-1)),
        };
        Some((text, code))
    }

    fn run(mut self, kills: u64) -> Figures {
        for name in ["reading", "writing"] {
            let pid = self.program.running(name).as_raw_nonzero().get();
            self.lasting.push((name, ProcessIdentity::of(pid).unwrap()));
        }
        self.program.running("changing");
        let reader = Reader::start(self.lasting[0].1.pid, &self.image);
        while self.figures.kills() < kills {
            if self.random.below(6) == 0 {
                self.change();
            }
            self.random.pause(Duration::from_millis(150));
            if self.random.below(8) == 0 {
                let pair = PAIRS[self.random.below(5) as usize];
                self.kill(&pair);
            } else {
                let role = self.random.weighted(&WEIGHTS);
                self.kill(&[role]);
            }
            self.check();
            self.figures.around_kill(reader.longest());
            assert_eq!(reader.errors(), Vec::<String>::new());
        }
        self.converges();
        self.figures.stalls(reader.end());
        self.ends()
    }

    /// The last state that was asked for is reached.
    fn converges(&self) {
        let wanted = format!("GENERATION={}", self.generation);
        self.program.until("the last change is applied", || {
            let pid = self.program.service("changing")?["Pid"].as_i64().filter(|pid| *pid > 0)?;
            let mut environment = Vec::new();
            File::open(format!("/proc/{pid}/environ")).ok()?.read_to_end(&mut environment).ok()?;
            environment.split(|byte| *byte == 0).find(|pair| *pair == wanted.as_bytes())?;
            Some(())
        });
    }

    fn ends(mut self) -> Figures {
        assert_eq!(self.program.interrupt(self.up.take().unwrap()), Some(0));
        let lost = lost(&self.program.output("writing"));
        self.figures.lost(lost.iter().map(|hole| hole.end - hole.start).sum());
        self.figures.print(&self.codes);
        let holes = lost.len() as u64;
        assert!(holes <= self.writing_killed, "{lost:?}, {} killed", self.writing_killed);
        let reading = self.program.output("reading");
        assert!(!reading.iter().any(|line| line.starts_with("error")), "{reading:?}");
        let codes = &self.codes;
        assert!(codes.keys().all(|code| matches!(code, None | Some(7))), "{codes:?}");
        assert!(codes.contains_key(&Some(7)), "{codes:?}");
        // An end that nobody saw is one that a killed monitor should have seen.
        let unknown = codes.get(&None).copied().unwrap_or_default();
        assert!(unknown <= self.ending_killed, "{codes:?}, {} killed", self.ending_killed);
        self.program.ok(["down"]);
        let sockets = std::fs::read_dir(self.program.run_dir().join("monitor"));
        let sockets: Vec<_> = sockets
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".sock"))
            .collect();
        assert!(sockets.is_empty(), "{sockets:?}");
        // Mounts, groups and processes are looked for when the program is dropped.
        self.figures
    }
}

/// The numbers that are missing in a sequence, in which none may come twice.
fn lost(output: &[String]) -> Vec<Range<u64>> {
    let (mut lost, mut next) = (Vec::new(), 0);
    for line in output {
        let number = line.strip_prefix("seq ").and_then(|number| number.parse().ok());
        let number: u64 = number.unwrap_or_else(|| panic!("no line of the service: {line:?}"));
        assert!(number >= next, "said twice: {line:?}");
        if number > next {
            lost.push(next..number);
        }
        next = number + 1;
    }
    lost
}

/// Whether a process has the connection of lazy layers open.
fn holds_connection(pid: Pid) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()));
    descriptors.into_iter().flatten().flatten().any(|descriptor| {
        std::fs::read_link(descriptor.path()).is_ok_and(|target| target.ends_with("dev/fuse"))
    })
}

fn soak(kills: u64, files: usize, seed: u64) -> Figures {
    let program = Program::new();
    let image = Readable::pack(&program, 3, files);
    let registry = FaultRegistry::start();
    registry.put_layout("app", &image.layout);
    registry.limit_rate(Some(RATE));
    let mut soak = Soak {
        reference: format!("{}/app:v1", registry.host()),
        image,
        program,
        up: None,
        random: Random::new(seed),
        figures: Figures::new(seed),
        generation: 0,
        lasting: Vec::new(),
        codes: BTreeMap::new(),
        last_end: Vec::new(),
        ending_killed: 0,
        writing_killed: 0,
    };
    soak.program.services(&file(&soak.services()));
    soak.up = Some(soak.program.up());
    soak.run(kills)
}

fn number(name: &str) -> Option<u64> {
    std::env::var_os(name)?.to_str()?.parse().ok()
}

#[test]
fn thirty_random_deaths_under_load_are_not_noticed() {
    soak(30, 300, number("SUPERVISOR_SOAK_SEED").unwrap_or(20));
}

#[test]
#[ignore = "takes many minutes; `scripts/soak-kills` runs it"]
fn many_random_deaths_under_load_are_not_noticed() {
    let chosen = number("SUPERVISOR_SOAK_KILLS");
    let (kills, limited) = (chosen.unwrap_or(1000), chosen.is_some());
    let files = usize::try_from(kills.clamp(300, 3000)).unwrap();
    let seed = number("SUPERVISOR_SOAK_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let mut figures = soak(kills, files, seed);
    // Only when this runs alone: beside other tests, times are those of the others.
    if limited {
        let stall = figures.usual_stall();
        assert!(stall < STALL_LIMIT, "a reader waited for {stall:?}");
    }
}
