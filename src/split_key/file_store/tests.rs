use super::*;
use crate::split_key::{
    fixtures::{Folder, KEYS},
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
async fn a_file_that_is_not_right_is_an_error_until_it_is() {
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
        assert!(store.get("project", split).await.is_err(), "{name}");
        assert!(store.list().await.is_err(), "{name}");
        assert!(revoke(&store, "project", split).await.is_err(), "{name}");
        fs::write(folder.0.join("keys.json"), &good).unwrap();
        assert!(store.get("project", split).await.unwrap().is_some(), "{name}");
    }
    fs::remove_file(folder.0.join("keys.json")).unwrap();
    assert!(store.get("project", split).await.is_err());
    assert!(FileSplitKeyStore::open(folder.0.join("keys.json")).is_err());
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
    let split = futures_util::FutureExt::now_or_never(issue(&store(&folder))).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // Each store has an open file of its own, as other processes have.
                let store = store(&folder);
                for _ in 0..5 {
                    let _ = futures_util::FutureExt::now_or_never(issue(&store)).unwrap();
                }
            });
        }
    });
    let until = crate::runtime::SystemTime::now();
    let store = store(&folder);
    let retired = retire(&store, "project", split, until);
    assert_eq!(futures_util::FutureExt::now_or_never(retired).unwrap().unwrap().revision(), 1);
    assert_eq!(
        FileSplitKeyStore::open(folder.0.join("keys.json"))
            .unwrap()
            .current()
            .records()
            .unwrap()
            .iter()
            .count(),
        21
    );
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
