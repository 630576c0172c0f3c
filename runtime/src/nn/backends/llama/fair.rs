//! Whose turn it is: the workspace that was served least among those that want something.

use std::collections::HashMap;

use crate::nn::Tenant;

/// Tokens computed for each workspace that has sequences.
#[derive(Default)]
pub(super) struct Served(HashMap<u64, u64>);

impl Served {
    /// How many tokens were computed for a workspace: who has fewest is next.
    pub(super) fn tokens(&self, tenant: Tenant) -> u64 {
        self.0.get(&tenant.0).copied().unwrap_or(0)
    }

    /// Counts what was computed.
    pub(super) fn add(&mut self, tenant: Tenant, tokens: usize) {
        *self.0.entry(tenant.0).or_default() += tokens as u64;
    }

    /// A workspace has a sequence now. If it had none it begins where the others are: time away is not saved up.
    pub(super) fn enter(&mut self, tenant: Tenant) {
        let least = self.0.values().copied().min().unwrap_or(0);
        self.0.entry(tenant.0).or_insert(least);
    }

    /// Forgets workspaces without sequences.
    pub(super) fn retain(&mut self, has_sequences: impl Fn(Tenant) -> bool) {
        self.0.retain(|&tenant, _| has_sequences(Tenant(tenant)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_begins_where_the_others_are() {
        let mut served = Served::default();
        served.enter(Tenant(1));
        served.add(Tenant(1), 100);
        served.enter(Tenant(2));
        assert_eq!(served.tokens(Tenant(2)), 100);
        served.add(Tenant(2), 5);
        served.enter(Tenant(1));
        assert_eq!(served.tokens(Tenant(1)), 100, "who stays keeps its count");
        served.retain(|tenant| tenant == Tenant(2));
        served.enter(Tenant(1));
        assert_eq!(served.tokens(Tenant(1)), 105);
    }
}
