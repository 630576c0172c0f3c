//! The queue before a backend: fair between workspaces, and the place where batches are formed.
//!
//! The workspace that has had the least of the backend's time comes next, as in deficit round robin, with the debt
//! carried as the time it was given: an estimate, and once a run has ended, the time that it took. Its oldest work leads a
//! batch; the rest of the batch is filled with work that fits it, one from each workspace in turn. So one that sends fifty
//! times as much as another delays it by one run at most.
//!
//! Work that fits may wait behind work that does not: each queue is searched, so mixed shapes do not break up batches.

use std::collections::VecDeque;
use std::time::Instant;

use super::{Tenant, Work};

/// The waiting work of all workspaces.
#[derive(Default)]
pub(in crate::nn) struct FairQueue {
    lines: Vec<Line>,
    len: usize,
    /// Time given to the workspace that was served last: one that comes back starts there, without credit for its absence.
    served_ns: u64,
}

/// What one workspace waits for.
struct Line {
    tenant: Tenant,
    works: VecDeque<Work>,
    served_ns: u64,
    /// Works that run, and are yet to be settled.
    running: usize,
}

/// What a caller of [`FairQueue::take`] will run at most.
#[derive(Debug, Clone, Copy)]
pub(in crate::nn) struct BatchLimit {
    /// Rows.
    pub(in crate::nn) rows: u32,
    /// Estimated time; a single work may take longer.
    pub(in crate::nn) run_ns: u64,
}

impl FairQueue {
    /// Works that wait, wanted or not.
    pub(in crate::nn) fn len(&self) -> usize {
        self.len
    }

    /// Rows that wait.
    pub(in crate::nn) fn rows(&self) -> u64 {
        self.lines.iter().flat_map(|line| &line.works).map(|work| u64::from(work.rows)).sum()
    }

    /// Adds work at the end of its workspace's line.
    pub(in crate::nn) fn push(&mut self, work: Work) {
        self.len += 1;
        match self.lines.iter_mut().find(|line| line.tenant == work.tenant) {
            Some(line) => line.works.push_back(work),
            None => {
                let (tenant, served_ns) = (work.tenant, self.served_ns);
                self.lines.push(Line { tenant, works: VecDeque::from([work]), served_ns, running: 0 });
            }
        }
    }

    /// Drops the works that nobody waits for any more; how many.
    pub(in crate::nn) fn drop_unwanted(&mut self) -> usize {
        let (now, before) = (Instant::now(), self.len);
        for line in &mut self.lines {
            line.works.retain(|work| work.wanted(now));
        }
        self.len = self.lines.iter().map(|line| line.works.len()).sum();
        before - self.len
    }

    /// The work that leads the next batch. Those before it that nobody waits for any more go to `dropped`. None when
    /// nothing waits.
    pub(in crate::nn) fn lead(&mut self, dropped: &mut Vec<Work>) -> Option<&Work> {
        let now = Instant::now();
        while !self.lines.is_empty() {
            // Stable: of two that had the same, the one that has waited longer.
            self.lines.sort_by_key(|line| (line.only_runs(), line.served_ns));
            let line = &mut self.lines[0];
            if line.only_runs() {
                return None;
            }
            self.served_ns = self.served_ns.max(line.served_ns);
            match line.works.front() {
                Some(work) if work.wanted(now) => break,
                Some(_) => {
                    dropped.extend(line.works.pop_front());
                    self.len -= 1;
                }
                None => drop(self.lines.remove(0)),
            }
        }
        self.lines.first()?.works.front()
    }

    /// The next batch, without works that nobody waits for any more: these go to `dropped`. None when nothing waits.
    pub(in crate::nn) fn take(&mut self, limit: BatchLimit, dropped: &mut Vec<Work>) -> Option<Vec<Work>> {
        self.lead(dropped)?;
        let lead = self.lines.first_mut()?.works.pop_front()?;
        self.len -= 1;
        let rows_max = rows_of_batch(&lead, limit);
        let mut batch = vec![lead];
        self.fill(&mut batch, rows_max, Instant::now(), dropped);
        for work in &batch {
            if let Some(line) = self.lines.iter_mut().find(|line| line.tenant == work.tenant) {
                line.served_ns = line.served_ns.saturating_add(charge(work));
            }
        }
        // Lines that are empty stay until their turn, so that their debt is not forgotten between two requests.
        Some(batch)
    }

    /// Remembers the workspaces of works that were taken and now run, until [`FairQueue::settle`].
    pub(in crate::nn) fn hold(&mut self, charged: &[(Tenant, u64)]) {
        for (tenant, _) in charged {
            if let Some(line) = self.lines.iter_mut().find(|line| line.tenant == *tenant) {
                line.running += 1;
            }
        }
    }

    /// Puts the time that a batch took in place of what its works were charged when they were taken: one that fails, or of
    /// which nothing was known, costs what it costs.
    pub(in crate::nn) fn settle(&mut self, charged: &[(Tenant, u64)], took_ns: u64) {
        let all = charged.iter().map(|&(_, ns)| u128::from(ns)).sum::<u128>().max(1);
        for &(tenant, ns) in charged {
            let Some(line) = self.lines.iter_mut().find(|line| line.tenant == tenant) else { continue };
            let share = u64::try_from(u128::from(took_ns) * u128::from(ns) / all).unwrap_or(u64::MAX);
            line.running = line.running.saturating_sub(1);
            line.served_ns = line.served_ns.saturating_sub(ns).saturating_add(share);
        }
    }

    /// Takes works that fit the lead, one from each line in turn, while there is room.
    fn fill(&mut self, batch: &mut Vec<Work>, rows_max: u32, now: Instant, dropped: &mut Vec<Work>) {
        let mut rows: u32 = batch.iter().map(|work| work.rows).sum();
        // Where the search of each line goes on.
        let mut searched = vec![0; self.lines.len()];
        let mut found = true;
        while found && rows < rows_max {
            found = false;
            for (line, from) in self.lines.iter_mut().zip(&mut searched) {
                let Some(work) = line.next_fit(&batch[0], from, rows_max - rows, now, dropped, &mut self.len) else {
                    continue;
                };
                found = true;
                rows += work.rows;
                batch.push(work);
                if rows >= rows_max {
                    break;
                }
            }
        }
    }
}

impl Line {
    /// Whether it waits for nothing, and is yet to be charged for what it had.
    fn only_runs(&self) -> bool {
        self.works.is_empty() && self.running > 0
    }

    /// Takes the first work from `from` on that fits `lead` with at most `rows_max` rows.
    fn next_fit(
        &mut self,
        lead: &Work,
        from: &mut usize,
        rows_max: u32,
        now: Instant,
        dropped: &mut Vec<Work>,
        len: &mut usize,
    ) -> Option<Work> {
        while let Some(work) = self.works.get(*from) {
            let wanted = work.wanted(now);
            if wanted && !(work.rows <= rows_max && lead.shares_a_run_with(work)) {
                *from += 1;
                continue;
            }
            let work = self.works.remove(*from)?;
            *len -= 1;
            if wanted {
                return Some(work);
            }
            dropped.push(work);
        }
        None
    }
}

/// How many rows the batch of this lead may have.
fn rows_of_batch(lead: &Work, limit: BatchLimit) -> u32 {
    let schedule = lead.graph.schedule();
    let in_time = u32::try_from(limit.run_ns / row_ns(lead).max(1)).unwrap_or(u32::MAX);
    schedule.rows_max().min(limit.rows).min(in_time)
}

/// What a work is charged when it is taken, in nanoseconds.
pub(in crate::nn) fn charge(work: &Work) -> u64 {
    row_ns(work).saturating_mul(u64::from(work.rows))
}

/// What a row of this graph costs in a run of the size it is worth making.
fn row_ns(lead: &Work) -> u64 {
    let schedule = lead.graph.schedule();
    let rows = schedule.rows_max();
    schedule.estimate(rows).map_or(1, |run| run.as_nanos() as u64 / u64::from(rows.max(1))).max(1)
}
