//! The tables as a document for people.

use super::{
    Class, DEPLOY, GRANT, GRANTED, HEALTHCHECK, IMAGE_OPTIONS, IPAM, IPAM_CONFIG, Key, LAZY,
    LIMITS, NAMED_VOLUME, NETWORK, PROBE, RESERVATIONS, RESTART_POLICY, SERVICE, SERVICE_NETWORK,
    SUPERVISOR, TOP, VOLUME, VOLUME_OPTIONS,
};

const INTRODUCTION: &str = "\
# Keys of services.yaml

<!-- Generated: supervisor config --keys > src/spec/keys.md -->

What becomes of each key of the compose specification. *yes*: it is implemented. *no effect*: it is accepted and changes
nothing. *rejected*: an error with file, line and column; with `--allow-unsupported` a warning, and the key is left out.
Values that are not mentioned are rejected in the same way. Keys that begin with `x-` are accepted everywhere.
";

/// The document, in Markdown.
pub(in super::super) fn document() -> String {
    let mut text = INTRODUCTION.to_owned();
    for (title, prefix, keys) in [
        ("The file", "", TOP),
        ("A service", "", SERVICE),
        ("`deploy` of a service", "", DEPLOY),
        ("Limits", "resources.limits.", LIMITS),
        ("Reservations", "resources.reservations.", RESERVATIONS),
        ("Restarts", "restart_policy.", RESTART_POLICY),
        ("A volume of a service, in its long form", "", VOLUME),
        ("Its options, if it is a named one", "volume.", VOLUME_OPTIONS),
        ("Its options, if it is an image", "image.", IMAGE_OPTIONS),
        ("A volume at the top of the file", "", NAMED_VOLUME),
        ("A network of a service, in its long form", "", SERVICE_NETWORK),
        ("A network at the top of the file", "", NETWORK),
        ("Its addresses", "ipam.", IPAM),
        ("Its subnets", "ipam.config.", IPAM_CONFIG),
        ("A config or secret at the top of the file", "", GRANT),
        ("A config or secret of a service", "", GRANTED),
        ("`healthcheck` of a service", "", HEALTHCHECK),
        ("`x-supervisor`", "", SUPERVISOR),
        ("Lazy pulling", "lazy.", LAZY),
        ("Probes", "probe.", PROBE),
    ] {
        text.push_str(&format!("\n## {title}\n\n| key | | |\n|---|---|---|\n"));
        keys.iter().for_each(|key| row(prefix, key, &mut text));
    }
    text
}

fn row(prefix: &str, key: &Key, text: &mut String) {
    let class = match key.class {
        Class::Implemented => "yes",
        Class::Accepted => "no effect",
        Class::Rejected => "rejected",
    };
    let said = key.text.replace('|', "\\|");
    text.push_str(&format!("| `{prefix}{}` | {class} | {said} |\n", key.name));
}
