//! The trait an endpoint implements, and the macro that makes a component of it.

use crate::{Error, Package, Request, Response};

/// A model endpoint.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an endpoint",
    label = "this type does not implement `tessera_sdk::Endpoint`",
    note = "write `impl tessera_sdk::Endpoint for {Self}` with `init`, which runs at deploy, and `handle`, which answers"
)]
pub trait Endpoint: Sized + 'static {
    /// Runs once, at deploy. What it returns is frozen, and every request starts from it. It must not keep handles
    /// (graphs, tensors). An error fails the deploy and is shown as its reason.
    fn init(package: &Package) -> Result<Self, Error>;

    /// Answers one request, in an instance that has answered none before.
    fn handle(&self, request: Request) -> Result<Response, Error>;
}

/// Makes a component of an [`Endpoint`]: `tessera_sdk::export!(MyEndpoint);`, once per crate.
///
/// With `schema = …` it also tells what the endpoint takes and answers: `tessera_sdk::export!(MyEndpoint, schema = schema());`
/// with a `Schema` of the module `schema`, which is a feature of the crate. It is asked for once, at deploy, after `init`.
///
/// Natively it only checks that the types fit, so that the crate can be unit-tested.
///
/// ```compile_fail
/// struct NoEndpoint;
/// tessera_sdk::export!(NoEndpoint); // `NoEndpoint` is not an endpoint
/// ```
#[macro_export]
macro_rules! export {
    ($endpoint:ty $(,)?) => {
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code, reason = "exported symbols are unsafe attributes, and the bindings uphold their ABI")]
        const _: () = {
            use $crate::__private::{Failure, Reply, Request};
            // A guest has one thread, so this is a plain static that asks no `Sync` of the endpoint.
            ::std::thread_local! {
                static ENDPOINT: ::std::cell::OnceCell<$endpoint> = const { ::std::cell::OnceCell::new() };
            }
            struct Component;
            impl $crate::bindings::Guest for Component {
                fn init() -> ::std::result::Result<(), ::std::string::String> {
                    ENDPOINT.with($crate::__private::init)
                }
                fn handle(request: Request) -> ::std::result::Result<Reply, Failure> {
                    ENDPOINT.with(|endpoint| $crate::__private::handle(endpoint, request))
                }
            }
            $crate::bindings::export! { Component with_types_in $crate::bindings }
        };
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() = $crate::__private::assert_endpoint::<$endpoint>;
    };
    ($endpoint:ty, schema = $schema:expr $(,)?) => {
        $crate::export!($endpoint);
        $crate::__export_schema!($schema);
    };
    ($endpoint:ty, $($other:tt)*) => {
        ::std::compile_error!(
            "after the endpoint's type there may only be `schema = …`: tessera_sdk::export!(MyEndpoint, schema = schema());"
        );
    };
    () => {
        ::std::compile_error!("the endpoint's type is missing: tessera_sdk::export!(MyEndpoint);");
    };
}

/// The part of [`export!`] that tells what the endpoint takes and answers.
#[cfg(feature = "schema")]
#[doc(hidden)]
#[macro_export]
macro_rules! __export_schema {
    ($schema:expr) => {
        // Names of items would hide those in `$schema`.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() -> $crate::schema::Schema = || $schema;
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code, reason = "as for the endpoint itself")]
        const _: () = {
            struct __TesseraDescribed;
            impl $crate::schema::bindings::Guest for __TesseraDescribed {
                fn describe() -> ::std::string::String {
                    $crate::schema::__describe(&$schema)
                }
            }
            $crate::schema::bindings::export! { __TesseraDescribed with_types_in $crate::schema::bindings }
        };
    };
}

/// Says what is missing.
#[cfg(not(feature = "schema"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __export_schema {
    ($schema:expr) => {
        ::std::compile_error!(
            "`schema = …` needs the feature `schema`: tessera-sdk = { …, features = [\"schema\"] } in Cargo.toml"
        );
    };
}

/// What the expansion of [`export!`](crate::export) calls. Not for use by hand.
#[doc(hidden)]
#[allow(missing_docs, reason = "not part of the library's interface")]
pub mod __private {
    use std::cell::OnceCell;

    use super::{Endpoint, Error, Package};
    pub use crate::bindings::tessera::endpoint::types::{Failure, Reply, Request};

    pub fn init<E: Endpoint>(endpoint: &OnceCell<E>) -> Result<(), String> {
        std::panic::set_hook(Box::new(|panic| crate::log::error(panic.to_string())));
        let state = E::init(&Package).map_err(|error| error.message)?;
        endpoint.set(state).map_err(|_| "init ran before in this instance".to_owned())?;
        freeze();
        Ok(())
    }

    pub fn handle<E: Endpoint>(endpoint: &OnceCell<E>, request: Request) -> Result<Reply, Failure> {
        let endpoint = endpoint
            .get()
            .ok_or_else(|| Error::model("the endpoint was never initialised: the host did not run `init` at deploy"))?;
        Ok(endpoint.handle(request.into())?.into())
    }

    pub const fn assert_endpoint<E: Endpoint>() {}

    /// The last act of `init`: from here on the memory is an image that many instances share.
    fn freeze() {
        #[cfg(target_arch = "wasm32")]
        crate::arena::seal();
        #[cfg(all(target_os = "wasi", target_env = "p1"))]
        forget_wasi_handles();
    }

    /// The preview 1 adapter caches handles of stdout and its kin. They do not exist in the instances that start from
    /// the image, where the first use would trap.
    #[cfg(all(target_os = "wasi", target_env = "p1"))]
    #[allow(unsafe_code, reason = "the adapter's own export, which has no other way to be called")]
    fn forget_wasi_handles() {
        #[link(wasm_import_module = "wasi_snapshot_preview1")]
        unsafe extern "C" {
            fn reset_adapter_state();
        }
        // SAFETY: takes and returns nothing, and no WASI call is in progress.
        unsafe { reset_adapter_state() }
    }
}
