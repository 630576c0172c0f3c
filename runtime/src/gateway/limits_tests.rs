use std::collections::BTreeMap;
use std::sync::Barrier;
use std::thread;

use super::*;
use crate::gateway::window::SLOT_MS;

fn limit(key: LimitKey, principal: Option<&str>, calls: Option<u64>, tokens: Option<u64>) -> RateLimit {
    RateLimit { key: Some(key), principal: principal.map(str::to_owned), calls, tokens }
}

fn compile(limits: &[RateLimit]) -> Limits {
    Limits::endpoint(limits, None)
}

/// Tries one call of a user without groups.
fn call(limits: &Limits, id: u64, name: &str, now_ms: u64) -> Result<(), Refusal> {
    let caller = Caller { id, name, service_principal: false, member_of: &|_| false };
    admit(&[limits], &caller, 0, now_ms).map(|_| ())
}

#[test]
fn calls_and_tokens_in_two_limits_count_like_in_one() {
    let limits = compile(&[
        limit(LimitKey::User, None, Some(2), None),
        RateLimit { key: None, ..limit(LimitKey::Endpoint, None, None, Some(u64::MAX)) },
        limit(LimitKey::User, None, None, Some(10)),
    ]);
    let caller = Caller { id: 1, name: "a", service_principal: false, member_of: &|_| false };
    admit(&[&limits], &caller, 8, 60_000).unwrap().settle(8, 60_000);
    assert!(admit(&[&limits], &caller, 8, 60_000).unwrap_err().limit.contains("10 tokens per minute for each user"));
    admit(&[&limits], &caller, 1, 60_000).unwrap().settle(1, 60_000);
    assert!(admit(&[&limits], &caller, 1, 60_000).unwrap_err().limit.contains("2 calls per minute for each user"));
}

#[test]
fn a_refusal_names_the_limit_and_the_time_and_a_block_is_no_429() {
    let limits = compile(&[limit(LimitKey::User, None, Some(1), None)]);
    call(&limits, 1, "a", 60_000).unwrap();
    call(&limits, 2, "b", 60_000).unwrap();
    let refusal = call(&limits, 1, "a", 61_000).unwrap_err();
    assert_eq!((refusal.limit.as_str(), refusal.retry_after_s), ("1 calls per minute for each user", Some(63)));
    let error = refusal.into_error("iris");
    assert_eq!((error.status, error.code, error.retry_after_s), (429, ErrorCode::RequestLimitExceeded, Some(63)));
    assert!(error.message.starts_with("User defined rate limit(s) exceeded for endpoint 'iris'"));

    let blocked =
        compile(&[limit(LimitKey::User, Some("a"), Some(0), None), limit(LimitKey::User, None, Some(1), None)]);
    let error = call(&blocked, 1, "a", 60_000).unwrap_err().into_error("iris");
    assert_eq!((error.status, error.code), (403, ErrorCode::PermissionDenied));
    call(&blocked, 2, "b", 60_000).unwrap();
}

#[test]
fn a_config_that_keeps_a_limit_keeps_what_it_counted() {
    let per_user = |calls| limit(LimitKey::User, None, Some(calls), None);
    let before = compile(&[per_user(2), limit(LimitKey::Endpoint, None, Some(9), None)]);
    call(&before, 1, "a", 60_000).unwrap();
    call(&before, 1, "a", 60_000).unwrap();
    let raised = Limits::endpoint(&[per_user(3)], Some(&before));
    call(&raised, 1, "a", 60_001).unwrap();
    assert!(call(&raised, 1, "a", 60_002).is_err());
    // A limit that went and came back counts anew.
    let gone = Limits::endpoint(&[], Some(&raised));
    let back = Limits::endpoint(&[per_user(1)], Some(&gone));
    call(&back, 1, "a", 60_003).unwrap();
}

#[test]
fn a_request_over_one_limit_is_counted_by_none() {
    let quota = Quota { requests_per_minute: Some(3), tokens_per_minute: Some(100) };
    let workspace = Limits::workspace(quota, None);
    let endpoint = compile(&[limit(LimitKey::Endpoint, None, Some(2), None)]);
    let caller = Caller { id: 1, name: "a", service_principal: false, member_of: &|_| false };
    let ask = |limits: &[&Limits], tokens| admit(limits, &caller, tokens, 60_000);
    let both = [&workspace, &endpoint];
    ask(&both, 10).unwrap().settle(30, 60_000);
    let _kept = ask(&both, 10).unwrap();
    assert!(ask(&both, 10).unwrap_err().limit.contains("2 calls per minute for the endpoint"));
    // The third request of the workspace and 60 of its tokens are still there.
    let refusal = ask(&[&workspace], 61).unwrap_err();
    assert!(refusal.limit.contains("100 tokens per minute for the workspace"), "{}", refusal.limit);
    assert!(refusal.into_error("iris").message.starts_with("Exceeded workspace rate limit"));
    let _kept = ask(&[&workspace], 60).unwrap();
    assert!(ask(&[&workspace], 0).unwrap_err().retry_after_s.is_some());
}

#[test]
fn an_estimate_above_the_limit_runs_alone_and_its_use_counts() {
    let limits = compile(&[limit(LimitKey::Endpoint, None, None, Some(100))]);
    let caller = Caller { id: 1, name: "a", service_principal: false, member_of: &|_| false };
    let first = admit(&[&limits], &caller, 5000, 60_000).unwrap();
    assert!(admit(&[&limits], &caller, 1, 60_000).is_err());
    first.settle(40, 61_000);
    let second = admit(&[&limits], &caller, 60, 61_000).unwrap();
    second.settle(90, 62_000);
    assert!(admit(&[&limits], &caller, 1, 62_000).is_err());
}

#[test]
fn idle_callers_are_forgotten_and_nothing_that_counts_is() {
    let limits = compile(&[limit(LimitKey::User, None, Some(1), Some(10))]);
    let windows = |limits: &Limits| match &limits.rules[0].counted {
        Counted::Each(windows) => windows.len(),
        Counted::Together(_) => unreachable!(),
    };
    for id in 0..100 {
        call(&limits, id, "x", 60_000 + id * 1000).unwrap();
    }
    limits.remove_idle(60_000 + 90_000);
    assert!((50..75).contains(&windows(&limits)), "{}", windows(&limits));
    assert!(call(&limits, 99, "x", 60_000 + 100_000).is_err());
    limits.remove_idle(500_000);
    assert_eq!(windows(&limits), 0);
    call(&limits, 99, "x", 500_000).unwrap();
}

/// What the documentation says, written down as plainly as it can be: every admitted amount with its time.
#[derive(Default)]
struct Model {
    counted: BTreeMap<(String, &'static str), Vec<(u64, u64)>>,
}

impl Model {
    fn used(&self, key: &(String, &'static str), now_ms: u64) -> u64 {
        let counts = |at: u64| now_ms / SLOT_MS - at / SLOT_MS <= 60_000 / SLOT_MS;
        self.counted.get(key).map_or(0, |all| all.iter().filter(|(at, _)| counts(*at)).map(|(_, n)| n).sum())
    }

    /// Whether the request is admitted; if so it is counted with `used` tokens.
    fn ask(&mut self, limits: &[RateLimit], who: &Who, estimate: u64, used: u64, now_ms: u64) -> bool {
        let named = |limit: &&RateLimit| match limit.scope().0 {
            LimitKey::User => !who.service_principal && limit.principal.as_deref() == Some(who.name),
            LimitKey::ServicePrincipal => who.service_principal && limit.principal.as_deref() == Some(who.name),
            _ => false,
        };
        let group = |limit: &&RateLimit| {
            limit.scope().0 == LimitKey::UserGroup && who.groups.contains(&limit.principal.as_deref().unwrap())
        };
        let default = |limit: &&RateLimit| limit.scope() == (LimitKey::User, None);
        let mut mine: Vec<&RateLimit> = limits.iter().filter(named).collect();
        if mine.is_empty() {
            mine = limits.iter().filter(group).collect();
        }
        if mine.is_empty() {
            mine = limits.iter().filter(default).collect();
        }
        mine.extend(limits.iter().filter(|limit| limit.scope().0 == LimitKey::Endpoint));
        let mut amounts = Vec::new();
        for limit in mine {
            let owner = match limit.scope() {
                (LimitKey::User, None) => format!("each {}", who.id),
                (key, principal) => format!("{key:?} {principal:?}"),
            };
            if let Some(calls) = limit.calls {
                amounts.push(((owner.clone(), "calls"), 1, 1, calls));
            }
            // What has no tokens, a tensor, is in no limit of them.
            if let Some(tokens) = limit.tokens
                && estimate > 0
            {
                amounts.push(((owner, "tokens"), estimate.min(tokens.max(1)), used, tokens));
            }
        }
        let fits =
            amounts.iter().all(|(key, amount, _, limit)| self.used(key, now_ms) + amount <= *limit && *limit > 0);
        if fits {
            for (key, _, used, _) in amounts {
                self.counted.entry(key).or_default().push((now_ms, used));
            }
        }
        fits
    }
}

struct Who {
    id: u64,
    name: &'static str,
    service_principal: bool,
    groups: &'static [&'static str],
}

const PEOPLE: [Who; 5] = [
    Who { id: 1, name: "ann", service_principal: false, groups: &[] },
    Who { id: 2, name: "bob", service_principal: false, groups: &["g1", "g2"] },
    Who { id: 3, name: "cyd", service_principal: false, groups: &["g2"] },
    Who { id: 4, name: "app", service_principal: true, groups: &["g1"] },
    Who { id: 5, name: "ann", service_principal: true, groups: &[] },
];

#[test]
fn random_configs_and_requests_are_answered_as_the_plain_model_answers() {
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let choices = [
            (LimitKey::Endpoint, None),
            (LimitKey::User, None),
            (LimitKey::User, Some("ann")),
            (LimitKey::User, Some("bob")),
            (LimitKey::UserGroup, Some("g1")),
            (LimitKey::UserGroup, Some("g2")),
            (LimitKey::ServicePrincipal, Some("app")),
        ];
        let mut limits = Vec::new();
        for (key, principal) in choices {
            let tokens = random.bool().then(|| random.u64(0..300));
            let calls = (tokens.is_none() || random.bool()).then(|| random.u64(0..12));
            if random.u8(0..3) > 0 {
                limits.push(limit(key, principal, calls, tokens));
            }
        }
        let (compiled, mut model) = (compile(&limits), Model::default());
        let mut now_ms = 60_000;
        for step in 0..400 {
            now_ms += random.u64(0..3000);
            let who = &PEOPLE[random.usize(0..PEOPLE.len())];
            let caller = Caller {
                id: who.id,
                name: who.name,
                service_principal: who.service_principal,
                member_of: &|group| who.groups.contains(&group),
            };
            let (estimate, used) = (random.u64(0..60), random.u64(0..80));
            let answer = admit(&[&compiled], &caller, estimate, now_ms);
            let expected = model.ask(&limits, who, estimate, used, now_ms);
            assert_eq!(answer.is_ok(), expected, "seed {seed}, step {step}: {} at {now_ms}: {limits:?}", who.name);
            match answer {
                Ok(admitted) => admitted.settle(used, now_ms),
                // Who waits as long as told gets in, when nobody else comes.
                Err(Refusal { retry_after_s: Some(wait_s), .. }) if random.u8(0..8) == 0 => {
                    now_ms += wait_s * 1000;
                    let admitted = admit(&[&compiled], &caller, estimate, now_ms);
                    let admitted = admitted.unwrap_or_else(|again| panic!("seed {seed}, step {step}: {again:?}"));
                    assert!(model.ask(&limits, who, estimate, used, now_ms));
                    admitted.settle(used, now_ms);
                }
                Err(_) => {}
            }
            if random.u8(0..50) == 0 {
                compiled.remove_idle(now_ms);
            }
        }
    }
}

#[test]
fn eight_threads_never_get_more_than_the_limit_in_any_minute() {
    const THREADS: u64 = 8;
    const LIMIT: u64 = 1000;
    let limits = compile(&[limit(LimitKey::User, None, Some(LIMIT), Some(LIMIT))]);
    let barrier = Barrier::new(THREADS as usize);
    // Each thread's clock runs on its own, up to a second apart from the others, as fast as the machine goes.
    let work = |thread: u64| {
        let mut random = fastrand::Rng::with_seed(thread);
        let mut admitted_at = Vec::new();
        barrier.wait();
        for step in 0..40_000u64 {
            let now_ms = 60_000 + step * 5 + random.u64(0..1000);
            let caller = Caller { id: 7, name: "x", service_principal: false, member_of: &|_| false };
            if let Ok(admitted) = admit(&[&limits], &caller, 1, now_ms) {
                admitted_at.push(now_ms);
                if random.bool() {
                    admitted.settle(1, now_ms);
                }
            }
            if step % 1000 == 0 {
                limits.remove_idle(now_ms);
                // The threads stay together, as real ones do with a real clock.
                barrier.wait();
            }
        }
        admitted_at
    };
    let mut admitted_at: Vec<u64> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    admitted_at.sort_unstable();
    let mut first = 0;
    for (last, at) in admitted_at.iter().enumerate() {
        while at - admitted_at[first] >= 60_000 - 6000 {
            first += 1;
        }
        assert!(last - first < LIMIT as usize, "{} in the minute before {at}", last - first + 1);
    }
    // Nor much less: 200 s at full rate are at least three times the limit.
    assert!(admitted_at.len() >= 3 * LIMIT as usize, "{}", admitted_at.len());
}
