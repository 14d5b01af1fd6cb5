//! Split keys: client parts, the key file, and limits on paths.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{Request, Response, Uri};
use tower::{Layer, ServiceExt, service_fn};
use tower_devicecheck::{
    Environment,
    split_key::{
        ApiKey, ClientPart, FileSplitKeyStore, Limits, MemorySplitKeyStore, Metadata, Split, SplitId,
        SplitKeyLayer, SplitKeyStore, Splitter, Version,
    },
    testing::{realistic_token, verified_device},
};

use super::{chain, wait};

const API_KEY: &str = "sk-9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3aB4cD5eF6";

/// The first byte says whether the rest is a text, or changes of a real client part: pairs of a place and a mask.
pub(crate) fn client_part(data: &[u8]) {
    thread_local!(static SPLIT: Split = Splitter::new().split("project", "openai", API_KEY).expect("a split"));
    let Some((choice, data)) = data.split_first() else { return };
    SPLIT.with(|split| {
        let ours = split.client_part().expose();
        let text = if choice & 1 == 0 {
            String::from_utf8_lossy(data).into_owned()
        } else {
            let mut text = ours.to_owned().into_bytes();
            for change in data.chunks_exact(2) {
                let place = usize::from(change[0]) % text.len();
                text[place] ^= change[1] & 0x7f;
            }
            String::from_utf8(text).expect("ASCII")
        };
        metadata(&text);
        let part = text.parse::<ClientPart>();
        let naive = text.rsplit_once('.').filter(|(secret, metadata)| {
            !secret.is_empty()
                && text.len() <= 4_160
                && text.bytes().all(|byte| (b'!'..=b'~').contains(&byte))
                && is_metadata(metadata)
        });
        assert_eq!(part.is_ok(), naive.is_some(), "{text:?}");
        let (Ok(part), Some((_, metadata))) = (part, naive) else { return };
        assert_eq!((part.expose(), &*part.metadata().to_string()), (&*text, metadata));
        let opened = Splitter::new().open(split.record(), &part);
        assert_eq!(
            opened.is_ok(),
            text == ours,
            "only the part that belongs to the record opens it: {text:?}"
        );
    });
}

/// Metadata has one spelling.
fn metadata(text: &str) {
    let text = text.rsplit('.').next().unwrap_or_default();
    match text.parse::<Metadata>() {
        Ok(metadata) => {
            assert!(is_metadata(text) && metadata.to_string() == text);
            assert_eq!(metadata.split().to_string().parse::<SplitId>().ok(), Some(metadata.split()));
            assert_eq!(metadata.version() == Version::Cut, text.starts_with("00000001"));
            let _ = metadata.created();
        }
        Err(_) => assert!(!is_metadata(text), "{text:?}"),
    }
}

fn is_metadata(text: &str) -> bool {
    let is_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_hex && matches!(text.len(), 24 | 32) && (text.starts_with("00000001") || text.starts_with("00000002"))
}

/// A file that is read is, when it is written and read again, the same. A message about a bad one shows no server part.
pub(crate) fn key_file(data: &[u8]) {
    const SECRET: &str = "c2VydmVyIHBhcnQgb2YgYSBrZXk";
    // A byte 1 stands for a server part.
    let text: Vec<u8> = data
        .iter()
        .flat_map(|byte| if *byte == 1 { SECRET.as_bytes().to_vec() } else { vec![*byte] })
        .collect();
    let file = File::new(&text);
    let store = match FileSplitKeyStore::open(&file.0) {
        Ok(store) => store,
        Err(error) => {
            assert!(!chain(&error).contains(SECRET), "{}", chain(&error));
            return;
        }
    };
    let records = wait(store.list()).expect("the records");
    assert!(!format!("{store:?} {records:?}").contains(SECRET));
    let mut names = std::collections::BTreeSet::new();
    for record in &records {
        assert!(names.insert((record.project().to_owned(), record.split())), "one record for each split");
        let found = wait(store.get(record.project(), record.split())).expect("the record").expect("it");
        assert_eq!(json(&found), json(record));
    }
    let lines: Vec<String> = records.iter().map(json).collect();
    let again = File::new(format!(r#"{{"format":1,"keys":[{}]}}"#, lines.join(",")).as_bytes());
    let store = FileSplitKeyStore::open(&again.0).expect("what was written");
    let read: Vec<String> = wait(store.list()).expect("the records").iter().map(json).collect();
    assert_eq!(sorted(read), sorted(lines));
}

fn json(record: &impl serde::Serialize) -> String {
    serde_json::to_string(record).expect("JSON")
}

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}

/// A file that is removed on drop.
struct File(PathBuf);

impl File {
    fn new(content: &[u8]) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder =
            [PathBuf::from("/dev/shm"), std::env::temp_dir()].into_iter().find(|folder| folder.is_dir());
        let name = format!("devicecheck-oracle-{}-{number}.json", std::process::id());
        let path = folder.expect("a folder").join(name);
        fs::write(&path, content).expect("a file");
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A path that a key may be used on is an allowed one, however often servers behind this one decode it, and however
/// they read it.
pub(crate) fn path(data: &[u8]) {
    thread_local!(static LIMITED: (SplitKeyLayer, String) = limited());
    let mut target = vec![b'/'];
    target.extend_from_slice(data);
    let Ok(uri) = Uri::try_from(&target[..]) else { return };
    let path = uri.path().to_owned();
    let is_admitted = LIMITED.with(|(layer, client_part)| {
        let inner = service_fn(async |request: Request<()>| {
            assert!(request.extensions().get::<ApiKey>().is_some());
            Ok::<_, std::convert::Infallible>(Response::new(http_body_util::Empty::<bytes::Bytes>::new()))
        });
        let mut request = Request::new(());
        *request.uri_mut() = uri;
        request.headers_mut().insert("x-ai-key", client_part.parse().expect("a header"));
        request.headers_mut().insert("x-project-id", "project".parse().expect("a header"));
        let device = verified_device(realistic_token().parse().expect("a token"), Environment::Production);
        request.extensions_mut().insert(device);
        wait(layer.layer(inner).oneshot(request)).expect("an answer").status().is_success()
    });
    assert_eq!(is_admitted, is_allowed(&path), "{path:?}");
    let mut read = path.clone();
    for _ in 0..3 {
        assert!(!is_admitted || stays(&read), "{path:?} is read as {read:?}");
        read = decoded(&read);
    }
}

fn limited() -> (SplitKeyLayer, String) {
    let store = Arc::new(MemorySplitKeyStore::new());
    let limits = Limits::none().with_paths(["/v1/chat", "/v1/files/*"]);
    let splitter = Splitter::new();
    let split = wait(splitter.issue(&store, "project", "openai", API_KEY, limits)).expect("a split");
    let client_part = split.client_part().expose().to_owned();
    (SplitKeyLayer::new(store), client_part)
}

/// The documented rule again, letter by letter.
fn is_allowed(path: &str) -> bool {
    let bytes = path.to_ascii_lowercase().into_bytes();
    let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    if has(b"\\") || has(b"%2e") || has(b"%2f") || has(b"%5c") || has(b"%25") {
        return false;
    }
    for segment in bytes.split(|byte| *byte == b'/') {
        let dots = segment.iter().take_while(|byte| **byte == b'.').count();
        let rest = &segment[dots..];
        let ends = [&b";"[..], b"%3b", b"%3f", b"%23"].iter().any(|end| rest.starts_with(end));
        if (1..=2).contains(&dots) && (rest.is_empty() || ends) {
            return false;
        }
    }
    path == "/v1/chat" || path.starts_with("/v1/files/")
}

/// Whether a server that resolves dots, drops parameters, and takes backslashes for slashes stays below the prefix.
fn stays(path: &str) -> bool {
    let path = path.split(['?', '#']).next().unwrap_or_default().replace('\\', "/");
    let mut folders: Vec<&str> = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment.split(';').next().unwrap_or_default() {
            "." => {}
            ".." => drop(folders.pop()),
            name => folders.push(name),
        }
    }
    folders == ["v1", "chat"] || folders.starts_with(&["v1", "files"])
}

fn decoded(path: &str) -> String {
    let bytes = path.as_bytes();
    let (mut decoded, mut place) = (Vec::new(), 0);
    while place < bytes.len() {
        let number = path.get(place + 1..place + 3).filter(|_| bytes[place] == b'%');
        match number.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                place += 3;
            }
            None => {
                decoded.push(bytes[place]);
                place += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
