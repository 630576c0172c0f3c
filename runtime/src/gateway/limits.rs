//! Rate limits of an endpoint (`ai_gateway.rate_limits`, and the older `rate_limits`) and quotas of a workspace.
//!
//! [`Limits`] is compiled when a config is published; [`admit`] asks all that apply to a request, and either all count it
//! or none does. A request must fit
//! - the limit of the endpoint (or the workspace), which counts everybody;
//! - the limits of its caller: of the user or service principal by name; where there is none, of every group that the
//!   caller is in, each shared by its members; where there is none either, the default that each caller has alone.
//!
//! Of calls and tokens both must fit. Tokens are estimated before the request runs and corrected by [`Admitted::settle`].
//!
//! Nothing here takes a lock, and time is an argument: milliseconds of [`monotonic_ms`].

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use papaya::HashMap;

use super::window::{AMOUNT_MAX, Refused, Window};
use crate::catalog::gateway_config::{LimitKey, RateLimit};
use crate::error::{ApiError, ErrorCode};

/// Limits of a whole workspace, per minute; none is no limit, 0 blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// Requests to all endpoints.
    pub requests_per_minute: Option<u64>,
    /// Tokens of all endpoints.
    pub tokens_per_minute: Option<u64>,
}

/// Who calls, as far as limits care.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// Unique over users and service principals.
    pub id: u64,
    /// User name, or application id of a service principal.
    pub name: &'a str,
    /// Which of the two.
    pub service_principal: bool,
    /// Whether the caller is in the group of this name.
    pub member_of: &'a dyn Fn(&str) -> bool,
}

/// Whom a rule counts.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Scope {
    Workspace,
    Endpoint,
    User(String),
    ServicePrincipal(String),
    Group(String),
    /// Each caller alone.
    Default,
}

/// Of the rules that fit a caller those of the first kind count, beside the shared ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Named,
    Group,
    Default,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measure {
    Calls,
    Tokens,
}

#[derive(Debug)]
struct Rule {
    scope: Scope,
    measure: Measure,
    /// Per minute.
    limit: u64,
    counted: Counted,
}

/// Where a rule counts.
#[derive(Debug, Clone)]
enum Counted {
    Together(Arc<Window>),
    /// By the caller's id.
    Each(Arc<HashMap<u64, Arc<Window>>>),
}

/// Limits that hold together, ready to be asked.
#[derive(Debug, Default)]
pub struct Limits {
    rules: Vec<Rule>,
}

impl Limits {
    /// The limits of an endpoint, as its config was checked. What `previous` counted goes on counting, for each limit that
    /// is in both.
    pub fn endpoint(limits: &[RateLimit], previous: Option<&Limits>) -> Limits {
        let mut compiled = Limits::default();
        for limit in limits {
            let scope = scope(limit);
            compiled.add(&scope, Measure::Calls, limit.calls, previous);
            compiled.add(&scope, Measure::Tokens, limit.tokens, previous);
        }
        compiled
    }

    /// The limits of a workspace.
    pub fn workspace(quota: Quota, previous: Option<&Limits>) -> Limits {
        let mut compiled = Limits::default();
        compiled.add(&Scope::Workspace, Measure::Calls, quota.requests_per_minute, previous);
        compiled.add(&Scope::Workspace, Measure::Tokens, quota.tokens_per_minute, previous);
        compiled
    }

    /// Forgets callers who have asked for nothing in the last minute. To be called from time to time.
    pub fn remove_idle(&self, now_ms: u64) {
        for rule in &self.rules {
            if let Counted::Each(windows) = &rule.counted {
                windows.pin().retain(|_, window| !window.retire(now_ms));
            }
        }
    }

    fn add(&mut self, scope: &Scope, measure: Measure, limit: Option<u64>, previous: Option<&Limits>) {
        let Some(limit) = limit else { return };
        let same = |rule: &&Rule| rule.scope == *scope && rule.measure == measure;
        let counted = match previous.and_then(|previous| previous.rules.iter().find(same)) {
            Some(rule) => rule.counted.clone(),
            None if *scope == Scope::Default => Counted::Each(Arc::default()),
            None => Counted::Together(Arc::default()),
        };
        // No machine answers as many requests in a minute as can be counted: a larger limit refuses nobody either.
        self.rules.push(Rule { scope: scope.clone(), measure, limit: limit.min(AMOUNT_MAX), counted });
    }

    /// The rules that count for a caller.
    fn of<'a>(&'a self, caller: &'a Caller<'a>) -> impl Iterator<Item = &'a Rule> {
        let first = self.rules.iter().filter_map(|rule| rule.scope.rank(caller)).min();
        self.rules.iter().filter(move |rule| match rule.scope {
            Scope::Workspace | Scope::Endpoint => true,
            _ => rule.scope.rank(caller).is_some_and(|rank| Some(rank) == first),
        })
    }
}

fn scope(limit: &RateLimit) -> Scope {
    let (key, principal) = limit.scope();
    let name = || principal.unwrap_or_default().to_owned();
    match (key, principal) {
        (LimitKey::Endpoint, _) => Scope::Endpoint,
        (LimitKey::User, None) => Scope::Default,
        (LimitKey::User, Some(_)) => Scope::User(name()),
        (LimitKey::UserGroup, _) => Scope::Group(name()),
        (LimitKey::ServicePrincipal, _) => Scope::ServicePrincipal(name()),
    }
}

impl Scope {
    /// Whether and how a rule for one or for some fits the caller; none for rules that count everybody.
    fn rank(&self, caller: &Caller<'_>) -> Option<Rank> {
        match self {
            Scope::Workspace | Scope::Endpoint => None,
            Scope::User(name) => (!caller.service_principal && name == caller.name).then_some(Rank::Named),
            Scope::ServicePrincipal(name) => (caller.service_principal && name == caller.name).then_some(Rank::Named),
            Scope::Group(name) => (caller.member_of)(name).then_some(Rank::Group),
            Scope::Default => Some(Rank::Default),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Workspace => write!(f, "the workspace"),
            Scope::Endpoint => write!(f, "the endpoint"),
            Scope::User(name) => write!(f, "user '{name}'"),
            Scope::ServicePrincipal(name) => write!(f, "service principal '{name}'"),
            Scope::Group(name) => write!(f, "group '{name}'"),
            Scope::Default => write!(f, "each user"),
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Measure::Calls => "calls",
            Measure::Tokens => "tokens",
        })
    }
}

/// A request that every limit has counted.
#[derive(Debug, Default)]
#[must_use = "a request that uses fewer tokens than estimated gets them back through `settle`"]
pub struct Admitted {
    held: Vec<Held>,
}

/// What one rule has counted.
#[derive(Debug)]
struct Held {
    window: Arc<Window>,
    measure: Measure,
    epoch: u64,
    amount: u64,
}

/// The limit that a request is over. Of several the one that lasts longest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which limit: `5 calls per minute for each user`.
    pub limit: String,
    /// Seconds until there is room; none if the limit is 0.
    pub retry_after_s: Option<u64>,
    of_workspace: bool,
}

/// Counts a request in all of `limits` (those of the workspace and of the endpoint) or in none. `tokens` is an estimate
/// from above: the input's and the largest output's. One that is larger than a limit is taken for all of that limit, for
/// otherwise it could never run. Of 0, as for tensors, no limit of tokens counts anything.
///
/// # Errors
/// [`Refusal`] says which limit, and when to come again.
pub fn admit(limits: &[&Limits], caller: &Caller<'_>, tokens: u64, now_ms: u64) -> Result<Admitted, Refusal> {
    let mut admitted = Admitted::default();
    let mut refusal: Option<Refusal> = None;
    for rule in limits.iter().flat_map(|limits| limits.of(caller)) {
        let amount = match (rule.measure, tokens) {
            (Measure::Calls, _) => 1,
            (Measure::Tokens, 0) => continue,
            (Measure::Tokens, tokens) => tokens.min(rule.limit.max(1)),
        };
        match rule.take(caller, amount, now_ms, refusal.is_some()) {
            Ok(held) => admitted.held.extend(held),
            Err(next) if refusal.as_ref().is_none_or(|first| first.lasts_less_than(&next)) => refusal = Some(next),
            Err(_) => {}
        }
    }
    match refusal {
        Some(refusal) => {
            admitted.withdraw();
            Err(refusal)
        }
        None => Ok(admitted),
    }
}

impl Rule {
    /// Counts `amount`; with `only_look` tells no more than whether it would. The loop ends, for a window that retires
    /// leaves the map in the same step.
    fn take(&self, caller: &Caller<'_>, amount: u64, now_ms: u64, only_look: bool) -> Result<Option<Held>, Refusal> {
        if self.limit == 0 {
            return Err(self.refusal(None));
        }
        loop {
            let window = match &self.counted {
                Counted::Together(window) => Arc::clone(window),
                Counted::Each(windows) => Arc::clone(windows.pin().get_or_insert_with(caller.id, Arc::default)),
            };
            if only_look {
                return match window.wait_ms(amount, self.limit, now_ms) {
                    0 => Ok(None),
                    wait_ms => Err(self.refusal(Some(wait_ms))),
                };
            }
            match window.take(amount, self.limit, now_ms) {
                Ok(epoch) => return Ok(Some(Held { window, measure: self.measure, epoch, amount })),
                Err(Refused::Full { wait_ms }) => return Err(self.refusal(Some(wait_ms))),
                Err(Refused::Retired) => std::hint::spin_loop(),
            }
        }
    }

    fn refusal(&self, wait_ms: Option<u64>) -> Refusal {
        Refusal {
            limit: format!("{} {} per minute for {}", self.limit, self.measure, self.scope),
            retry_after_s: wait_ms.map(|wait_ms| wait_ms.div_ceil(1000).max(1)),
            of_workspace: self.scope == Scope::Workspace,
        }
    }
}

impl Admitted {
    /// Corrects the estimate: what was not used is given back, what was used beyond it is charged. Without this call the
    /// estimate stays, as for a request whose use nobody knows.
    pub fn settle(self, tokens: u64, now_ms: u64) {
        for held in self.held.iter().filter(|held| held.measure == Measure::Tokens) {
            if tokens > held.amount {
                held.window.charge((tokens - held.amount).min(AMOUNT_MAX), now_ms);
            } else {
                held.window.credit(held.epoch, held.amount - tokens);
            }
        }
    }

    /// Takes everything back: the request never was.
    pub fn withdraw(self) {
        for held in &self.held {
            held.window.credit(held.epoch, held.amount);
        }
    }
}

impl Refusal {
    fn lasts_less_than(&self, other: &Refusal) -> bool {
        match (self.retry_after_s, other.retry_after_s) {
            (Some(this), Some(other)) => this < other,
            (this, other) => this.is_some() && other.is_none(),
        }
    }

    /// The answer: 429 with `Retry-After`. A limit of 0 is 403, for clients repeat a 429 until it ends, and this one
    /// never does.
    pub fn into_error(self, endpoint: &str) -> ApiError {
        let Some(retry_after_s) = self.retry_after_s else {
            let message = format!("Requests to endpoint '{endpoint}' are blocked by a rate limit: {}.", self.limit);
            return ApiError::new(ErrorCode::PermissionDenied, message);
        };
        let which = match self.of_workspace {
            true => "Exceeded workspace rate limit".to_owned(),
            false => format!("User defined rate limit(s) exceeded for endpoint '{endpoint}'"),
        };
        let message = format!("{which}: {}; there is room in {retry_after_s} s.", self.limit);
        ApiError::new(ErrorCode::RequestLimitExceeded, message).with_retry_after(retry_after_s)
    }
}

/// The clock of all limits: milliseconds since the first call, never going back.
pub fn monotonic_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_millis() as u64
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
