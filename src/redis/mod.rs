//! What everything that talks to Redis shares: the connection, the deadline, and what is known of Redis's
//! health.

mod connect;
mod failure;
mod health;
mod link;

pub(crate) use self::{
    connect::connect,
    failure::LinkError,
    health::Kind,
    link::{DEFAULT_PREFIX, Link},
};
