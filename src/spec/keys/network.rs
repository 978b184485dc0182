//! The keys of networks, at the top of the file and of a service.

use super::Shape::{Bool, Choice, Items, List, Number, Object, Pairs, Text};
use super::{Key, accepted, done, rejected};

const NO_OPTIONS: &str = "bridges are set up by the supervisor";

/// The keys of a network at the top of the file.
pub(in super::super) const NETWORK: &[Key] = &[
    accepted("attachable", Bool, "it is for clusters"),
    done("driver", Choice(&["bridge"]), "only `bridge`: a network is one of this host"),
    rejected("driver_opts", NO_OPTIONS),
    done("enable_ipv4", Bool, "only `true`"),
    done(
        "enable_ipv6",
        Bool,
        "whether it has addresses of version 6; where absent, if the host has",
    ),
    done(
        "external",
        Bool,
        "`true`: it is of another project, or of several; made when it is first used, and its settings are not ours to \
         say; `name` where it is not the key",
    ),
    done("internal", Bool, "`true`: it leads nowhere but to its own containers"),
    done("ipam", Object(IPAM), "addresses; see below"),
    accepted("labels", Pairs, "nothing reads them"),
    done("name", Text, "its name on this host; that of the project, `_` and the key where absent"),
];

/// The keys of `ipam`.
pub(in super::super) const IPAM: &[Key] = &[
    done(
        "config",
        Items,
        "at most one subnet of each family; where absent, one that the host does not use",
    ),
    done("driver", Choice(&["default"]), "only `default`"),
    rejected("options", NO_OPTIONS),
];

/// The keys of a subnet.
pub(in super::super) const IPAM_CONFIG: &[Key] = &[
    done("aux_addresses", Pairs, "addresses that no container gets"),
    done("gateway", Text, "address of the host in it; the first where absent"),
    done("ip_range", Text, "part of it that addresses come from"),
    done("subnet", Text, "such as `172.30.0.0/24`"),
];

/// The keys of a network of a service.
pub(in super::super) const SERVICE_NETWORK: &[Key] = &[
    done("aliases", List, "names there, besides that of the service"),
    rejected("driver_opts", NO_OPTIONS),
    done(
        "gw_priority",
        Number,
        "the way out is through the network with the highest one, which is also its first",
    ),
    rejected("interface_name", "interfaces are `eth0` and up, in the order of `priority` and name"),
    done("ipv4_address", Text, "the address that it has there; kept by itself where absent"),
    done("ipv6_address", Text, "as `ipv4_address`"),
    rejected("link_local_ips", "a container has one address of each family"),
    rejected("mac_address", "hardware addresses are made of names, and stay"),
    done("priority", Number, "networks with a higher one come first"),
];
