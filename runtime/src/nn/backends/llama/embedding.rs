//! Texts as vectors: many of them in a step, of all requests together, in a context of its own that is made for the first.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::context::{Batch, Context, ContextSpec, Purpose, SequenceId};
use super::engine::{Pace, Ticket};
use super::fair::Served;
use super::stream::{Ended, Stream, Vectors};
use crate::nn::{NnError, Tenant};

use llama_cpp_2::model::LlamaModel;

/// Texts of a request.
pub(super) struct Texts {
    pub(super) tenant: Tenant,
    pub(super) stream: Arc<Stream>,
    pub(super) texts: Vec<Vec<i32>>,
    /// Vectors of the first texts, one after the other.
    values: Vec<f32>,
    done: usize,
    _ticket: Ticket,
}

impl Texts {
    /// None of them computed.
    pub(super) fn new(tenant: Tenant, stream: Arc<Stream>, texts: Vec<Vec<i32>>, ticket: Ticket) -> Texts {
        Texts { tenant, stream, texts, values: Vec::new(), done: 0, _ticket: ticket }
    }

    fn finish(self, width: usize) {
        let prompt_tokens = self.texts.iter().map(Vec::len).sum();
        let vectors = Vectors { rows: self.texts.len(), width, values: self.values, prompt_tokens };
        self.stream.finish(Ok(Ended::Vectors(vectors)));
    }
}

/// What computes vectors of texts.
pub(super) struct Embedder {
    model: Arc<LlamaModel>,
    spec: ContextSpec,
    /// Made for the first text; or why it cannot be, which trying again would not change.
    context: Option<Result<Context, NnError>>,
    waiting: VecDeque<Texts>,
    batch: Batch,
    pace: Pace,
}

impl Embedder {
    /// One that has no memory yet. `spec` says how much it computes at once.
    pub(super) fn new(model: &Arc<LlamaModel>, spec: ContextSpec) -> Embedder {
        let (context, waiting, batch) = (None, VecDeque::new(), Batch::default());
        Embedder { model: Arc::clone(model), spec, context, waiting, batch, pace: Pace::default() }
    }

    pub(super) fn push(&mut self, texts: Texts) {
        self.waiting.push_back(texts);
    }

    /// Takes out what nobody waits for.
    pub(super) fn drop_closed(&mut self) {
        self.waiting.retain(|texts| !texts.stream.is_closed());
    }

    /// Whose texts wait.
    pub(super) fn tenants(&self) -> impl Iterator<Item = Tenant> {
        self.waiting.iter().map(|texts| texts.tenant)
    }

    /// Ends what waits.
    pub(super) fn fail(&mut self, error: &NnError) {
        for texts in self.waiting.drain(..) {
            texts.stream.finish(Err(error.clone()));
        }
    }

    /// Whether no texts wait.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Computes as many texts as there is time for in a step, one at least, the workspace first that was served least.
    pub(super) fn step(&mut self, threads: u32, served: &mut Served) {
        // Of each request how many texts are in the step, in the order of their sequences.
        let mut taken = Vec::new();
        let Err(error) = self.compute(threads, served, &mut taken) else { return };
        tracing::warn!("failed to compute embeddings: {error}");
        if taken.is_empty() {
            // There is no context, which all of them need.
            return self.fail(&error);
        }
        // What is wrong may be wrong with these alone.
        for texts in take_out(&mut self.waiting, taken.iter().map(|taken| taken.0).collect()) {
            texts.stream.finish(Err(error.clone()));
        }
        if let Some(Ok(context)) = &mut self.context {
            (0..self.spec.ids.cast_signed()).for_each(|id| context.clear(id));
        }
    }

    fn compute(&mut self, threads: u32, served: &mut Served, taken: &mut Vec<(usize, usize)>) -> Result<(), NnError> {
        let context = self.context.get_or_insert_with(|| Context::new(&self.model, &self.spec));
        let context = context.as_mut().map_err(|error| error.clone())?;
        let mut order: Vec<usize> = (0..self.waiting.len()).collect();
        order.sort_by_key(|&index| served.tokens(self.waiting[index].tenant));
        self.batch.clear();
        let (mut ids, mut room) = (0, self.pace.room().min(self.spec.batch_tokens as usize));
        for index in order {
            let texts = &self.waiting[index];
            let mut count = 0;
            for text in &texts.texts[texts.done..] {
                // The first is computed however long it is: a text cannot be divided.
                if (text.len() > room && ids > 0) || ids >= self.spec.ids {
                    break;
                }
                self.batch.push_all(ids.cast_signed(), text);
                (ids, room, count) = (ids + 1, room.saturating_sub(text.len()), count + 1);
                served.add(texts.tenant, text.len());
            }
            if count > 0 {
                taken.push((index, count));
            }
            if ids >= self.spec.ids || room == 0 {
                break;
            }
        }
        context.set_threads(threads);
        let begun = Instant::now();
        let computed = context.compute(&mut self.batch);
        computed.map_err(|error| NnError::runtime(format!("llama.cpp failed to compute embeddings ({error:?})")))?;
        self.pace.took(self.batch.len(), begun.elapsed());
        let mut id: SequenceId = 0;
        for &(index, count) in &*taken {
            let texts = &mut self.waiting[index];
            for _ in 0..count {
                let vector = context.vector(id).ok_or_else(|| NnError::runtime("llama.cpp gave no embedding"))?;
                texts.values.extend(normalised(vector));
                context.clear(id);
                id += 1;
            }
            texts.done += count;
        }
        let width = context.vector_width();
        let mut ended: Vec<usize> = taken.iter().map(|taken| taken.0).collect();
        ended.retain(|&index| self.waiting[index].done == self.waiting[index].texts.len());
        for texts in take_out(&mut self.waiting, ended) {
            texts.finish(width);
        }
        Ok(())
    }
}

/// Takes requests out by their places: the last first, which leaves the places of the others as they are.
fn take_out(waiting: &mut VecDeque<Texts>, mut places: Vec<usize>) -> Vec<Texts> {
    places.sort_unstable();
    places.into_iter().rev().filter_map(|place| waiting.remove(place)).collect()
}

impl ContextSpec {
    /// The one for vectors beside the one for answers: a text is computed in one step, so a step is as long as a text may
    /// be.
    pub(super) fn for_vectors(mut self, text_tokens_max: u32, pooled: bool) -> ContextSpec {
        self.ids = self.ids.min(text_tokens_max);
        // llama.cpp rounds a step up so that it has as many tokens for each sequence, forgets its outputs when it does, and
        // ends the process since they are fewer.
        self.batch_tokens = text_tokens_max.next_multiple_of(self.ids.max(1));
        self.cache_tokens = self.batch_tokens;
        self.purpose = if pooled { Purpose::VectorsAsTheModelSays } else { Purpose::MeanVectors };
        self
    }
}

/// The same direction, of length one. A vector of zeros stays as it is.
fn normalised(vector: &[f32]) -> impl Iterator<Item = f32> {
    let length = vector.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    vector.iter().map(move |&value| (f64::from(value) * scale) as f32)
}

#[cfg(test)]
mod tests {
    use super::super::engine::Waiting;
    use super::*;

    #[test]
    fn requests_are_taken_out_by_their_places() {
        let places = Arc::new(Waiting::new(8));
        let texts = |tenant| {
            let ticket = Ticket::take(&places, Tenant(tenant)).unwrap();
            Texts::new(Tenant(tenant), Arc::default(), vec![vec![1]], ticket)
        };
        let mut waiting: VecDeque<Texts> = (0..5).map(texts).collect();
        let taken = take_out(&mut waiting, vec![3, 0, 1]);
        assert_eq!(taken.iter().map(|texts| texts.tenant.0).collect::<Vec<_>>(), [3, 1, 0]);
        assert_eq!(waiting.iter().map(|texts| texts.tenant.0).collect::<Vec<_>>(), [2, 4]);
    }

    #[test]
    fn vectors_have_length_one() {
        assert_eq!(normalised(&[3.0, 4.0]).collect::<Vec<_>>(), [0.6, 0.8]);
        assert_eq!(normalised(&[0.0, 0.0]).collect::<Vec<_>>(), [0.0, 0.0]);
    }
}
