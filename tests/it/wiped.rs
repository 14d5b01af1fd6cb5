//! The secrets that are left in the memory of a server after it has dropped them. Linux shows them.
//!
//! The server is a process of its own, with an allocator that wipes nothing.
#![cfg(target_os = "linux")]

use std::{
    any::Any,
    collections::BTreeMap,
    convert::Infallible,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::AUTHORIZATION};
use http_body_util::Empty;
use tower::{Layer, ServiceExt, service_fn};
use tower_devicecheck::{
    AppleClient, Credentials, DebugTokens, DeviceCheckLayer,
    session::{KeyRing, Sessions},
    testing::{PrivateKey, realistic_token},
};
use zeroize::Zeroizing;

use crate::{process_memory::copies, support::TOKEN_HEADER};

/// The variable with the folder of the server's files: the private key, the debug token and Apple's address.
const FOLDER: &str = "TOWER_DEVICECHECK_WIPED";
const DEBUG_HEADER: &str = "x-debug-token";

/// Reads a file into one buffer that is wiped.
fn read(folder: &Path, name: &str) -> Zeroizing<Vec<u8>> {
    let mut file = File::open(folder.join(name)).unwrap();
    let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
    let mut bytes = Zeroizing::new(vec![0; length]);
    file.read_exact(&mut bytes).unwrap();
    bytes
}

/// Says how far the server is, and waits until the other process has looked.
#[allow(clippy::print_stdout, reason = "the other process reads it")]
fn pause(phase: &str) {
    println!("phase {phase}");
    let mut line = String::new();
    assert_ne!(std::io::stdin().read_line(&mut line).unwrap(), 0, "the other process has ended");
}

/// A layer with the private key and the debug token. The transport copies nothing: the kernel takes the provider token
/// from the header's own memory.
fn layer(folder: &Path) -> DeviceCheckLayer {
    let address = fs::read_to_string(folder.join("apple")).unwrap();
    let credentials = Credentials::from_pem_file("TEAM123456", "KEY1234567", folder.join("key.p8")).unwrap();
    let client = AppleClient::builder(credentials).transport(service_fn(move |request: Request<Bytes>| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(request.headers()[AUTHORIZATION].as_bytes()).unwrap();
        async { Ok::<_, Infallible>(Response::new(Bytes::new())) }
    }));
    let secret = read(folder, "debug");
    let tokens = DebugTokens::new().add("ci", text(&secret)).unwrap();
    DeviceCheckLayer::new(client.build().unwrap()).with_debug_tokens(tokens)
}

/// The other keys that a server has, and what is made from them.
fn keys(folder: &Path) -> Vec<Box<dyn Any>> {
    let ring = KeyRing::from_file(folder.join("ring")).unwrap();
    let sessions = Sessions::new("acme", "TEAM123456.com.example.app", &ring).unwrap();
    let mut keys: Vec<Box<dyn Any>> = vec![Box::new(ring), Box::new(sessions)];
    #[cfg(feature = "jwt")]
    keys.push(Box::new(tower_devicecheck::session::JwtKey::from_pem(text(&read(folder, "jwt.p8"))).unwrap()));
    #[cfg(feature = "app-attest")]
    {
        use tower_devicecheck::{
            app_attest::{ChallengeKey, Challenges},
            replay::MemoryReplayGuard,
        };
        let key: ChallengeKey = text(&read(folder, "challenge")).parse().unwrap();
        keys.push(Box::new(Challenges::new(key, MemoryReplayGuard::new())));
    }
    keys
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

async fn status(layer: &DeviceCheckLayer, header: &'static str, value: HeaderValue) -> u16 {
    let inner = service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())));
    let request = Request::builder().header(header, value).body(()).unwrap();
    layer.layer(inner).oneshot(request).await.unwrap().status().as_u16()
}

#[tokio::test]
#[ignore = "the other process, which the tests below start"]
async fn serve() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let layer = layer(&folder);
    let token = HeaderValue::from_str(&realistic_token()).unwrap();
    assert_eq!(status(&layer, TOKEN_HEADER, token).await, 200);
    // The memory of the header is wiped, as a server's buffers should be.
    let debug = HeaderValue::from_maybe_shared(Bytes::from_owner(read(&folder, "debug"))).unwrap();
    assert_eq!(status(&layer, DEBUG_HEADER, debug).await, 200);
    // Last: what these leave on the stack and in freed memory, nothing else has overwritten.
    let keys = keys(&folder);
    pause("used");
    drop((layer, keys));
    pause("dropped");
}

/// A secret in one of its forms, and the pieces of it that are searched for: each is a good part of it.
struct Secret {
    name: String,
    pieces: Vec<Vec<u8>>,
}

impl Secret {
    fn new(name: &str, bytes: &[u8], piece: usize) -> Self {
        Self { name: name.to_owned(), pieces: bytes.chunks_exact(piece).map(<[u8]>::to_vec).collect() }
    }

    fn copies(&self, process: u32) -> usize {
        self.pieces.iter().map(|piece| copies(process, piece).unwrap()).sum()
    }
}

/// A private key as text, as a number, and as a big-integer library keeps it, with the lowest byte first.
fn private_key(name: &str, pem: &str) -> [Secret; 3] {
    let text: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = BASE64_STANDARD.decode(&text).unwrap();
    let before = [0x02, 0x01, 0x01, 0x04, 0x20];
    let start = der.windows(5).position(|window| window == before).unwrap() + before.len();
    let number = &der[start..start + 32];
    let reversed: Vec<u8> = number.iter().rev().copied().collect();
    // The letters that are of nothing but the number.
    let letters = start.div_ceil(3) * 4..(start + 32) / 3 * 4;
    [
        Secret::new(&format!("{name}, text"), &text.as_bytes()[letters], 8),
        Secret::new(&format!("{name}, number"), number, 8),
        Secret::new(&format!("{name}, words"), &reversed, 8),
    ]
}

/// A new secret of 32 bytes with its number, as text, and what to search for.
fn master_key(name: &str) -> (String, [Secret; 2]) {
    let bytes = [(); 2].map(|()| uuid::Uuid::new_v4().into_bytes()).concat();
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let secrets = [
        Secret::new(&format!("{name}, text"), digits.as_bytes(), 16),
        Secret::new(&format!("{name}, bytes"), &bytes, 8),
    ];
    (format!("0a0b0c0d:{digits}"), secrets)
}

struct Server {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Server {
    fn start(folder: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "wiped::serve"])
            .env(FOLDER, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { process, input, output: BufReader::new(output) }
    }

    fn until(&mut self, phase: &str) {
        let mut line = String::new();
        while !line.ends_with(&format!("phase {phase}\n")) {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the server ended before {phase}");
        }
    }

    fn go_on(&mut self) {
        self.input.write_all(b"\n").unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "whoever runs the tests should know what was skipped")]
fn secrets_are_wiped_when_they_are_dropped() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("wiped-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let [pem, jwt] = [(); 2].map(|()| PrivateKey::generate().to_pem());
    let (ring, of_ring) = master_key("session key");
    let (challenge, of_challenge) = master_key("challenge key");
    let debug = format!("marker{}", uuid::Uuid::new_v4().simple());
    let apple = TcpListener::bind("127.0.0.1:0").unwrap();
    for (name, text) in [
        ("key.p8", &*pem),
        ("jwt.p8", &*jwt),
        ("ring", &ring),
        ("challenge", &challenge),
        ("debug", &debug),
        ("apple", &apple.local_addr().unwrap().to_string()),
    ] {
        fs::write(folder.join(name), text).unwrap();
    }

    let mut server = Server::start(&folder);
    let process = server.process.id();
    if let Err(error) = copies(process, debug.as_bytes()) {
        eprintln!("SKIPPED: this system does not let a process read its child's memory: {error}");
        return;
    }
    let mut bearer = String::new();
    apple.accept().unwrap().0.read_to_string(&mut bearer).unwrap();
    let (_, signature) = bearer.strip_prefix("Bearer ").unwrap().rsplit_once('.').unwrap();
    assert_eq!(signature.len(), 86);

    let mut secrets = vec![
        Secret::new("provider token", signature.as_bytes(), 8),
        Secret::new("debug token", debug.as_bytes(), 16),
    ];
    secrets.extend(private_key("private key", &pem));
    secrets.extend(private_key("key of JWTs", &jwt));
    secrets.extend(of_ring.into_iter().chain(of_challenge));
    let found = || -> BTreeMap<&str, usize> {
        secrets.iter().map(|secret| (&*secret.name, secret.copies(process))).collect()
    };
    server.until("used");
    let used = found();
    server.go_on();
    server.until("dropped");
    let dropped = found();
    eprintln!("{used:?}\n{dropped:?}");
    // The search does find what is there.
    for name in ["provider token", "private key, words", "session key, bytes"] {
        assert!(used[name] > 0, "{name}: {used:?}");
    }
    // Neither text has a place in the memory of a server.
    for name in ["debug token", "private key, text"] {
        assert_eq!(used[name], 0, "{name}: {used:?}");
    }
    assert!(dropped.values().all(|copies| *copies == 0), "{dropped:?}");
    fs::remove_dir_all(&folder).unwrap();
}
