//! Secrets on the stack.

/// The bytes of stack that opening a sealed key, or reading and deriving one of sessions, uses at most.
#[cfg(any(feature = "session", feature = "split-key"))]
pub(crate) const CIPHER: usize = 16 * 1024;
/// The bytes of stack that parsing a private key and signing with it use at most. A signature of aws-lc-rs has room for
/// those of ML-DSA, 4,627 bytes, and an unoptimized build moves it seven times.
#[cfg(feature = "_apple")]
pub(crate) const SIGNATURE: usize = 64 * 1024;

/// Runs a function that handles secrets, and overwrites the stack that it used, up to this depth. Ciphers, parsers and
/// moved values leave pieces of secrets in their frames, and perhaps nothing else ever reaches as deep.
///
/// The result stays on the caller's stack: a secret in it belongs on the heap.
pub(crate) fn wiping_the_stack<const DEPTH: usize, T>(function: impl FnOnce() -> T) -> T {
    let result = call(function);
    overwrite::<DEPTH>();
    result
}

/// The frames of the function lie below that of the caller, as those of [`overwrite`] do.
#[inline(never)]
fn call<T>(function: impl FnOnce() -> T) -> T {
    function()
}

#[inline(never)]
fn overwrite<const DEPTH: usize>() {
    std::hint::black_box(&mut [0_u8; DEPTH]);
}
