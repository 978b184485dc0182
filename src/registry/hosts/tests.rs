//! What files say of registries, in the order and the form in which they are asked.

use super::*;

/// A folder of trees and files.
struct Bed(tempfile::TempDir);

impl Bed {
    fn new(files: &[(&str, &str)]) -> Self {
        let bed = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            let path = bed.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn sources(&self) -> Sources {
        Sources {
            trees: vec![self.path("certs.d"), self.path("docker")],
            files: vec![self.path("user.conf"), self.path("registries.conf")],
            plain: vec!["plain.example".to_owned()],
        }
    }

    fn read(&self, host: &str, repository: &str) -> Vec<Endpoint> {
        self.sources().read(host, repository).unwrap()
    }

    fn problem(&self, host: &str) -> String {
        self.sources().read(host, "app").unwrap_err().to_string()
    }
}

/// `address/repository` of each, with `?ns` where it is said.
fn shown(endpoints: &[Endpoint]) -> Vec<String> {
    let text = |endpoint: &Endpoint| endpoint.url("x").unwrap().to_string();
    endpoints.iter().map(text).collect()
}

#[test]
fn without_files_it_is_the_registry_itself() {
    let bed = Bed::new(&[]);
    assert_eq!(shown(&bed.read("r.example:5000", "a/b")), ["https://r.example:5000/v2/a/b/x"]);
    assert_eq!(shown(&bed.read("localhost:5000", "a")), ["http://localhost:5000/v2/a/x"]);
    assert_eq!(shown(&bed.read("plain.example", "a")), ["http://plain.example/v2/a/x"]);
    let hub = bed.read("docker.io", "library/nginx");
    assert_eq!(shown(&hub), ["https://registry-1.docker.io/v2/library/nginx/x"]);
    assert_eq!(hub[0].host, "docker.io", "as credentials are stored");
}

#[test]
fn containerds_hosts_are_asked_in_the_order_of_the_file_and_the_server_last() {
    let bed = Bed::new(&[(
        "certs.d/docker.io/hosts.toml",
        r#"
        server = "https://registry-1.docker.io"

        [host."https://z.example"]
          capabilities = ["pull"]
          ca = "z.pem"
          client = [["z.cert", "z.key"]]
          [host."https://z.example".header]
            x-key = ["one", "two"]

        [host."http://a.example:5000/hub/"]
          capabilities = ["pull", "resolve"]
          skip_verify = true

        [host."https://b.example/cache/v2"]
        [host."https://c.example/own/api"]
          override_path = true
        [host."127.0.0.1:5000"]
        "#,
    )]);
    let read = bed.read("docker.io", "library/nginx");
    assert_eq!(
        shown(&read),
        [
            "https://z.example/v2/library/nginx/x?ns=docker.io",
            "http://a.example:5000/hub/v2/library/nginx/x?ns=docker.io",
            "https://b.example/cache/v2/library/nginx/x?ns=docker.io",
            "https://c.example/own/api/library/nginx/x?ns=docker.io",
            "http://127.0.0.1:5000/v2/library/nginx/x?ns=docker.io",
            "https://registry-1.docker.io/v2/library/nginx/x",
        ]
    );
    let folder = bed.path("certs.d/docker.io");
    assert_eq!(read[0].trust.authorities, [folder.join("z.pem")]);
    assert_eq!(read[0].trust.identity, Some((folder.join("z.cert"), Some(folder.join("z.key")))));
    assert_eq!(read[0].capabilities, Capabilities { pull: true, resolve: false });
    assert_eq!(read[0].headers.len(), 2);
    assert_eq!(read[1].trust.verification, Verification::None);
    assert_eq!(read[2].capabilities, Capabilities::ALL);
    assert_eq!((&*read[0].host, &*read[5].host), ("z.example", "docker.io"));
    let paths = readable(&ClientOptions {
        host_trees: vec![bed.path("certs.d")],
        ..ClientOptions::default()
    });
    assert!(paths.contains(&folder.join("z.key")), "{paths:?}");
}

#[test]
fn a_port_has_its_folder_in_both_spellings_and_default_is_for_all_others() {
    let toml = |host: &str| format!("[host.\"https://{host}\"]\n");
    let bed = Bed::new(&[
        ("certs.d/r.example_5000_/hosts.toml", &toml("one.example")),
        ("certs.d/s.example:5000/hosts.toml", &toml("two.example")),
        ("certs.d/_default/hosts.toml", &toml("rest.example")),
    ]);
    assert_eq!(
        shown(&bed.read("r.example:5000", "a")),
        ["https://one.example/v2/a/x?ns=r.example%3A5000", "https://r.example:5000/v2/a/x"]
    );
    assert!(shown(&bed.read("s.example:5000", "a"))[0].starts_with("https://two.example/"));
    assert!(shown(&bed.read("t.example", "a"))[0].starts_with("https://rest.example/"));
}

#[test]
fn settings_at_the_top_are_the_registrys_own() {
    let bed = Bed::new(&[
        ("certs.d/r.example/hosts.toml", "server = \"http://r.example\"\n"),
        ("certs.d/s.example/hosts.toml", "ca = [\"ca.pem\"]\nskip_verify = true\n"),
    ]);
    assert_eq!(shown(&bed.read("r.example", "a")), ["http://r.example/v2/a/x"]);
    let own = &bed.read("s.example", "a")[0];
    assert_eq!(own.base, "https://s.example/v2");
    assert_eq!(own.trust.authorities, [bed.path("certs.d/s.example/ca.pem")]);
    assert_eq!(own.trust.verification, Verification::None);
}

#[test]
fn a_folder_of_certificates_is_enough() {
    let bed = Bed::new(&[
        ("docker/r.example:5000/ca.crt", ""),
        ("docker/r.example:5000/us.cert", ""),
        ("docker/r.example:5000/us.key", ""),
        ("docker/s.example/us.cert", ""),
    ]);
    let folder = bed.path("docker/r.example:5000");
    let trust = &bed.read("r.example:5000", "a")[0].trust;
    assert_eq!(trust.authorities, [folder.join("ca.crt")]);
    assert_eq!(trust.identity, Some((folder.join("us.cert"), Some(folder.join("us.key")))));
    assert!(bed.problem("s.example").contains("us.key` is missing"));
}

#[test]
fn podmans_longest_prefix_decides_and_its_mirrors_come_first() {
    let bed = Bed::new(&[
        (
            "registries.conf",
            r#"
            unqualified-search-registries = ["docker.io"]
            [[registry]]
            prefix = "docker.io/library"
            location = "hub.example/mirror/library"
            [[registry.mirror]]
            location = "first.example/lib"
            pull-from-mirror = "digest-only"
            [[registry.mirror]]
            location = "second.example:5000/lib"
            insecure = true
            [[registry]]
            location = "docker.io"
            [[registry]]
            prefix = "*.corp.example"
            insecure = true
            [[registry]]
            prefix = "bad.example"
            blocked = true
            "#,
        ),
        (
            "registries.conf.d/one.conf",
            "[[registry]]\nlocation = \"late.example\"\n[[registry.mirror]]\nlocation = \"m.example/late\"\n",
        ),
        ("registries.conf.d/ignored.txt", "="),
    ]);
    let read = bed.read("docker.io", "library/nginx");
    assert_eq!(
        shown(&read),
        [
            "https://first.example/v2/lib/nginx/x",
            "https://second.example:5000/v2/lib/nginx/x",
            "http://second.example:5000/v2/lib/nginx/x",
            "https://hub.example/v2/mirror/library/nginx/x",
        ]
    );
    assert_eq!(read[0].capabilities, Capabilities { pull: true, resolve: false });
    assert_eq!(read[1].trust.verification, Verification::None);
    assert_eq!(
        shown(&bed.read("docker.io", "ann/app")),
        ["https://registry-1.docker.io/v2/ann/app/x"]
    );
    assert_eq!(shown(&bed.read("docker.io", "librarian/app")).len(), 1);
    assert_eq!(
        shown(&bed.read("a.corp.example", "app")),
        ["https://a.corp.example/v2/app/x", "http://a.corp.example/v2/app/x",]
    );
    assert_eq!(shown(&bed.read("late.example", "a"))[0], "https://m.example/v2/late/a/x");
    assert!(bed.problem("bad.example").contains("`bad.example` is blocked"));
}

#[test]
fn a_file_that_makes_no_sense_is_named_with_the_reason() {
    for (text, reason) in [
        ("server = 7", "`server` is no address"),
        ("[host.\"https://a\"]\ncapabilities = [\"fly\"]", "unknown capability `fly`"),
        ("[host.\"ftp://a\"]", "no address of a registry"),
        ("[host.\"https://a\"]\nca = 3", "`https://a`"),
        ("host = 1", "`host` is no table"),
        ("[host", "TOML parse error"),
    ] {
        let bed = Bed::new(&[("certs.d/r.example/hosts.toml", text)]);
        let problem = bed.problem("r.example");
        assert!(problem.contains("r.example/hosts.toml") && problem.contains(reason), "{problem}");
    }
    for text in ["[[registry]]\n", "[[registry]]\nlocation = 'a'\n[[registry.mirror]]\n", "["] {
        let bed = Bed::new(&[("registries.conf", text)]);
        assert!(bed.problem("r.example").contains("registries.conf"));
    }
}

#[tokio::test]
async fn an_address_that_failed_is_asked_last_for_a_while() {
    let bed = Bed::new(&[(
        "certs.d/r.example/hosts.toml",
        "[host.\"https://one.example\"]\n[host.\"https://two.example\"]\ncapabilities = [\"pull\"]\n",
    )]);
    let options =
        ClientOptions { host_trees: vec![bed.path("certs.d")], ..ClientOptions::default() };
    let hosts = Hosts::new(&options);
    let order = async |purpose| -> Vec<String> {
        let endpoints = hosts.of("r.example", "a", purpose).await.unwrap();
        endpoints.iter().map(|endpoint| endpoint.base.clone()).collect()
    };
    let [one, two, own] =
        ["https://one.example/v2", "https://two.example/v2", "https://r.example/v2"];
    assert_eq!(order(Purpose::Pull).await, [one, two, own]);
    assert_eq!(order(Purpose::Resolve).await, [one, own]);
    hosts.failed(&hosts.of("r.example", "a", Purpose::Pull).await.unwrap()[0]);
    assert_eq!(order(Purpose::Pull).await, [two, own, one]);
    assert_eq!(order(Purpose::Resolve).await, [own, one]);
    let past = Instant::now();
    hosts.troubles.lock().unwrap().values_mut().for_each(|until| *until = past);
    assert_eq!(order(Purpose::Pull).await, [one, two, own]);
}
