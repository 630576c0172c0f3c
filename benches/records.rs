//! What a request pays for its limits and its usage row, in nanoseconds each, on one thread and on all: `limits::admit`
//! against a workspace's quota and an endpoint's four limits, with `settle`; and `Recorder::record` of one row, the row's
//! own memory included. Left out: what the writer's thread does meanwhile on other cores.
//!
//! `cargo bench -p tessera --bench records`

use std::hint::black_box;
use std::thread;
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use tessera::catalog::gateway_config::RateLimit;
use tessera::gateway::limits::{Caller, Limits, Quota, admit, monotonic_ms};
use tessera::usage::{Recorder, Retention, UsageRow};

const ROUNDS: u64 = 1_000_000;
/// Few enough to find room in the queue, so that what is measured is not the refusal.
const BURST: u64 = 2_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cores = thread::available_parallelism()?.get();
    let config = r#"[{"calls":1000000000,"tokens":10000000000,"renewal_period":"minute"},
        {"key":"user","calls":1000000000,"tokens":10000000000,"renewal_period":"minute"}]"#;
    let endpoint = Limits::endpoint(&serde_json::from_str::<Vec<RateLimit>>(config)?, None);
    let quota = Quota { requests_per_minute: Some(1_000_000_000), tokens_per_minute: None };
    let workspace = Limits::workspace(quota, None);
    for threads in [1, cores] {
        let ns = on_threads(threads, |thread| {
            let caller = Caller { id: thread, name: "ann", service_principal: false, member_of: &|_| false };
            let start = Instant::now();
            for _ in 0..ROUNDS {
                let now_ms = monotonic_ms();
                let admitted = admit(&[&workspace, &endpoint], black_box(&caller), 20, now_ms);
                if let Ok(admitted) = admitted {
                    admitted.settle(10, now_ms);
                }
            }
            start.elapsed().as_nanos() as f64 / ROUNDS as f64
        });
        println!("limits: admit and settle, five limits   {threads:2} threads   {ns:7.0} ns");
    }

    let dir = std::env::temp_dir().join(format!("tessera-bench-{}", std::process::id()));
    let dropped = Counter::default();
    let retention = Retention { days: None, bytes_max: u64::MAX };
    let recorder = Recorder::start(&dir, [1; 32], retention, dropped.clone())?;
    for threads in [1, cores] {
        let ns = on_threads(threads, |_| {
            let (mut spent_ns, mut rows) = (0, 0);
            for _ in 0..20 {
                let start = Instant::now();
                (0..BURST).for_each(|_| recorder.record(black_box(row())));
                spent_ns += start.elapsed().as_nanos();
                rows += BURST;
                // The writer looks every 100 ms.
                thread::sleep(std::time::Duration::from_millis(150));
            }
            spent_ns as f64 / rows as f64
        });
        println!("usage: record one row                   {threads:2} threads   {ns:7.0} ns");
    }
    println!("rows dropped: {}", dropped.get());
    drop(recorder);
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

fn on_threads(threads: usize, work: impl Fn(u64) -> f64 + Sync) -> f64 {
    let sum: f64 = thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> = (0..threads as u64).map(|thread| scope.spawn(move || work(thread))).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).sum()
    });
    sum / threads as f64
}

fn row() -> UsageRow {
    UsageRow {
        workspace: 1,
        databricks_request_id: "0123456789abcdef0123456789abcdef0123".to_owned(),
        requester: "ann@example.com".to_owned(),
        status_code: 200,
        request_time_ms: 1_790_000_000_000,
        served_entity_id: "0123456789abcdef0123456789abcdef".to_owned(),
        endpoint_name: "iris".to_owned(),
        execution_duration_us: 150,
        ..UsageRow::default()
    }
}
