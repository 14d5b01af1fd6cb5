//! The example `split_key`: the tool that manages key files.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use tower_devicecheck::split_key::{ClientPart, FileSplitKeyStore, SplitKeyState, SplitKeyStore, Splitter};

use crate::{split_key::KEYS, support::example};

/// The example `split_key`, and a folder for its files, gone with the test.
struct Tool {
    folder: PathBuf,
}

impl Tool {
    fn new(name: &str) -> Self {
        let folder =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self { folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.join("keys.json")
    }

    fn spawn(&self, arguments: &str, stdin: &str) -> Child {
        let mut child = Command::new(example("split_key"))
            .args(arguments.split_whitespace())
            .current_dir(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may end without reading.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child
    }

    fn run(&self, arguments: &str, stdin: &str) -> Output {
        self.spawn(arguments, stdin).wait_with_output().unwrap()
    }

    /// The text that it prints, without the end of the line.
    fn succeed(&self, arguments: &str, stdin: &str) -> String {
        let Output { status, stdout, stderr } = self.run(arguments, stdin);
        assert!(status.success(), "{arguments}: {}", String::from_utf8_lossy(&stderr));
        assert!(stderr.is_empty(), "{arguments}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap().trim_end_matches('\n').to_owned()
    }

    fn fail(&self, arguments: &str, stdin: &str) -> String {
        let Output { status, stdout, stderr } = self.run(arguments, stdin);
        assert_eq!(status.code(), Some(1), "{arguments}");
        assert!(stdout.is_empty(), "{arguments}: {}", String::from_utf8_lossy(&stdout));
        let text = String::from_utf8(stderr).unwrap();
        crate::captured::printed(&text);
        text
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn the_tool_manages_a_key_file() {
    let tool = Tool::new("tool");
    let key = KEYS[1].1;
    let issued = |line: String| {
        assert!(!line.contains('\n'), "one line");
        let part: ClientPart = line.parse().unwrap();
        (part.metadata().split(), part)
    };
    let (first, part) = issued(tool.succeed(
        "add --file keys.json --project app --provider openai --path /v1/openai/* --method POST",
        &format!("{key}\n"),
    ));
    let store = FileSplitKeyStore::open(tool.file()).unwrap().with_check_interval(Duration::ZERO);
    let find = async |split| store.get("app", split).await.unwrap().unwrap();
    let record = find(first).await;
    assert_eq!(Splitter::new().open(&record, &part).unwrap().expose(), key);
    assert_eq!(record.limits().paths().unwrap(), ["/v1/openai/*"]);
    assert!(!fs::read_to_string(tool.file()).unwrap().contains(&key[8..20]), "no key in the file");

    let rotate = format!("rotate --file keys.json --project app --split {first} --overlap 1h");
    let (second, part) = issued(tool.succeed(&rotate, key));
    assert_eq!(Splitter::new().open(&find(second).await, &part).unwrap().expose(), key);
    assert!(matches!(find(first).await.state(), SplitKeyState::Retiring { .. }));
    let listed = tool.succeed("list --file=keys.json --project=app", "");
    assert_eq!(listed.lines().count(), 2, "{listed}");
    assert!(listed.lines().any(|line| line.contains(&second.to_string()) && line.contains("active")));
    assert!(listed.lines().any(|line| line.contains(&first.to_string()) && line.contains("retiring until")));

    assert_eq!(tool.succeed(&format!("retire --file keys.json --project app --split {second}"), ""), "");
    assert_eq!(tool.succeed(&format!("revoke --file keys.json --project app --split {first}"), ""), "");
    assert_eq!(find(first).await.state(), SplitKeyState::Revoked);
    let listed = tool.succeed("list --file keys.json", "");
    assert!(listed.contains("retired") && listed.contains("revoked"), "{listed}");

    let (third, part) =
        issued(tool.succeed("add --file keys.json --project app --provider openai --version 1", key));
    let server = find(third).await;
    let pair = format!("{}\n{}\n", server.server_part().expose(), part.expose());
    let found = tool.succeed("lint --provider openai", &pair);
    assert!(found.starts_with("the server lacks "), "{found}");

    type Row<'a> = (&'a str, String, &'a str);
    let cases: [Row<'_>; 10] = [
        ("not this key", "add --file keys.json --project app --provider google".to_owned(), key),
        ("no key", "add --file keys.json --project app --provider openai".to_owned(), ""),
        ("two keys", "add --file keys.json --project app --provider openai".to_owned(), "sk-a\nsk-b\n"),
        ("a key as an argument", format!("add {key}"), ""),
        ("no project", "add --file keys.json --provider openai".to_owned(), key),
        ("a slip", "add --file keys.json --project app --provider openai --paht /x".to_owned(), key),
        (
            "another version",
            "add --file keys.json --project app --provider openai --version 3".to_owned(),
            key,
        ),
        ("no such split", "revoke --file keys.json --project app --split 00000000".to_owned(), ""),
        ("no such file", "list --file nothing.json".to_owned(), ""),
        ("no command", String::new(), ""),
    ];
    let before = fs::read(tool.file()).unwrap();
    for (name, arguments, stdin) in cases {
        let error = tool.fail(&arguments, stdin);
        assert!(error.starts_with("error: "), "{name}: {error}");
        assert!(!error.contains(&key[8..20]), "{name}: the key is in the error");
        assert_eq!(fs::read(tool.file()).unwrap(), before, "{name}");
    }
    // A pair that leaves two characters: the server part has all but those.
    let (head, tail) = key.split_at(key.len() - 2);
    let salt = "0123456789abcdef";
    let metadata = part.expose().rsplit_once('.').unwrap().1;
    let unsound = tool.run("lint --provider openai", &format!("{head}{salt}\n{tail}{salt}.{metadata}\n"));
    assert_eq!(unsound.status.code(), Some(1));
    assert!(String::from_utf8(unsound.stdout).unwrap().contains("the server lacks 2 characters"));
}

#[test]
fn a_writer_that_is_killed_leaves_the_old_or_the_new_records() {
    const ROUNDS: usize = 40;
    let tool = Tool::new("killed");
    let add = "add --file keys.json --project app --provider openai";
    let key = KEYS[0].1;
    tool.succeed(add, key);
    // A file that takes a while to write.
    let text = fs::read_to_string(tool.file()).unwrap();
    let mut contents: serde_json::Value = serde_json::from_str(&text).unwrap();
    let template = contents["keys"][0].clone();
    let records = (0..2_000).map(|number| {
        let mut record = template.clone();
        record["project"] = format!("project-{number}").into();
        record
    });
    contents["keys"] = records.collect();
    fs::write(tool.file(), contents.to_string()).unwrap();

    let records = || {
        let store = FileSplitKeyStore::open(tool.file()).unwrap();
        let records = futures::executor::block_on(store.list()).unwrap();
        let old = records.iter().filter(|record| record.project().starts_with("project-")).count();
        assert_eq!(old, 2_000);
        records.len() - old
    };
    let temporary = tool.folder.join("keys.json.tmp");
    let (mut killed_writing, mut added) = (0, 0);
    for round in 0..ROUNDS {
        let mut child = tool.spawn(add, key);
        let started = Instant::now();
        // Killed at the first sight of the new file, or a little into its writing.
        let mut looks = round % 8 * 50;
        let writing = loop {
            if child.try_wait().unwrap().is_some() {
                break false;
            }
            if temporary.exists() {
                if looks == 0 {
                    break true;
                }
                looks -= 1;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "the tool hangs");
        };
        child.kill().unwrap();
        child.wait().unwrap();
        killed_writing += usize::from(writing);
        let now = records();
        assert!(now == added || now == added + 1, "{now} records after {added}");
        added = now;
    }
    assert!(killed_writing > 0, "no writer was killed while it wrote");
    // Neither the lock nor what was left is in the way of the next.
    tool.succeed(add, key);
    assert_eq!(records(), added + 1);
    assert!(!temporary.exists());
}
