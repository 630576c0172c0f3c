//! The parts of a server that have no other module to look at them.

use std::fs;
use std::sync::Arc;

use rustix::process::{Resource, getrlimit};

use super::{Check, read};
use crate::config::ServeConfig;
use crate::http::tls::Tls;
use crate::observe::metrics::Metrics;
use crate::sandbox::engine::Allocation;

/// Files that a server has open beside its connections: store, models, artifacts, event loops.
const FILES_BESIDE_CONNECTIONS: u64 = 512;

/// Mappings of memory that an endpoint takes that is awake, at most: the default number of endpoints is made for the
/// kernel's default.
const MAPPINGS_PER_ENDPOINT: u64 = 32;

pub(super) fn pool(pool: &anyhow::Result<Allocation>, wanted: u32) -> Check {
    match pool {
        Ok(pool) => Check::ok("instance pool", format!("{} instances at once", pool.instances_max)),
        Err(error) => Check::missing(
            "instance pool",
            format!("no room for {wanted} instances: {error:#}"),
            "lift the limit of address space (`ulimit -v unlimited`), or lower --concurrent-requests-max",
        ),
    }
}

pub(super) fn page_map_scan(pool: Option<&Allocation>, swap: bool) -> Check {
    const NAME: &str = "page-map scan";
    match pool {
        Some(pool) if pool.pagemap_scan => Check::ok(NAME, "instances start in microseconds"),
        _ if swap => Check::warn(NAME, "off because swap is active, so instances start slower", "`swapoff -a`"),
        _ => Check::warn(NAME, "the kernel has none, so instances start slower", "Linux 6.7 or newer"),
    }
}

/// Whether the home can be had, by what can be seen without touching it.
pub(super) fn home(config: &ServeConfig) -> Check {
    const NAME: &str = "home";
    let shown = config.home.display();
    if let Ok(address) = fs::read_to_string(config.home.join("address")) {
        return Check::ok(NAME, format!("{shown}, of a server at {}", address.trim()));
    }
    let nearest = fs::canonicalize(".").unwrap_or_default().join(&config.home);
    let Some(nearest) = nearest.ancestors().find(|folder| folder.exists()) else {
        return Check::missing(NAME, format!("{shown} cannot be made"), "give another with --home");
    };
    let is_writable = rustix::fs::access(nearest, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
    match is_writable {
        Ok(()) if nearest.is_dir() => Check::ok(NAME, shown.to_string()),
        Ok(()) => Check::missing(NAME, format!("{} is no folder", nearest.display()), "give another with --home"),
        Err(error) => Check::missing(
            NAME,
            format!("{} cannot be written to: {error}", nearest.display()),
            "give another with --home, or the rights to this one",
        ),
    }
}

pub(super) fn tls(config: &ServeConfig) -> Check {
    const NAME: &str = "tls";
    let Some(files) = &config.tls else {
        let listen = config.listen;
        return match listen.ip().to_canonical().is_loopback() {
            true => Check::ok(NAME, format!("none, and none needed: {listen} is of this machine alone")),
            false => Check::warn(
                NAME,
                format!("none, so tokens cross the network to {listen} readable"),
                "--tls-cert and --tls-key",
            ),
        };
    };
    match Tls::load(files, &Arc::new(Metrics::default())) {
        Ok(_) => Check::ok(NAME, format!("certificate {}", files.cert.display())),
        Err(error) => Check::missing(NAME, format!("{error:#}"), "mend the files of --tls-cert and --tls-key"),
    }
}

/// Whether there can be as many connections as the settings allow.
pub(super) fn files(config: &ServeConfig) -> Check {
    let needed = config.max_connections as u64 + FILES_BESIDE_CONNECTIONS;
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < needed => Check::warn(
            "open files",
            format!("{limit}, of which {} connections need {needed}", config.max_connections),
            format!("`ulimit -n {needed}`, or lower --max-connections"),
        ),
        limit => Check::ok("open files", limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())),
    }
}

/// Whether as many endpoints can be awake as the settings allow.
pub(super) fn mappings(config: &ServeConfig) -> Check {
    const NAME: &str = "memory mappings";
    let needed = config.awake_endpoints_max as u64 * MAPPINGS_PER_ENDPOINT;
    let limit = read("/proc/sys/vm/max_map_count").and_then(|limit| limit.parse::<u64>().ok());
    match limit {
        Some(limit) if limit < needed => Check::warn(
            NAME,
            format!("{limit}, of which {} awake endpoints may need {needed}", config.awake_endpoints_max),
            format!("`sysctl vm.max_map_count={needed}`, or lower --awake-endpoints-max"),
        ),
        limit => Check::ok(NAME, limit.map_or_else(|| "unknown".to_owned(), |limit| limit.to_string())),
    }
}
