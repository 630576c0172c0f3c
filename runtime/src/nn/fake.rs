//! A graph for tests: it has the signature and the costs that a test gives it, does in a run what the test says, and
//! remembers its runs.

use std::sync::Mutex;
use std::thread::{self, ThreadId};

use super::{
    BackendId, BatchSpec, Cancel, Dim, ElementType, Graph, GraphInfo, Inputs, NnError, Outputs, Schedule, TensorInfo,
};

pub(super) type Body = Box<dyn Fn(&Inputs, &Cancel) -> Result<Outputs, NnError> + Send + Sync>;

pub(crate) struct FakeGraph {
    pub(crate) info: GraphInfo,
    pub(crate) schedule: Schedule,
    pub(crate) threads: u32,
    pub(crate) memory_bytes: u64,
    pub(super) runs: Mutex<Vec<(u32, ThreadId)>>,
    pub(super) body: Body,
}

impl FakeGraph {
    /// One without inputs and outputs.
    pub(crate) fn new(
        body: impl Fn(&Inputs, &Cancel) -> Result<Outputs, NnError> + Send + Sync + 'static,
    ) -> FakeGraph {
        FakeGraph {
            info: GraphInfo::default(),
            schedule: Schedule::new(BatchSpec::default()),
            threads: 1,
            memory_bytes: 0,
            runs: Mutex::default(),
            body: Box::new(body),
        }
    }

    /// How often it was run.
    pub(crate) fn runs(&self) -> usize {
        self.runs.lock().unwrap().len()
    }

    /// Rows of the first input of each run; 0 where there is none.
    pub(crate) fn rows(&self) -> Vec<u32> {
        self.runs.lock().unwrap().iter().map(|run| run.0).collect()
    }

    /// On which thread each run was.
    pub(crate) fn ran_on(&self) -> Vec<ThreadId> {
        self.runs.lock().unwrap().iter().map(|run| run.1).collect()
    }
}

impl Graph for FakeGraph {
    fn info(&self) -> &GraphInfo {
        &self.info
    }
    fn backend(&self) -> BackendId {
        BackendId::Tract
    }
    fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }
    fn schedule(&self) -> &Schedule {
        &self.schedule
    }
    fn intra_op_threads(&self) -> u32 {
        self.threads
    }
    fn run(&self, inputs: Inputs, cancel: &Cancel) -> Result<Outputs, NnError> {
        let rows = inputs.tensors().first().and_then(|tensor| tensor.dims().first().copied());
        self.runs.lock().unwrap().push((rows.unwrap_or(0), thread::current().id()));
        (self.body)(&inputs, cancel)
    }
}

/// An input or output whose dimensions are all free.
pub(crate) fn tensor_info(name: &str, element: ElementType, dims: usize) -> TensorInfo {
    TensorInfo { name: name.to_owned(), element, dims: Some(vec![Dim::Free(None); dims]) }
}

/// A run that ends when it is told to.
pub(crate) fn run_until_stopped(cancel: &Cancel) -> Result<Outputs, NnError> {
    let (tx, stopped) = std::sync::mpsc::channel();
    let _disarm = cancel.on_cancel(move || tx.send(()).unwrap_or_default())?;
    stopped.recv().unwrap();
    Err(NnError::timeout("stopped"))
}
