//! The keys at the top of the file, and ours.

use super::Shape::{Any, Bool, Choice, List, Named, Number, Object, Pairs, Text};
use super::network::NETWORK;
use super::service::SERVICE;
use super::{Key, accepted, done, rejected};

/// The keys at the top of the file.
pub(in super::super) const TOP: &[Key] = &[
    done("configs", Named(GRANT), "files for services; see below"),
    done(
        "include",
        Any,
        "brings in other projects: a path, or `path`, `project_directory`, `env_file`",
    ),
    rejected("models", "models are not run"),
    done("name", Text, "name of the project"),
    done("networks", Named(NETWORK), "bridges that services are in; see below"),
    done("secrets", Named(GRANT), "files for services; see below"),
    done("services", Named(SERVICE), "what runs; required"),
    accepted("version", Any, "every version is read alike"),
    done(
        "volumes",
        Named(NAMED_VOLUME),
        "named volumes, kept below `$STATE/volumes`; `down` leaves them",
    ),
    done("x-supervisor", Object(SUPERVISOR), "our own words, for all services; see below"),
];

/// The keys of a volume in its long form.
pub(in super::super) const VOLUME: &[Key] = &[
    done("bind", Any, "`create_host_path: true`; `selinux` has no effect"),
    accepted("consistency", Text, "it is for Docker Desktop"),
    done("image", Object(IMAGE_OPTIONS), "options of an image"),
    done("read_only", Bool, "`true`: the container cannot write there"),
    done("source", Text, "folder or file of this host, the key of a named volume, or an image"),
    done("target", Text, "absolute path in the container"),
    done("tmpfs", Any, "`size`, `mode`"),
    done(
        "type",
        Choice(&["bind", "volume", "image", "tmpfs"]),
        "`bind`, `volume`, `image` (another image, read-only) or `tmpfs`",
    ),
    done("volume", Object(VOLUME_OPTIONS), "options of a named volume"),
];

/// The keys of a volume at the top of the file.
pub(in super::super) const NAMED_VOLUME: &[Key] = &[
    done("driver", Choice(&["local"]), "only `local`"),
    rejected(
        "driver_opts",
        "a volume is a folder; mount other file systems on the host, and use them by path",
    ),
    done("external", Bool, "only `false`: volumes of other tools are not used"),
    accepted("labels", Pairs, "nothing reads them"),
    done("name", Text, "its name on this host; that of the project, `_` and the key where absent"),
];

/// The keys of `volume` of a volume of a service.
pub(in super::super) const VOLUME_OPTIONS: &[Key] = &[
    accepted("labels", Pairs, "nothing reads them"),
    done("nocopy", Bool, "`true`: an empty volume does not get what the image has at the target"),
    rejected("subpath", "the whole volume is mounted"),
];

/// The keys of `image` of a volume of a service.
pub(in super::super) const IMAGE_OPTIONS: &[Key] =
    &[done("subpath", Text, "the folder or file of the image that is mounted, without `..`")];

/// The keys of a config or secret at the top of the file.
pub(in super::super) const GRANT: &[Key] = &[
    done("content", Text, "the text itself"),
    rejected("driver", "only this host keeps them"),
    done("environment", Text, "variable whose value it is"),
    done("external", Bool, "only `false`"),
    done("file", Text, "file of this host; read at each start of a container"),
    accepted("labels", Pairs, "nothing reads them"),
    accepted("name", Text, "it belongs to its project"),
    rejected("template_driver", "texts are not templates"),
];

/// The keys of a config or secret of a service.
pub(in super::super) const GRANTED: &[Key] = &[
    done("gid", Number, "group of the file, `0` where absent"),
    done("mode", Text, "permission bits, `0444` where absent"),
    done("source", Text, "its key at the top of the file"),
    done("target", Text, "path in the container"),
    done("uid", Number, "owner of the file, `0` where absent"),
];

/// The keys of `x-supervisor`, at the top of the file and of a service.
pub(in super::super) const SUPERVISOR: &[Key] = &[
    done(
        "lazy",
        Object(LAZY),
        "how files of the image come to this host; a service's word wins over that for all",
    ),
    rejected("on_registry_loss", "reads wait until the registry is back, in this version"),
    done(
        "on_unhealthy",
        Choice(&["restart", "stop", "none"]),
        "what happens to a service that was healthy and is not any more: `restart` (default), `stop` or `none`",
    ),
    done(
        "ports_bind",
        Text,
        "address that ports are published at which name none, such as `127.0.0.1`; all addresses of the host where absent",
    ),
    rejected("priority", "all services count alike in this version"),
    done(
        "probe",
        Object(PROBE),
        "health without a program in the container: a port on its loopback, instead of `healthcheck`",
    ),
];

/// The keys of `x-supervisor.lazy`.
pub(in super::super) const LAZY: &[Key] = &[
    done(
        "background",
        Bool,
        "only `true`: the rest of the image is fetched while the service runs",
    ),
    done(
        "mode",
        Choice(&["auto", "off", "require"]),
        "only `auto`: lazily where image and host allow it",
    ),
    done(
        "prefetch",
        Choice(&["overlap", "before", "off"]),
        "files that the service reads first: fetched while it starts (`overlap`), before it starts (`before`), or not ahead (`off`)",
    ),
    done("prefetch_paths", List, "absolute paths of those files, where the image does not say"),
];

/// The keys of `x-supervisor.probe`.
pub(in super::super) const PROBE: &[Key] = &[
    done("http", Text, "port and path, such as `8080/healthy`"),
    done("interval", Text, "from one probe to the next"),
    done("retries", Number, "failures in a row that make it unhealthy"),
    done("start_period", Text, "how long failures do not count after the start"),
    done("tcp", Number, "port"),
    done("timeout", Text, "how long one probe may take"),
];
