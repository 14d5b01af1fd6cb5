//! The locks and atomics of the modules whose interleavings are explored.
//!
//! The package `schedules/` compiles these modules with another `sync`, in which each operation is a point at which
//! threads may be switched.

pub(crate) use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak, atomic,
};
