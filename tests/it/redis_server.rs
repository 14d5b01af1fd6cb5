//! A Redis server of a test's own, which it may kill, and what is made from it.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use redis::aio::MultiplexedConnection;
use tower_devicecheck::{DeviceCheckLayer, Redis, cache::RedisCache, replay::RedisReplayGuard};

use crate::support::{App, Apple};

#[derive(Debug)]
pub(crate) struct RedisServer {
    port: u16,
    arguments: Vec<String>,
    process: Option<(Child, BufReader<ChildStdout>)>,
}

impl RedisServer {
    /// A fresh one on a free port, that keeps nothing on disk.
    pub(crate) fn start() -> Self {
        Self::start_with(|port| {
            ["--port", &port.to_string(), "--save", "", "--appendonly", "no"].map(str::to_owned).to_vec()
        })
    }

    /// One with these arguments, on a free port.
    pub(crate) fn start_with(arguments: impl FnOnce(u16) -> Vec<String>) -> Self {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let mut server = Self { port, arguments: arguments(port), process: None };
        server.restart();
        server
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// On the same port, with nothing in it.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let mut child = Command::new("redis-server")
            .args(&self.arguments)
            .args(["--bind", "127.0.0.1"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("redis-server is needed for these tests: install the package of that name");
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !["Ready to accept connections", "Sentinel ID is"].iter().any(|ready| line.contains(ready)) {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "redis-server does not start");
        }
        self.process = Some((child, output));
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some((mut child, _)) = self.process.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGSTOP: connections stay, and nothing answers.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let (child, _) = self.process.as_ref().unwrap();
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some((mut child, _)) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Where the test is not about Redis being slow, a slow machine must not make it so.
pub(crate) const PATIENT: Duration = Duration::from_secs(20);

pub(crate) async fn handle(server: &RedisServer) -> Redis {
    Redis::connect(server.url()).await.unwrap().with_deadline(PATIENT)
}

pub(crate) async fn cache(server: &RedisServer) -> RedisCache {
    RedisCache::new(handle(server).await)
}

pub(crate) async fn guard(server: &RedisServer) -> RedisReplayGuard {
    RedisReplayGuard::new(handle(server).await)
}

pub(crate) async fn client(server: &RedisServer) -> MultiplexedConnection {
    redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// Replicas of one service with a cache each.
pub(crate) async fn replicas(
    apple: &Apple,
    server: &RedisServer,
    configure: impl Fn(DeviceCheckLayer, RedisCache) -> DeviceCheckLayer,
) -> Vec<App> {
    replicas_with_deadline(apple, server, PATIENT, configure).await
}

pub(crate) async fn replicas_with_deadline(
    apple: &Apple,
    server: &RedisServer,
    deadline: Duration,
    configure: impl Fn(DeviceCheckLayer, RedisCache) -> DeviceCheckLayer,
) -> Vec<App> {
    let mut apps = Vec::new();
    for _ in 0..3 {
        let shared = RedisCache::new(handle(server).await.with_deadline(deadline));
        apps.push(App::new(&configure(apple.layer(), shared)));
    }
    apps
}
