//! The examples, each driven by its `app()`, in the process and over a socket.
