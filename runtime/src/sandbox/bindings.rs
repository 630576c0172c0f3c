//! Bindings generated from `wit/`: the host's side of the guest contract.
#![allow(missing_docs, unreachable_pub)]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "endpoint",
    imports: {
        // These wait: for the backend, for the client, for room in the response, for the disk. The guest's fibre is
        // parked meanwhile and the thread serves other requests.
        "wasi:nn/inference.[method]graph-execution-context.compute": async | trappable,
        "tessera:endpoint/compute.run": async | trappable,
        "tessera:endpoint/assets.read": async | trappable,
        "tessera:endpoint/streaming.[method]request-body.read": async | trappable,
        "tessera:endpoint/streaming.[method]response-body.write": async | trappable,
        default: trappable,
    },
    exports: { default: async },
    with: {
        "wasi:nn/tensor.tensor": crate::nn::Tensor,
        "wasi:nn/graph.graph": super::nn_host::LoadedGraph,
        "wasi:nn/inference.graph-execution-context": super::nn_host::ExecutionContext,
        "wasi:nn/errors.error": super::nn_host::GuestError,
        "tessera:endpoint/streaming.request-body": super::streaming::RequestBody,
        "tessera:endpoint/streaming.response-body": super::streaming::ResponseBody,
    },
});
