//! A safe face for llama.cpp's context: the keys and values of the sequences, the step that computes, and what it gave.
//! `llama-cpp-2` has one too, without what is needed here: threads that change from step to step and sleep in between,
//! and a bound on outputs, without which a context takes memory for a vocabulary of numbers at every token of a step.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_sys_2 as sys;

use crate::nn::NnError;

/// One of llama.cpp's sequences: a number below [`ContextSpec::ids`].
pub(super) type SequenceId = i32;

/// What a context gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The next token.
    Answers,
    /// A vector for each sequence, made of its tokens' as the model says.
    VectorsAsTheModelSays,
    /// A vector for each sequence, the mean of its tokens'.
    MeanVectors,
}

/// What a context is made for.
#[derive(Debug, Clone, Copy)]
pub(super) struct ContextSpec {
    pub(super) purpose: Purpose,
    /// Tokens whose keys and values it holds.
    pub(super) cache_tokens: u32,
    /// Sequences it tells apart.
    pub(super) ids: u32,
    /// Most tokens of a step.
    pub(super) batch_tokens: u32,
    /// Most threads of a step.
    pub(super) threads: u32,
    /// Whether the model is on a GPU.
    pub(super) gpu: bool,
}

/// A context of a model.
pub(super) struct Context {
    raw: NonNull<sys::llama_context>,
    vocabulary: usize,
    /// How many tokens a layer with a window looks at, the one that is computed among them; zero where all see all.
    window: usize,
    threads: u32,
    // Behind `raw` in time: it is freed in `drop`, before these.
    pool: Option<ThreadPool>,
    _model: Arc<LlamaModel>,
}

// SAFETY: a context is not bound to a thread; all use of it is through `&mut self`, or reads what the last step left.
unsafe impl Send for Context {}

/// Why a step was not computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepError {
    /// No room for its tokens: nothing has changed.
    Full,
    /// llama.cpp failed, with its number.
    Failed(c_int),
}

impl Context {
    /// A context of `model`, with nothing in it.
    pub(super) fn new(model: &Arc<LlamaModel>, spec: &ContextSpec) -> Result<Context, NnError> {
        // SAFETY: it returns a plain value.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = spec.cache_tokens;
        params.n_batch = spec.batch_tokens;
        params.n_ubatch = spec.batch_tokens;
        params.n_seq_max = spec.ids;
        if spec.purpose == Purpose::Answers {
            // llama.cpp insists on one for each sequence.
            params.n_outputs_max = spec.ids;
        } else {
            params.embeddings = true;
            if spec.purpose == Purpose::MeanVectors {
                params.pooling_type = sys::LLAMA_POOLING_TYPE_MEAN;
            }
        }
        params.n_outputs_max_per_seq = 1;
        params.n_threads = spec.threads as c_int;
        params.n_threads_batch = spec.threads as c_int;
        params.kv_unified = true;
        params.no_perf = true;
        params.offload_kqv = spec.gpu;
        params.op_offload = spec.gpu;
        // SAFETY: the pointer is that of a living model, see `model_ptr`. llama.cpp may change the model's trained context
        // meanwhile; contexts of a model are made once, by whoever loaded it, before anybody else has it.
        let raw = NonNull::new(unsafe { sys::llama_init_from_model(model_ptr(model), params) });
        let raw = raw.ok_or_else(|| {
            super::log::refusal("llama.cpp cannot make a context for the model: is there memory for cache_tokens?")
        })?;
        // Owned from here on, so that it is freed whatever comes.
        let vocabulary = usize::try_from(model.vocab().n_tokens()).unwrap_or(0);
        // SAFETY: the pointer is that of a living model, see `model_ptr`.
        let window = usize::try_from(unsafe { sys::llama_model_n_swa(model_ptr(model)) }).unwrap_or(0);
        let (threads, model) = (spec.threads, Arc::clone(model));
        let mut context = Context { raw, vocabulary, window, threads, pool: None, _model: model };
        if spec.purpose != Purpose::Answers && !context.pools() {
            return Err(NnError::unsupported("the model gives no vector for a text"));
        }
        if spec.threads > 1 {
            context.attach(ThreadPool::new(spec.threads)?);
        }
        Ok(context)
    }

    fn attach(&mut self, pool: ThreadPool) {
        // SAFETY: both live; the pool is kept until the context is freed.
        unsafe { sys::llama_attach_threadpool(self.raw.as_ptr(), pool.raw.as_ptr(), pool.raw.as_ptr()) };
        self.pool = Some(pool);
    }

    /// How many threads the next steps have: at most as many as the context was made for.
    pub(super) fn set_threads(&mut self, threads: u32) {
        let threads = threads.clamp(1, self.threads) as c_int;
        // SAFETY: the context lives and does not compute now, since that takes `&mut self`.
        unsafe { sys::llama_set_n_threads(self.raw.as_ptr(), threads, threads) };
    }

    /// Computes a step. Blocks.
    pub(super) fn compute(&mut self, batch: &mut Batch) -> Result<(), StepError> {
        let raw = batch.raw();
        // SAFETY: the context lives; the batch's arrays live as long as `batch`, and have as many entries as it says.
        match unsafe { sys::llama_decode(self.raw.as_ptr(), raw) } {
            0 => Ok(()),
            1 => Err(StepError::Full),
            code => Err(StepError::Failed(code)),
        }
    }

    /// What the last step gave for the token at a place of its batch, if it was asked for: a number for each token of the
    /// vocabulary.
    pub(super) fn logits(&mut self, place: usize) -> Option<&[f32]> {
        let place = c_int::try_from(place).ok()?;
        // SAFETY: the context lives; a place that has no outputs gives null.
        let logits = NonNull::new(unsafe { sys::llama_get_logits_ith(self.raw.as_ptr(), place) })?;
        // SAFETY: llama.cpp keeps as many numbers there as the vocabulary has tokens, until the next step, which takes
        // `&mut self`.
        Some(unsafe { std::slice::from_raw_parts(logits.as_ptr(), self.vocabulary) })
    }

    /// What the last step gave for a sequence, in a context for vectors.
    pub(super) fn vector(&mut self, id: SequenceId) -> Option<&[f32]> {
        let width = self.vector_width();
        // SAFETY: the context lives; a sequence that was not in the step gives null.
        let vector = NonNull::new(unsafe { sys::llama_get_embeddings_seq(self.raw.as_ptr(), id) })?;
        // SAFETY: llama.cpp keeps a number there for each of the model's outputs, until the next step, which takes
        // `&mut self`; models that give something else for a sequence (a rank) have no such contexts.
        Some(unsafe { std::slice::from_raw_parts(vector.as_ptr(), width) })
    }

    /// Numbers in a vector.
    pub(super) fn vector_width(&self) -> usize {
        // SAFETY: the context lives, and its model with it.
        let width = unsafe { sys::llama_model_n_embd_out(sys::llama_get_model(self.raw.as_ptr())) };
        usize::try_from(width).unwrap_or(0)
    }

    /// Whether it makes a vector of a sequence. Models that rank texts give something of another size.
    fn pools(&self) -> bool {
        // SAFETY: the context lives.
        let pooling = unsafe { sys::llama_pooling_type(self.raw.as_ptr()) };
        [sys::LLAMA_POOLING_TYPE_MEAN, sys::LLAMA_POOLING_TYPE_CLS, sys::LLAMA_POOLING_TYPE_LAST].contains(&pooling)
    }

    /// Whether it remembers sequences: without it there is nothing to go on from, and no answer.
    pub(super) fn remembers(&self) -> bool {
        // SAFETY: the context lives.
        !unsafe { sys::llama_get_memory(self.raw.as_ptr()) }.is_null()
    }

    /// Whether all is there that is looked at from behind the first `tokens` of a sequence, which holds as many at least.
    ///
    /// Of a model with windows it may not be: llama.cpp gives away what has left the window of a sequence's end. It keeps
    /// a sequence without holes: what it gives away of the windows' layers is the beginning, up to some token.
    pub(super) fn holds(&self, id: SequenceId, tokens: usize) -> bool {
        // SAFETY: the context lives; the sequence is below the number of ids it was made for.
        let first = || unsafe { sys::llama_memory_seq_pos_min(sys::llama_get_memory(self.raw.as_ptr()), id) };
        self.window == 0 || window_is_there(self.window, usize::try_from(first()).ok(), tokens)
    }

    /// Lets `to` begin as the first `tokens` of `from`: they share them. `from` must hold them.
    pub(super) fn share(&mut self, from: SequenceId, to: SequenceId, tokens: usize) {
        let end = sys::llama_pos::try_from(tokens).unwrap_or(sys::llama_pos::MAX);
        // SAFETY: the context lives; both are below the number of ids it was made for.
        unsafe { sys::llama_memory_seq_cp(sys::llama_get_memory(self.raw.as_ptr()), from, to, 0, end) };
    }

    /// Frees what a sequence holds.
    pub(super) fn clear(&mut self, id: SequenceId) {
        if self.remembers() {
            // SAFETY: the context lives; all of a sequence can always be removed.
            unsafe { sys::llama_memory_seq_rm(sys::llama_get_memory(self.raw.as_ptr()), id, -1, -1) };
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by `llama_init_from_model`, freed once; the pool that it may use is dropped afterwards.
        unsafe { sys::llama_free(self.raw.as_ptr()) };
    }
}

/// Whether a sequence that is there from `first` on, if it is there at all, can go on behind its first `tokens`: the next
/// sees itself and the `window - 1` before it. Windows that llama.cpp counts otherwise (in chunks) see no more.
fn window_is_there(window: usize, first: Option<usize>, tokens: usize) -> bool {
    first.is_some_and(|first| first == 0 || first + window <= tokens + 1)
}

/// llama.cpp's own pointer of a model.
fn model_ptr(model: &LlamaModel) -> *mut sys::llama_model {
    const { assert!(size_of::<LlamaModel>() == size_of::<*mut sys::llama_model>()) };
    // SAFETY: `LlamaModel` is a transparent wrapper (`repr(transparent)`, twice) of a pointer that is never null.
    unsafe { *std::ptr::from_ref(model).cast::<*mut sys::llama_model>() }
}

/// Threads for the steps of one context. Between steps they sleep, where llama.cpp's own would spin.
struct ThreadPool {
    raw: NonNull<sys::ggml_threadpool>,
    free: unsafe extern "C" fn(*mut sys::ggml_threadpool),
}

type NewPool = unsafe extern "C" fn(*mut sys::ggml_threadpool_params) -> *mut sys::ggml_threadpool;
type FreePool = unsafe extern "C" fn(*mut sys::ggml_threadpool);

impl ThreadPool {
    fn new(threads: u32) -> Result<ThreadPool, NnError> {
        let absent = || NnError::runtime("llama.cpp's library for this processor has no thread pool");
        // SAFETY: the functions are those of this version's header, which the names stand for; they come from a library
        // that is never unloaded.
        let (new, free) = unsafe {
            let device = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU);
            if device.is_null() {
                return Err(absent());
            }
            let library = sys::ggml_backend_dev_backend_reg(device);
            let new = sys::ggml_backend_reg_get_proc_address(library, c"ggml_threadpool_new".as_ptr());
            let free = sys::ggml_backend_reg_get_proc_address(library, c"ggml_threadpool_free".as_ptr());
            if new.is_null() || free.is_null() {
                return Err(absent());
            }
            (
                std::mem::transmute::<*mut std::ffi::c_void, NewPool>(new),
                std::mem::transmute::<*mut std::ffi::c_void, FreePool>(free),
            )
        };
        // SAFETY: a plain value; then a call with a pointer to it, which is only read.
        let raw = unsafe {
            let mut params = sys::ggml_threadpool_params_default(threads as c_int);
            params.poll = 0;
            new(&raw mut params)
        };
        let raw = NonNull::new(raw).ok_or_else(|| NnError::runtime("the system refuses threads for the model"))?;
        Ok(ThreadPool { raw, free })
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        // SAFETY: made by the function beside; whoever used it is freed.
        unsafe { (self.free)(self.raw.as_ptr()) };
    }
}

/// The tokens of a step.
#[derive(Default)]
pub(super) struct Batch {
    tokens: Vec<sys::llama_token>,
    positions: Vec<sys::llama_pos>,
    ids: Vec<SequenceId>,
    id_counts: Vec<i32>,
    id_pointers: Vec<*mut SequenceId>,
    outputs: Vec<i8>,
}

// SAFETY: the pointers point into `ids` beside them, and are made anew before each use.
unsafe impl Send for Batch {}

impl Batch {
    /// Takes out all tokens.
    pub(super) fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.ids.clear();
        self.outputs.clear();
    }

    /// Adds tokens of a sequence, the first of them at `position`; gives the place of the last, whose outputs are wanted
    /// if `output` says so.
    pub(super) fn push(&mut self, id: SequenceId, position: usize, tokens: &[i32], output: bool) -> usize {
        for (index, &token) in tokens.iter().enumerate() {
            self.add(id, position + index, token, output && index + 1 == tokens.len());
        }
        self.tokens.len().saturating_sub(1)
    }

    /// Adds all of a sequence; the outputs of all its tokens are wanted.
    pub(super) fn push_all(&mut self, id: SequenceId, tokens: &[i32]) {
        for (position, &token) in tokens.iter().enumerate() {
            self.add(id, position, token, true);
        }
    }

    fn add(&mut self, id: SequenceId, position: usize, token: i32, output: bool) {
        self.tokens.push(token);
        self.positions.push(sys::llama_pos::try_from(position).unwrap_or(sys::llama_pos::MAX));
        self.ids.push(id);
        self.outputs.push(i8::from(output));
    }

    /// How many tokens it has.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    fn raw(&mut self) -> sys::llama_batch {
        self.id_counts.clear();
        self.id_counts.resize(self.ids.len(), 1);
        self.id_pointers.clear();
        self.id_pointers.extend(self.ids.iter_mut().map(std::ptr::from_mut));
        sys::llama_batch {
            n_tokens: c_int::try_from(self.tokens.len()).unwrap_or(0),
            token: self.tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: self.positions.as_mut_ptr(),
            n_seq_id: self.id_counts.as_mut_ptr(),
            seq_id: self.id_pointers.as_mut_ptr(),
            logits: self.outputs.as_mut_ptr(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::window_is_there;

    /// The model of the other tests has no window, so that the rule is tested without one.
    #[test]
    fn a_beginning_is_shared_only_with_the_window_behind_it() {
        assert!(window_is_there(512, Some(0), 1), "nothing was given away");
        assert!(!window_is_there(512, None, 600), "all was");
        // Of 2000 tokens the last 511 are left: enough for the whole sequence to go on, and for no part of it.
        assert!(window_is_there(512, Some(1489), 2000));
        assert!(!window_is_there(512, Some(1489), 1999));
        // Some more are left than the window needs.
        assert!(window_is_there(512, Some(1000), 1511));
        assert!(!window_is_there(512, Some(1000), 1510));
        assert!(!window_is_there(512, Some(1000), 900), "all of the part was given away");
    }
}
