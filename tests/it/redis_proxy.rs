//! A network between a service and its Redis: it is far, and connections stall or move.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, Pipeline, RedisFuture, Value, aio::ConnectionLike, aio::MultiplexedConnection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

/// A TCP proxy in front of a Redis. Its clients stay where they are when the server that it leads to changes.
pub(crate) struct Proxy {
    port: u16,
    server: Arc<Mutex<String>>,
}

impl Proxy {
    /// Leads to this server, which is so far away in each direction.
    pub(crate) async fn new(url: &str, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Arc::new(Mutex::new(address(url)));
        let to = Arc::clone(&server);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = to.lock().unwrap().clone();
                let Ok(server) = TcpStream::connect(server).await else { continue };
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                carry(from_client, to_server, delay);
                carry(from_server, to_client, delay);
            }
        });
        Self { port, server }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Connections from now on lead to this server.
    pub(crate) fn lead_to(&self, url: &str) {
        *self.server.lock().unwrap() = address(url);
    }
}

fn address(url: &str) -> String {
    url.trim_start_matches("redis://").trim_end_matches('/').to_owned()
}

fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut bytes).await {
            if sender.send((Instant::now() + delay, bytes[..read].to_vec())).is_err() {
                break;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((due, bytes)) = receiver.recv().await {
            sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
    });
}

/// A connection on which commands take their time on the way to Redis, and arrive whether or not anybody waits.
#[derive(Clone)]
pub(crate) struct Stalling {
    connection: MultiplexedConnection,
    /// The number of the command that stalls, from 0; `None` for each of them.
    stalls: Option<usize>,
    delay: Duration,
    sent: Arc<AtomicUsize>,
}

impl Stalling {
    pub(crate) fn new(connection: MultiplexedConnection, stalls: Option<usize>, delay: Duration) -> Self {
        Self { connection, stalls, delay, sent: Arc::default() }
    }

    fn delay(&self) -> Duration {
        let number = self.sent.fetch_add(1, Ordering::SeqCst);
        if self.stalls.is_none_or(|stalls| stalls == number) { self.delay } else { Duration::ZERO }
    }
}

impl ConnectionLike for Stalling {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let (mut connection, command, delay) = (self.connection.clone(), command.clone(), self.delay());
        let answer = tokio::spawn(async move {
            sleep(delay).await;
            connection.req_packed_command(&command).await
        });
        Box::pin(async move { answer.await.unwrap() })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let (mut connection, commands, delay) = (self.connection.clone(), commands.clone(), self.delay());
        let answer = tokio::spawn(async move {
            sleep(delay).await;
            connection.req_packed_commands(&commands, offset, count).await
        });
        Box::pin(async move { answer.await.unwrap() })
    }

    fn get_db(&self) -> i64 {
        0
    }
}
