//! Faults of everything around the gate.
//!
//! `matrix` plays each fault of `fault` between the real client and a fake Apple, over real TLS. `docs/reliability.md`
//! has the table that it prints. `surroundings` has the faults that need no socket.

mod certificates;
mod fault;
mod http1;
mod http2;
mod injector;
mod matrix;
mod rows;
mod surroundings;
