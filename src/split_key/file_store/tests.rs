use std::fs;

use futures_util::FutureExt;

use super::*;
use crate::split_key::{
    fixtures::{Folder, KEYS},
    key_file::{beside, lock_file, options},
    limits::Limits,
    record::SplitKeyState,
    splitter::{Splitter, retire, revoke},
};

fn store(folder: &Folder) -> FileSplitKeyStore {
    FileSplitKeyStore::open_or_create(folder.0.join("keys.json")).unwrap().with_check_interval(Duration::ZERO)
}

async fn issue(store: &FileSplitKeyStore) -> SplitId {
    let (provider, key) = KEYS[0];
    let split = Splitter::new().issue(store, "project", provider, key, Limits::none()).await;
    split.unwrap().record().split()
}

#[tokio::test]
async fn what_is_written_is_read_by_others() {
    let folder = Folder::new("others");
    let (writer, reader) = (store(&folder), store(&folder));
    let split = issue(&writer).await;
    let state = async |store: &FileSplitKeyStore| store.get("project", split).await.unwrap().unwrap().state();
    assert_eq!(state(&writer).await, SplitKeyState::Active);
    assert_eq!(state(&reader).await, SplitKeyState::Active);
    revoke(&reader, "project", split).await.unwrap();
    assert_eq!(state(&writer).await, SplitKeyState::Revoked);
    assert_eq!(writer.list().await.unwrap().len(), 1);
    assert!(writer.get("another", split).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn the_file_is_looked_at_once_in_an_interval() {
    let folder = Folder::new("interval");
    let writer = store(&folder);
    let reader = FileSplitKeyStore::open(folder.0.join("keys.json")).unwrap();
    let split = issue(&writer).await;
    assert!(reader.get("project", split).await.unwrap().is_none());
    tokio::time::advance(Duration::from_millis(999)).await;
    assert!(reader.get("project", split).await.unwrap().is_none());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(reader.get("project", split).await.unwrap().is_some());
}

#[tokio::test]
async fn w15_while_the_file_is_damaged_the_old_records_serve_and_the_store_says_so() {
    let folder = Folder::new("broken");
    let store = store(&folder);
    let split = issue(&store).await;
    let good = fs::read_to_string(folder.0.join("keys.json")).unwrap();
    let (start, _) = good.split_at(good.len() / 2);
    let cases = [
        ("empty", String::new()),
        ("half", start.to_owned()),
        ("another format", good.replace("\"format\": 1", "\"format\": 2")),
        ("not a project id", good.replace("project", "pro\u{fffd}ect")),
    ];
    for (name, text) in cases {
        fs::write(folder.0.join("keys.json"), text).unwrap();
        assert!(store.check().await.is_err(), "{name}");
        assert!(store.get("project", split).await.unwrap().is_some(), "{name}");
        assert!(store.list().await.is_err(), "{name}");
        assert!(revoke(&store, "project", split).await.is_err(), "{name}");
        assert!(FileSplitKeyStore::open(folder.0.join("keys.json")).is_err(), "{name}");
        fs::write(folder.0.join("keys.json"), &good).unwrap();
        assert!(store.check().await.is_ok(), "{name}");
        assert!(store.get("project", split).await.unwrap().is_some(), "{name}");
    }
    fs::remove_file(folder.0.join("keys.json")).unwrap();
    assert!(store.check().await.is_err());
    assert!(store.get("project", split).await.unwrap().is_some());
    assert!(FileSplitKeyStore::open(folder.0.join("keys.json")).is_err());
    // The file counts again as soon as it can be read.
    fs::write(folder.0.join("keys.json"), "{\"format\": 1, \"keys\": []}").unwrap();
    assert!(store.get("project", split).await.unwrap().is_none());
}

/// Opening a FIFO without a writer would never end, and `/dev/zero` has no end.
#[cfg(unix)]
#[tokio::test]
async fn w15_nothing_but_a_regular_file_is_read() {
    let folder = Folder::new("fifo");
    let fifo = folder.0.join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for path in [&*fifo, &folder.0, Path::new("/dev/zero")] {
        let error = FileSplitKeyStore::open(path).unwrap_err();
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert!(why.contains("regular file"), "{}: {why}", path.display());
    }
    assert!(FileSplitKeyStore::open_or_create(&fifo).is_err());
    // The same where the file was a file at the start.
    let store = store(&folder);
    let split = issue(&store).await;
    fs::rename(&fifo, folder.0.join("keys.json")).unwrap();
    assert!(store.check().await.is_err());
    assert!(store.get("project", split).await.unwrap().is_some());
    assert!(store.list().await.is_err());
    assert!(revoke(&store, "project", split).await.is_err());
}

/// A reader of a large file holds up no thread that serves requests. Requests wait only for records that are too old.
#[tokio::test(start_paused = true)]
async fn w15_requests_do_not_read_the_file_themselves() {
    let folder = Folder::new("aside");
    let writer = store(&folder);
    let split = issue(&writer).await;
    let store = FileSplitKeyStore::open(folder.0.join("keys.json")).unwrap();
    let state = async || store.get("project", split).await.unwrap().unwrap().state();
    revoke(&writer, "project", split).await.unwrap();

    // A reader that takes its time. Meanwhile, records that are not too old serve.
    lock(&store.loaded).is_reading = true;
    tokio::time::advance(Duration::from_millis(500)).await;
    assert_eq!(state().now_or_never(), Some(SplitKeyState::Active));
    tokio::time::advance(Duration::from_millis(499)).await;
    assert_eq!(state().now_or_never(), Some(SplitKeyState::Active));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(state().now_or_never(), None, "it waits, and not on this thread");
    lock(&store.loaded).is_reading = false;
    assert_eq!(state().await, SplitKeyState::Revoked);
}

#[tokio::test]
async fn errors_quote_nothing_of_the_file() {
    let folder = Folder::new("quotes");
    fs::write(folder.0.join("keys.json"), r#"{"format":1,"keys":[{"project":"MARKER","MARKER":"MARKER"}]}"#)
        .unwrap();
    let error = FileSplitKeyStore::open(folder.0.join("keys.json")).unwrap_err();
    let text = format!("{error:?} {error} {}", std::error::Error::source(&error).unwrap());
    assert!(!text.contains("MARKER"), "{text}");
    assert!(text.contains("line 1"), "{text}");
}

#[tokio::test]
async fn what_a_killed_writer_leaves_disturbs_nobody() {
    let folder = Folder::new("killed");
    let store = store(&folder);
    let split = issue(&store).await;
    let temporary = fs::canonicalize(folder.0.join("keys.json")).unwrap();
    fs::write(beside(&temporary, ".tmp"), "{\"format\": 1, \"ke").unwrap();
    assert!(FileSplitKeyStore::open(folder.0.join("keys.json")).is_ok());
    revoke(&store, "project", split).await.unwrap();
    assert!(!beside(&temporary, ".tmp").exists());
}

#[cfg(unix)]
#[tokio::test]
async fn permissions_and_links() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = Folder::new("permissions");
    let first = store(&folder);
    let mode = || fs::metadata(folder.0.join("keys.json")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    fs::set_permissions(folder.0.join("keys.json"), fs::Permissions::from_mode(0o640)).unwrap();
    let split = issue(&first).await;
    assert_eq!(mode(), 0o640);

    let link = folder.0.join("link.json");
    symlink(folder.0.join("keys.json"), &link).unwrap();
    let linked = FileSplitKeyStore::open(&link).unwrap();
    revoke(&linked, "project", split).await.unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    let found = first.get("project", split).await.unwrap().unwrap();
    assert_eq!(found.state(), SplitKeyState::Revoked);
}

#[test]
fn writers_do_not_lose_the_work_of_others() {
    let folder = Folder::new("writers");
    let split = issue(&store(&folder)).now_or_never().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // Each store has an open file of its own, as other processes have.
                let store = store(&folder);
                for _ in 0..5 {
                    let _ = issue(&store).now_or_never().unwrap();
                }
            });
        }
    });
    let until = crate::runtime::SystemTime::now();
    let store = store(&folder);
    let retired = futures::executor::block_on(retire(&store, "project", split, until));
    assert_eq!(retired.unwrap().revision(), 1);
    assert_eq!(store.list().now_or_never().unwrap().unwrap().len(), 21);
}

#[tokio::test]
async fn a_change_by_others_within_the_interval_is_no_conflict() {
    let folder = Folder::new("stale");
    let hour = Duration::from_secs(3600);
    let server = store(&folder).with_check_interval(hour);
    let split = issue(&server).await;
    let tool = store(&folder);
    retire(&tool, "project", split, crate::runtime::SystemTime::now() + hour).await.unwrap();
    revoke(&server, "project", split).await.unwrap();
    let found = tool.get("project", split).await.unwrap().unwrap();
    assert_eq!(found.state(), SplitKeyState::Revoked);
}

#[cfg(unix)]
#[test]
fn one_lock_whatever_the_name_of_the_file() {
    let folder = Folder::new("names");
    let _ = store(&folder);
    let link = folder.0.join("link.json");
    std::os::unix::fs::symlink(folder.0.join("keys.json"), &link).unwrap();
    let held = lock_file(&link).unwrap();
    let other = options().open(beside(&folder.0.join("keys.json"), ".lock")).unwrap();
    assert!(other.try_lock().is_err());
    drop(held);
    assert!(other.try_lock().is_ok());
}

/// A thief of the file learns the head of a key in version 1, and nothing in version 2.
#[tokio::test]
async fn a_stolen_key_file_holds_no_piece_of_a_key_but_the_heads_of_version_1() {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

    use crate::split_key::metadata::Version;

    // These keys repeat nothing.
    for (provider, key) in [KEYS[0], KEYS[3]] {
        for version in [Version::Cut, Version::Sealed] {
            let folder = Folder::new("stolen");
            let splitter = Splitter::new().with_version(version);
            let split =
                splitter.issue(&store(&folder), "project", provider, key, Limits::none()).await.unwrap();
            let mut stolen = fs::read(folder.0.join("keys.json")).unwrap();
            let server = split.record().server_part().expose();
            let head = match version {
                Version::Cut => server.len() - 16,
                Version::Sealed => {
                    stolen.extend(URL_SAFE_NO_PAD.decode(server).unwrap());
                    0
                }
            };
            let is_stolen = |piece: &[u8]| memchr::memmem::find(&stolen, piece).is_some();
            // By chance, the salt behind the head goes on like the key. So no piece is of both head and tail.
            let (head, tail) = key.as_bytes().split_at(head);
            assert!(head.windows(8).all(is_stolen), "{version}, {provider}");
            assert!(!tail.windows(8).any(is_stolen), "{version}, {provider}");
            // Version 1 says by the salt, 16 digits, which parts belong together.
            let secret = split.client_part().expose().rsplit_once('.').unwrap().0;
            let secret = if version == Version::Cut { &secret[..secret.len() - 16] } else { secret };
            assert!(!secret.as_bytes().windows(8).any(is_stolen), "{version}, {provider}");
            if version == Version::Sealed {
                let secret = URL_SAFE_NO_PAD.decode(secret).unwrap();
                assert!(!secret.windows(8).any(is_stolen), "{provider}");
            }
        }
    }
}
