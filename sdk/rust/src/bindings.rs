//! The raw bindings of `wit/endpoint.wit`, for what the library does not wrap. Natively every host call in here
//! panics; the library then asks `testing` instead.

wit_bindgen::generate!({
    path: "../../wit",
    world: "endpoint",
    generate_all,
    // Inputs of a computation are copied once, by the host.
    ownership: Borrowing { duplicate_if_necessary: false },
    pub_export_macro: true,
    default_bindings_module: "tessera_sdk::bindings",
});
