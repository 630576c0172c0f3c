//! The thread of a loaded model. Each step computes one token of every sequence that answers, and in what room is left
//! parts of prompts; whose turn it is, who waits, what is kept and what is given up is decided here.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::context::{Batch, Context, SequenceId, StepError};
use super::embedding::{Embedder, Texts};
use super::fair::Served;
use super::prefix::{Kept, PREFIX_TOKENS_MIN, shared_prefix};
use super::sampling::{self, Sampler};
use super::stream::{Begin, End, Ended, FinishReason, Logprobs, Stream, Token};
use super::vocabulary::Vocabulary;
use crate::nn::{BusyThreads, NnError, NnErrorKind, SequenceCounters, Tenant};

/// Most tokens of a step: beyond it, computing more of a prompt together gains little.
pub(super) const BATCH_TOKENS: usize = 512;

/// Most tokens of one prompt in a step.
const PROMPT_PART_MAX: usize = 256;

/// Prompts are divided at multiples of this, where they are divided: so that a prompt is computed in few ways.
const PROMPT_PART_UNIT: usize = 32;

/// How long a step may take because of prompts: answers of others wait for it, and so does whoever gives up.
const STEP_MAX: Duration = Duration::from_millis(200);

/// A sequence's answer, from its prompt to its end.
pub(super) struct Run {
    pub(super) tenant: Tenant,
    pub(super) stream: Arc<Stream>,
    /// Prompt and answer so far.
    pub(super) tokens: Vec<i32>,
    pub(super) prompt_tokens: usize,
    /// Tokens that it may have, prompt and answer.
    pub(super) tokens_max: usize,
    pub(super) sampler: Sampler,
    /// How many most likely tokens are told, if any are.
    pub(super) logprobs: Option<usize>,
    /// Whether its beginning is looked for among others, and it among theirs.
    cache: bool,
    /// While it has not had a sequence yet.
    ticket: Option<Ticket>,
    /// Tokens of the prompt that need not be computed.
    pub(super) cached: usize,
    /// How many tokens' keys and values are there, and where.
    computed: usize,
    id: Option<SequenceId>,
}

/// What a run is made of.
pub(super) struct NewRun {
    pub(super) tenant: Tenant,
    pub(super) stream: Arc<Stream>,
    pub(super) tokens: Vec<i32>,
    pub(super) tokens_max: usize,
    pub(super) sampler: Sampler,
    pub(super) logprobs: Option<usize>,
    pub(super) cache: bool,
    pub(super) ticket: Ticket,
}

/// Who waits for a sequence, or is about to.
pub(super) struct Waiting {
    places: usize,
    /// How many of each workspace; none that has none.
    taken: Mutex<HashMap<u64, usize>>,
}

impl Waiting {
    pub(super) fn new(places: usize) -> Waiting {
        Waiting { places, taken: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those who wait. Dropping it is the release.
pub(super) struct Ticket {
    waiting: Arc<Waiting>,
    tenant: Tenant,
}

impl Ticket {
    /// `Overloaded` when all places are taken, or half of them by this workspace, which must not keep out the others.
    pub(super) fn take(waiting: &Arc<Waiting>, tenant: Tenant) -> Result<Ticket, NnError> {
        let mut taken = waiting.lock();
        let (own, all) = (taken.get(&tenant.0).copied().unwrap_or(0), taken.values().sum::<usize>());
        let share = waiting.places.div_ceil(2);
        if own >= share || all >= waiting.places {
            let (count, of) = if own >= share { (own, " of this workspace") } else { (all, "") };
            let text = format!("{count} answers{of} wait for the model, which is the most: try again later");
            return Err(NnError::overloaded(text));
        }
        *taken.entry(tenant.0).or_default() += 1;
        Ok(Ticket { waiting: Arc::clone(waiting), tenant })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut taken = self.waiting.lock();
        if let Some(own) = taken.get_mut(&self.tenant.0) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.tenant.0);
            }
        }
    }
}

impl Run {
    /// One that waits.
    pub(super) fn new(new: NewRun) -> Run {
        let NewRun { tenant, stream, tokens, tokens_max, sampler, logprobs, cache, ticket } = new;
        let (prompt_tokens, ticket) = (tokens.len(), Some(ticket));
        let (cached, computed, id) = (0, 0, None);
        Run {
            tenant,
            stream,
            tokens,
            prompt_tokens,
            tokens_max,
            sampler,
            logprobs,
            cache,
            ticket,
            cached,
            computed,
            id,
        }
    }

    fn to_compute(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether its guest is so far behind that it is not computed.
    fn is_stalled(&self) -> bool {
        self.stream.is_full()
    }

    fn finish(&self, reason: FinishReason) {
        self.stream.finish(Ok(Ended::Answer(End {
            finish_reason: reason,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.tokens.len() - self.prompt_tokens,
            cached_tokens: self.cached,
        })));
    }
}

/// What guests tell the engine.
pub(super) enum Command {
    /// An answer is wanted.
    Start(Box<Run>),
    /// Vectors are.
    Embed(Texts),
    /// A stream was closed, or has room again.
    Look,
    /// The model is unloaded.
    Stop,
}

/// What an engine is made of.
pub(super) struct EngineParts {
    pub(super) context: Context,
    pub(super) embedder: Embedder,
    pub(super) vocabulary: Arc<Vocabulary>,
    pub(super) commands: Receiver<Command>,
    pub(super) counters: Arc<SequenceCounters>,
    pub(super) busy: Arc<BusyThreads>,
    /// Threads of a step.
    pub(super) threads: u32,
    /// Most sequences at once.
    pub(super) sequences: usize,
    /// Sequences and kept ones together.
    pub(super) ids: u32,
    /// Most tokens of a step, never less than there are sequences.
    pub(super) batch_tokens: usize,
    /// Whether beginnings can be shared: models with a recurrent state cannot go back.
    pub(super) shares_prefixes: bool,
}

pub(super) struct Engine {
    parts: EngineParts,
    waiting: VecDeque<Run>,
    live: Vec<Run>,
    kept: Kept,
    free: Vec<SequenceId>,
    served: Served,
    batch: Batch,
    pace: Pace,
    /// Whether one was given up for want of room, and none has ended since: until then nobody else begins.
    full: bool,
    /// The numbers of live and waiting ones that are counted.
    counted: (i64, i64),
}

/// How fast a context computes prompts.
#[derive(Default)]
pub(super) struct Pace {
    /// Nanoseconds of a prompt's token in a step; none before the first.
    token_ns: Option<u64>,
}

impl Pace {
    /// Tokens of prompts that a step has time for.
    pub(super) fn room(&self) -> usize {
        let fit = |ns: u64| STEP_MAX.as_nanos() as usize / usize::try_from(ns.max(1)).unwrap_or(usize::MAX);
        self.token_ns.map_or(PROMPT_PART_MAX, fit).clamp(PROMPT_PART_UNIT, BATCH_TOKENS)
    }

    /// Learns from a step.
    pub(super) fn took(&mut self, tokens: usize, time: Duration) {
        // Answers alone take as long as it takes to read the model, however few they are: prompts are not counted by it.
        if tokens >= PROMPT_PART_UNIT {
            let ns = time.as_nanos() as u64 / tokens as u64;
            self.token_ns = Some(self.token_ns.map_or(ns, |known| (known * 3 + ns) / 4));
        }
    }
}

/// A part of a step.
struct Part {
    /// Index among the live ones.
    run: usize,
    tokens: usize,
    /// Place in the batch whose outputs choose the next token.
    output: Option<usize>,
}

impl Engine {
    pub(super) fn new(parts: EngineParts) -> Engine {
        let free = (0..parts.ids).rev().map(u32::cast_signed).collect();
        Engine {
            parts,
            waiting: VecDeque::new(),
            live: Vec::new(),
            kept: Kept::default(),
            free,
            served: Served::default(),
            batch: Batch::default(),
            pace: Pace::default(),
            full: false,
            counted: (0, 0),
        }
    }

    /// The thread's life.
    pub(super) fn run(mut self) {
        let mut idle = true;
        while self.listen(idle) {
            self.drop_closed();
            self.admit();
            let answered = self.step();
            idle = !(self.embed() | answered);
        }
        let unloaded = NnError::overloaded("the model is being unloaded");
        self.parts.embedder.fail(&unloaded);
        for run in self.waiting.drain(..).chain(self.live.drain(..)) {
            run.stream.finish(Err(unloaded.clone()));
        }
        self.count();
    }

    /// Takes the commands that are there; waits for one when there is nothing to compute.
    fn listen(&mut self, idle: bool) -> bool {
        let mut wait = idle;
        loop {
            let command = match wait {
                true => self.parts.commands.recv().map_err(|_| TryRecvError::Disconnected),
                false => self.parts.commands.try_recv(),
            };
            wait = false;
            match command {
                Ok(Command::Start(run)) if run.tokens.len() >= run.tokens_max => run.finish(FinishReason::Length),
                Ok(Command::Start(run)) => {
                    self.served.enter(run.tenant);
                    self.waiting.push_back(*run);
                }
                Ok(Command::Embed(texts)) => {
                    self.served.enter(texts.tenant);
                    self.parts.embedder.push(texts);
                }
                Ok(Command::Look) => {}
                Err(TryRecvError::Empty) => return true,
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Frees what nobody waits for.
    fn drop_closed(&mut self) {
        self.parts.embedder.drop_closed();
        self.waiting.retain(|run| !run.stream.is_closed());
        let mut closed = self.live.extract_if(.., |run| run.stream.is_closed()).collect::<Vec<_>>();
        self.full &= closed.is_empty();
        for run in &mut closed {
            self.release(run);
        }
        let (waiting, live, embedder) = (&self.waiting, &self.live, &self.parts.embedder);
        let tenants =
            waiting.iter().chain(live).map(|run| run.tenant.0).chain(embedder.tenants().map(|tenant| tenant.0));
        let tenants = tenants.collect::<HashSet<_>>();
        self.served.retain(|tenant| tenants.contains(&tenant.0));
    }

    fn count(&mut self) {
        let now = (self.live.len() as i64, self.waiting.len() as i64);
        self.parts.counters.live.fetch_add(now.0 - self.counted.0, Relaxed);
        self.parts.counters.waiting.fetch_add(now.1 - self.counted.1, Relaxed);
        self.counted = now;
    }

    /// Gives sequences to those who wait, the workspace with the fewest first.
    fn admit(&mut self) {
        while !(self.full && self.live.iter().any(|run| !run.is_stalled())) {
            let live_of = |tenant| self.live.iter().filter(|run| run.tenant == tenant).count();
            let turn = |(_, run): &(usize, &Run)| (live_of(run.tenant), self.served.tokens(run.tenant));
            let ready = self.waiting.iter().enumerate().filter(|(_, run)| !run.is_stalled());
            let Some((next, _)) = ready.min_by_key(turn) else { break };
            if self.live.len() >= self.parts.sequences && !self.set_aside_one() {
                break;
            }
            let Some(id) = self.take_id() else { break };
            let Some(mut run) = self.waiting.remove(next) else { break };
            run.id = Some(id);
            self.reuse_prefix(&mut run, id);
            if run.ticket.take().is_some() {
                run.stream.begin(Begin { prompt_tokens: run.prompt_tokens, cached_tokens: run.cached });
            }
            self.live.push(run);
        }
        self.count();
    }

    /// Takes the sequence from an answer whose guest is behind: that guest may be waiting for one of those who wait. What
    /// was computed is kept, and found again when the guest has fetched. False when all are computed.
    fn set_aside_one(&mut self) -> bool {
        let Some(index) = self.live.iter().position(Run::is_stalled) else { return false };
        let mut run = self.live.remove(index);
        self.keep(&mut run);
        // Behind the others, whose places stay as they are; it has what its guest did not fetch yet.
        self.waiting.push_back(run);
        true
    }

    fn take_id(&mut self) -> Option<SequenceId> {
        if self.free.is_empty() {
            self.evict();
        }
        self.free.pop()
    }

    /// Gives up the kept sequence that was used least recently.
    fn evict(&mut self) -> bool {
        let Some(id) = self.kept.evict() else { return false };
        self.parts.context.clear(id);
        self.free.push(id);
        true
    }

    /// Takes over the beginning of a prompt from another sequence of the same workspace, kept or alive.
    fn reuse_prefix(&mut self, run: &mut Run, id: SequenceId) {
        if !self.parts.shares_prefixes || !run.cache {
            return;
        }
        // The last token is computed in any case: it gives the first of the answer.
        let wanted = &run.tokens[..run.tokens.len() - 1];
        let own = self.live.iter().filter(|other| other.tenant == run.tenant && other.cache);
        let of_live = |other: &Run| Some((other.id?, shared_prefix(&other.tokens[..other.computed], wanted)));
        // Before the best is chosen: another may still have what the best has given away.
        let context = &self.parts.context;
        let held = own.filter_map(of_live).filter(|&(id, shared)| context.holds(id, shared));
        let alive = held.max_by_key(|&(_, shared)| shared);
        let kept = self.kept.find(run.tenant, wanted, |id, shared| context.holds(id, shared));
        let best = alive.into_iter().chain(kept).max_by_key(|&(_, shared)| shared);
        let Some((from, shared)) = best.filter(|&(_, shared)| shared >= PREFIX_TOKENS_MIN) else { return };
        self.parts.context.share(from, id, shared);
        run.computed = shared;
        // One that was given up and comes back has told of its prompt already.
        if run.ticket.is_some() {
            run.cached = shared;
            self.parts.counters.cached_tokens.fetch_add(shared as u64, Relaxed);
        }
    }

    /// Computes a step, if there is anything to compute.
    fn step(&mut self) -> bool {
        let parts = loop {
            let mut parts = self.plan();
            if parts.is_empty() {
                return false;
            }
            match self.compute(&mut parts) {
                Ok(()) => break parts,
                Err(StepError::Full) if self.evict() || self.give_up_one() => {}
                Err(error) => {
                    self.fail(&parts, error);
                    return true;
                }
            }
        };
        self.parts.counters.steps.fetch_add(1, Relaxed);
        for part in &parts {
            let run = &mut self.live[part.run];
            if run.computed < run.prompt_tokens {
                self.parts.counters.prompt_tokens.fetch_add(part.tokens as u64, Relaxed);
            }
            run.computed += part.tokens;
            self.served.add(run.tenant, part.tokens);
        }
        let mut ended = Vec::new();
        for part in &parts {
            if let Some(place) = part.output
                && !self.answer(part.run, place)
            {
                ended.push(part.run);
            }
        }
        ended.sort_unstable();
        self.full &= ended.is_empty();
        for index in ended.into_iter().rev() {
            let mut run = self.live.remove(index);
            self.keep(&mut run);
        }
        true
    }

    /// Computes vectors, if any are wanted.
    fn embed(&mut self) -> bool {
        if self.parts.embedder.is_idle() {
            return false;
        }
        let threads = self.parts.busy.enter_free(self.parts.threads);
        self.parts.embedder.step(threads.threads(), &mut self.served);
        self.parts.counters.steps.fetch_add(1, Relaxed);
        true
    }

    /// What the next step computes.
    fn plan(&self) -> Vec<Part> {
        let ready = |(index, run): (usize, &Run)| (!run.is_stalled()).then_some((index, run.to_compute()));
        let ready: Vec<(usize, usize)> = self.live.iter().enumerate().filter_map(ready).collect();
        let answering = ready.iter().filter(|&&(_, tokens)| tokens == 1);
        let mut parts: Vec<Part> = answering.map(|&(run, tokens)| Part { run, tokens, output: None }).collect();
        let mut prompts: Vec<(usize, usize)> = ready.into_iter().filter(|&(_, tokens)| tokens > 1).collect();
        prompts.sort_by_key(|&(run, _)| self.served.tokens(self.live[run].tenant));
        let mut room = self.pace.room().min(self.parts.batch_tokens.saturating_sub(parts.len()));
        for (run, left) in prompts {
            let mut tokens = left.min(room).min(PROMPT_PART_MAX);
            if tokens < left {
                tokens -= tokens % PROMPT_PART_UNIT;
            }
            if tokens == 0 {
                break;
            }
            room -= tokens;
            parts.push(Part { run, tokens, output: None });
        }
        parts
    }

    fn compute(&mut self, parts: &mut [Part]) -> Result<(), StepError> {
        self.batch.clear();
        for part in &mut *parts {
            let run = &self.live[part.run];
            let Some(id) = run.id else { continue };
            let end = run.computed + part.tokens;
            let last = end == run.tokens.len();
            let place = self.batch.push(id, run.computed, &run.tokens[run.computed..end], last);
            part.output = last.then_some(place);
        }
        let threads = self.parts.busy.enter_free(self.parts.threads);
        self.parts.context.set_threads(threads.threads());
        let begun = Instant::now();
        self.parts.context.compute(&mut self.batch)?;
        self.pace.took(self.batch.len(), begun.elapsed());
        Ok(())
    }

    /// The next token of an answer. False when it was the last.
    fn answer(&mut self, index: usize, place: usize) -> bool {
        let run = &mut self.live[index];
        let vocabulary = &self.parts.vocabulary;
        let Some(logits) = self.parts.context.logits(place) else {
            run.stream.finish(Err(NnError::runtime("llama.cpp gave no outputs")));
            return false;
        };
        let token = match run.sampler.choose(logits, |token| vocabulary.ends(token)) {
            Ok(token) => token,
            Err(error) => {
                run.stream.finish(Err(error));
                return false;
            }
        };
        if vocabulary.ends(token) {
            run.finish(FinishReason::Stop);
            return false;
        }
        let logprobs = run.logprobs.map(|top| {
            let (chosen, top) = sampling::logprobs(logits, token, top);
            Logprobs { chosen, top: top.into_iter().map(|(id, logprob)| (id, logprob, vocabulary.bytes(id))).collect() }
        });
        run.tokens.push(token);
        self.parts.counters.completion_tokens.fetch_add(1, Relaxed);
        run.stream.push(Token { id: token, bytes: vocabulary.bytes(token), logprobs });
        if run.tokens.len() >= run.tokens_max {
            run.finish(FinishReason::Length);
            return false;
        }
        true
    }

    /// Takes a run's sequence and keeps it for prompts to come, if they could use it.
    fn keep(&mut self, run: &mut Run) {
        if !self.parts.shares_prefixes || !run.cache || run.computed < PREFIX_TOKENS_MIN {
            self.release(run);
        } else if let Some(id) = run.id.take() {
            self.kept.keep(run.tenant, id, run.tokens[..run.computed].to_vec());
            run.computed = 0;
        }
    }

    fn release(&mut self, run: &mut Run) {
        if let Some(id) = run.id.take() {
            self.parts.context.clear(id);
            self.free.push(id);
        }
        run.computed = 0;
    }

    /// Makes room by putting a sequence back among those who wait, one whose guest is behind or else the youngest: it is
    /// computed again later, and its answer goes on. False when there is only one: it can never be given more room.
    fn give_up_one(&mut self) -> bool {
        let Some(last) = self.live.len().checked_sub(1).filter(|&last| last > 0) else { return false };
        let mut run = self.live.remove(self.live.iter().position(Run::is_stalled).unwrap_or(last));
        self.release(&mut run);
        self.waiting.push_front(run);
        self.full = true;
        true
    }

    /// Ends the sequences of a step that failed.
    fn fail(&mut self, parts: &[Part], error: StepError) {
        let error = match error {
            StepError::Full => {
                NnError::new(NnErrorKind::TooLarge, "the sequence does not fit the model's cache (cache_tokens)")
            }
            StepError::Failed(code) => NnError::runtime(format!("llama.cpp failed to compute a step (code {code})")),
        };
        tracing::warn!("a step of a language model failed: {error}");
        let mut failed: Vec<usize> = parts.iter().map(|part| part.run).collect();
        failed.sort_unstable();
        for index in failed.into_iter().rev() {
            let mut run = self.live.remove(index);
            run.stream.finish(Err(error.clone()));
            self.release(&mut run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_has_half_of_the_places_and_gives_them_back() {
        let waiting = Arc::new(Waiting::new(5));
        let take = |tenant| Ticket::take(&waiting, Tenant(tenant));
        let own: Vec<Ticket> = (0..3).map(|_| take(1).unwrap()).collect();
        let refused = |tenant| take(tenant).err().unwrap().to_string();
        assert!(refused(1).contains("3 answers of this workspace"), "{}", refused(1));
        let others = [take(2).unwrap(), take(3).unwrap()];
        assert!(refused(2).contains("5 answers wait"), "{}", refused(2));
        drop(own);
        take(1).unwrap();
        drop(others);
        assert!(waiting.lock().is_empty());
    }

    #[test]
    fn a_step_has_as_many_tokens_as_there_is_time_for() {
        let mut pace = Pace::default();
        assert_eq!(pace.room(), PROMPT_PART_MAX);
        pace.took(1, Duration::from_secs(9));
        assert_eq!(pace.room(), PROMPT_PART_MAX, "that was an answer");
        pace.took(100, Duration::from_millis(200));
        assert_eq!(pace.room(), 100);
        pace.took(100, Duration::from_secs(100));
        assert_eq!(pace.room(), PROMPT_PART_UNIT);
    }
}
