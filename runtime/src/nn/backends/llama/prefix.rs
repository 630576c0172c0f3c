//! Ended sequences whose keys and values are kept, so that a prompt that begins as theirs is not computed again. A
//! workspace's are for its own prompts only: how quickly an answer begins would tell of another's.

use super::context::SequenceId;
use crate::nn::Tenant;

/// Shorter beginnings are computed again: it costs less than to look for them.
pub(super) const PREFIX_TOKENS_MIN: usize = 8;

/// The sequences kept, least recently used first.
#[derive(Default)]
pub(super) struct Kept {
    sequences: Vec<KeptSequence>,
}

struct KeptSequence {
    tenant: Tenant,
    id: SequenceId,
    tokens: Vec<i32>,
}

impl Kept {
    /// Keeps a sequence with the tokens that it holds.
    pub(super) fn keep(&mut self, tenant: Tenant, id: SequenceId, tokens: Vec<i32>) {
        self.sequences.push(KeptSequence { tenant, id, tokens });
    }

    /// The one that shares most with the beginning of a prompt, and how many tokens: it counts as used. `holds` tells
    /// whether a sequence still has what goes on behind so many of its tokens.
    pub(super) fn find(
        &mut self,
        tenant: Tenant,
        prompt: &[i32],
        holds: impl Fn(SequenceId, usize) -> bool,
    ) -> Option<(SequenceId, usize)> {
        let own = self.sequences.iter().enumerate().filter(|(_, kept)| kept.tenant == tenant);
        let shared = own.map(|(index, kept)| (index, kept.id, shared_prefix(&kept.tokens, prompt)));
        let held = shared.filter(|&(_, id, shared)| holds(id, shared));
        let (index, _, shared) = held.max_by_key(|&(_, _, shared)| shared)?;
        if shared < PREFIX_TOKENS_MIN {
            return None;
        }
        let kept = self.sequences.remove(index);
        let id = kept.id;
        self.sequences.push(kept);
        Some((id, shared))
    }

    /// Takes out the least recently used: its memory is the caller's to free.
    pub(super) fn evict(&mut self) -> Option<SequenceId> {
        (!self.sequences.is_empty()).then(|| self.sequences.remove(0).id)
    }
}

/// How many tokens two sequences have in common at their beginning.
pub(super) fn shared_prefix(a: &[i32], b: &[i32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_beginning_of_the_own_workspace_is_found_and_the_least_used_goes() {
        let mut kept = Kept::default();
        let tokens: Vec<i32> = (0..20).collect();
        kept.keep(Tenant(1), 10, tokens[..12].to_vec());
        kept.keep(Tenant(1), 11, tokens[..16].to_vec());
        kept.keep(Tenant(2), 12, tokens.clone());
        let mut find = |tenant, prompt: &[i32]| kept.find(Tenant(tenant), prompt, |_, _| true);
        assert_eq!(find(1, &tokens), Some((11, 16)));
        assert_eq!(find(1, &tokens[..9]).map(|found| found.1), Some(9));
        assert_eq!(find(1, &tokens[1..]), None, "it begins otherwise");
        assert_eq!(find(1, &tokens[..PREFIX_TOKENS_MIN - 1]), None, "too short");
        assert_eq!(find(3, &tokens), None);
        let order: Vec<_> = std::iter::from_fn(|| kept.evict()).collect();
        assert_eq!(order.len(), 3);
        assert_eq!(order[0], 10, "what was not used goes first");
    }

    #[test]
    fn a_beginning_that_is_not_held_any_more_gives_way_to_a_shorter_one() {
        let mut kept = Kept::default();
        let tokens: Vec<i32> = (0..20).collect();
        kept.keep(Tenant(1), 10, tokens[..12].to_vec());
        kept.keep(Tenant(1), 11, tokens[..16].to_vec());
        assert_eq!(kept.find(Tenant(1), &tokens, |id, shared| (id, shared) != (11, 16)), Some((10, 12)));
        assert_eq!(kept.find(Tenant(1), &tokens, |_, _| false), None);
        assert_eq!(kept.find(Tenant(1), &tokens, |_, _| true), Some((11, 16)), "it is kept all the same");
    }
}
