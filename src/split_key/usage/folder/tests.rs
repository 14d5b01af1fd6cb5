use std::{error::Error, fs, time::Duration};

use web_time::UNIX_EPOCH;

use crate::runtime::set_wall_clock;
use crate::split_key::api_key::ApiKey;
use crate::split_key::fixtures::{Folder, KEYS};
use crate::split_key::splitter::Splitter;
use crate::split_key::usage::{log::UsageLog, stated::TokenUsage};

fn key() -> ApiKey {
    let (provider, key) = KEYS[0];
    let split = Splitter::new().split("project", provider, key).unwrap();
    Splitter::new().open(split.record(), split.client_part()).unwrap()
}

fn on_day(day: u32) {
    set_wall_clock(UNIX_EPOCH + Duration::from_secs(24 * 60 * 60) * day);
}

fn count(log: &UsageLog, key: &ApiKey) {
    log.count_answers(key).count(&TokenUsage { input: Some(2), ..TokenUsage::default() });
}

/// The tokens of each day, the newest first.
async fn tokens(log: &UsageLog) -> Vec<(String, u64)> {
    let entries = log.report().await.unwrap().entries.into_iter();
    entries.map(|entry| (entry.day, entry.models.iter().map(|model| model.input_tokens).sum())).collect()
}

/// Opens the folder as soon as the last task of the dropped log has ended.
async fn reopened(folder: &Folder) -> UsageLog {
    loop {
        match UsageLog::open(&folder.0) {
            Ok(log) => return log,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn refusal(folder: &Folder) -> String {
    UsageLog::open(&folder.0).unwrap_err().source().unwrap().to_string()
}

#[tokio::test(start_paused = true)]
async fn after_a_second_the_counts_are_on_the_disk() {
    let folder = Folder::new("usage-kept");
    let (file, key) = (folder.0.join("1970-01-11.json"), key());
    on_day(10);
    let log = UsageLog::open(&folder.0).unwrap();
    count(&log, &key);
    count(&log, &key);
    tokio::time::sleep(Duration::from_millis(999)).await;
    assert!(!file.exists());
    while !file.exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The copy is that of a process which was killed: it has not ended in order.
    let killed = Folder::new("usage-killed");
    fs::copy(&file, killed.0.join("1970-01-11.json")).unwrap();
    fs::write(killed.0.join("1970-01-11.json.tmp"), "{\"format\":1,\"da").unwrap();
    let next = UsageLog::open(&killed.0).unwrap();
    assert_eq!(next.report().await.unwrap(), log.report().await.unwrap());
    on_day(11);
    count(&next, &key);
    on_day(10);
    count(&next, &key);
    next.flush().await.unwrap();
    drop(next);
    let third = reopened(&killed).await;
    assert_eq!(tokens(&third).await, [("1970-01-12".to_owned(), 2), ("1970-01-11".to_owned(), 6)]);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_not_right_is_an_error() {
    let folder = Folder::new("usage-torn");
    let file = folder.0.join("1970-01-11.json");
    on_day(10);
    let log = UsageLog::open(&folder.0).unwrap();
    count(&log, &key());
    log.flush().await.unwrap();
    assert_eq!(refusal(&folder), "another process counts in this folder");
    drop(log);
    drop(reopened(&folder).await);
    let whole = fs::read_to_string(&file).unwrap();
    for torn in [&whole[..whole.len() / 2], "", "{}", &whole.replace("\"format\":1", "\"format\":2")] {
        fs::write(&file, torn).unwrap();
        assert!(refusal(&folder).contains("1970-01-11.json: "), "{torn}");
    }
    fs::write(&file, &whole).unwrap();
    fs::copy(&file, folder.0.join("1970-01-12.json")).unwrap();
    assert!(refusal(&folder).ends_with("the file has the counts of another day"));
    fs::remove_file(folder.0.join("1970-01-12.json")).unwrap();
    fs::write(folder.0.join("notes.txt"), "of the operator").unwrap();
    assert_eq!(tokens(&UsageLog::open(&folder.0).unwrap()).await.len(), 1);
}

#[tokio::test]
async fn old_days_are_removed() {
    let folder = Folder::new("usage-old");
    let log = UsageLog::open(&folder.0).unwrap().with_retention(2);
    let key = key();
    for day in [1, 2, 3] {
        on_day(day);
        count(&log, &key);
        log.flush().await.unwrap();
    }
    let mut files: Vec<_> = fs::read_dir(&folder.0)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, [".lock", "1970-01-03.json", "1970-01-04.json"]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_waits() {
    let folder = Folder::new("usage-waits");
    let (path, key) = (folder.0.join("usage"), key());
    on_day(10);
    let log = UsageLog::open(&path).unwrap();
    fs::remove_dir_all(&path).unwrap();
    count(&log, &key);
    assert!(log.flush().await.is_err());
    count(&log, &key);
    tokio::time::sleep(Duration::from_secs(3)).await;
    fs::create_dir(&path).unwrap();
    let file = path.join("1970-01-11.json");
    while !file.exists() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(tokens(&UsageLog::open(&path).unwrap()).await, [("1970-01-11".to_owned(), 4)]);
}
