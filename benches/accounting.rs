//! What a request pays for being governed: who sends it and whether they may, the limits that it meets, and its row in
//! the usage table. In microseconds of processor time per request.
//!
//! Each part is run by itself on one thread and on all cores at once (time of these threads), and then all of them
//! together (time of the whole process, so that writing the rows to Parquet files counts as well). The caller is a user in
//! a group who uses another's endpoint by a grant to that group; the endpoint has limits for itself, for each user, for
//! the group and for another user, in requests and in tokens; the workspace has its quotas.
//! Left out: HTTP, and reading the body for what callers say of a request.
//!
//! `cargo bench -p tessera --bench accounting`

use std::hint::black_box;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use prometheus_client::metrics::counter::Counter;
use rustix::time::ClockId;
use serde_json::json;
use tessera::access::directory::{NewIdentity, NewToken};
use tessera::access::tokens::TokenKind;
use tessera::access::{Action, Directory, IdentityKind, Level, Limits, Object, Principal, Tallies, authorize};
use tessera::catalog::EndpointRecord;
use tessera::gateway::gate::Gate;
use tessera::gateway::limits::monotonic_ms;
use tessera::home::Home;
use tessera::store::memory::MemoryStore;
use tessera::usage::{Recorder, Retention, UsageRow};

const REQUESTS: u32 = 1_000_000;
/// Few enough to find room in the recorder's queue, so that what is measured is not the refusal.
const BURST: u32 = 2_000;
const BURSTS: u32 = 50;
const PLENTY: u64 = u64::MAX >> 8;

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bench = tokio::runtime::Runtime::new()?.block_on(Bench::new(folder.path()))?;
    let cores = thread::available_parallelism()?.get();
    println!("{:44} {:>10} {:>10}", "µs per request", "1 thread", format!("{cores} threads"));
    let part = |name: &str, work: &(dyn Fn() + Sync)| {
        let [one, all] = [1, cores].map(|threads| per_request_us(threads, work));
        println!("{name:44} {one:10.2} {all:10.2}");
    };
    part("token to principal, authorize", &|| drop(black_box(bench.enter())));
    let principal = bench.enter()?;
    part("limits: admit and settle", &|| bench.limit(black_box(&principal)));
    let whole = bench.whole_us()?;
    println!("{:44} {whole:10.2}", "all, and the row, and writing it");
    println!("rows dropped: {}", bench.dropped.get());
    Ok(())
}

/// A server's governing parts, an endpoint and somebody who may use it.
struct Bench {
    directory: Arc<Directory>,
    gate: Gate,
    endpoint: EndpointRecord,
    headers: HeaderMap,
    recorder: Recorder,
    dropped: Counter,
}

impl Bench {
    async fn new(folder: &std::path::Path) -> Result<Bench> {
        let limits = Limits {
            endpoints: PLENTY,
            model_versions: PLENTY,
            model_bytes: PLENTY,
            concurrent_requests: PLENTY,
            requests_per_minute: PLENTY,
            tokens_per_minute: PLENTY,
        };
        let tallies = Arc::new(Tallies::new(limits));
        let home = Home::open(&folder.join("home"))?;
        let directory = Directory::open(Arc::new(MemoryStore::new()), &home, [1; 32], Arc::clone(&tallies)).await?;
        let workspace = directory.workspaces().first().context("the first start makes a workspace")?.id;
        let identity = |kind, name: &str, groups| NewIdentity {
            kind,
            name: name.to_owned(),
            display_name: name.to_owned(),
            active: true,
            external_id: None,
            groups,
            server_admin: false,
        };
        let group = directory.create_identity(workspace, identity(IdentityKind::Group, "team", vec![])).await?;
        let user = identity(IdentityKind::User, "ann@example.com", vec![group.id]);
        let user = directory.create_identity(workspace, user).await?;
        let token =
            NewToken { kind: TokenKind::Personal, created_by: user.id, comment: String::new(), lifetime_ms: None };
        let (token, _) = directory.create_token(&user, token).await?;
        let endpoint = json!({
            "workspace": workspace, "name": "iris", "id": "0123456789abcdef0123456789abcdef", "creator": "admin",
            "grants": [{"to": group.id, "level": Level::Query}],
            "rate_limits": [
                {"calls": 1_000_000_000_000u64, "tokens": 1_000_000_000_000u64, "renewal_period": "minute"},
                {"key": "user", "calls": 1_000_000_000_000u64, "renewal_period": "minute"},
                {"key": "user_group", "principal": "team", "tokens": 1_000_000_000_000u64, "renewal_period": "minute"},
                {"key": "user", "principal": "bob@example.com", "calls": 1, "renewal_period": "minute"},
            ],
            "creation_timestamp": 0, "last_updated_timestamp": 0,
        });
        let directory = Arc::new(directory);
        let dropped = Counter::default();
        let retention = Retention { days: None, bytes_max: u64::MAX };
        Ok(Bench {
            gate: Gate::new(Arc::clone(&directory), tallies),
            directory,
            endpoint: serde_json::from_value(endpoint)?,
            headers: HeaderMap::from_iter([(AUTHORIZATION, format!("Bearer {token}").parse()?)]),
            recorder: Recorder::start(&folder.join("usage"), [1; 32], retention, dropped.clone())?,
            dropped,
        })
    }

    fn enter(&self) -> Result<Arc<Principal>> {
        let principal = self.directory.authenticate(black_box(&self.headers))?;
        authorize(&principal, Action::Use(Level::Query), Object::Endpoint(&self.endpoint))?;
        Ok(principal)
    }

    fn limit(&self, principal: &Principal) {
        match self.gate.admit(principal, &self.endpoint, 20) {
            Ok(admitted) => admitted.settle(10, monotonic_ms()),
            Err(_) => unreachable!("the limits are far away"),
        }
    }

    fn row(&self, principal: &Principal) -> UsageRow {
        UsageRow {
            workspace: self.endpoint.workspace.0,
            databricks_request_id: "01234567-89ab-cdef-0123-456789abcdef".to_owned(),
            requester: principal.name.clone(),
            status_code: 200,
            request_time_ms: 1_790_000_000_000,
            served_entity_id: "0123456789abcdef0123456789abcdef".to_owned(),
            endpoint_name: self.endpoint.name.clone(),
            execution_duration_us: u64::from(fastrand::u16(100..200)),
            ..UsageRow::default()
        }
    }

    /// Everything, until the last row is in its file.
    fn whole_us(&self) -> Result<f64> {
        let started = processor_time(ClockId::ProcessCPUTime);
        let waiter = tokio::runtime::Builder::new_current_thread().build()?;
        for _ in 0..BURSTS {
            for _ in 0..BURST {
                let principal = self.enter()?;
                self.limit(&principal);
                self.recorder.record(self.row(&principal));
            }
            waiter.block_on(self.recorder.flush());
        }
        let spent = processor_time(ClockId::ProcessCPUTime) - started;
        Ok(spent.as_secs_f64() * 1e6 / f64::from(BURSTS * BURST))
    }
}

fn per_request_us(threads: usize, work: &(dyn Fn() + Sync)) -> f64 {
    let run = || {
        let started = processor_time(ClockId::ThreadCPUTime);
        (0..REQUESTS).for_each(|_| work());
        (processor_time(ClockId::ThreadCPUTime) - started).as_secs_f64() * 1e6 / f64::from(REQUESTS)
    };
    let sum: f64 = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).sum()
    });
    sum / threads as f64
}

fn processor_time(clock: ClockId) -> Duration {
    let time = rustix::time::clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
