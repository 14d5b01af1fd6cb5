//! The example `split_key`: the tool that manages key files.

mod mistakes;

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
        self.spawn_with(arguments, stdin, &[])
    }

    fn spawn_with(&self, arguments: &str, stdin: &str, variables: &[(&str, &str)]) -> Child {
        let mut child = Command::new(example("split_key"))
            .args(arguments.split_whitespace())
            .envs(variables.iter().copied())
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

    fn run_with(&self, arguments: &str, stdin: &str, variables: &[(&str, &str)]) -> Output {
        self.spawn_with(arguments, stdin, variables).wait_with_output().unwrap()
    }

    /// The text that it prints, without the end of the line. It says more only of a file that is new.
    fn succeed(&self, arguments: &str, stdin: &str) -> String {
        let is_new = !self.file().exists();
        let Output { status, stdout, stderr } = self.run(arguments, stdin);
        let said = String::from_utf8(stderr).unwrap();
        assert!(status.success(), "{arguments}: {said}");
        let expected = !is_new || said.lines().count() == 1 && said.contains("the key file is new");
        assert!(expected && (is_new || said.is_empty()), "{arguments}: {said}");
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
        ("no format", "add --file keys.json --project app --provider google --version 1".to_owned(), key),
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

#[tokio::test]
async fn the_example_of_the_key_file_in_the_docs_is_one() {
    let tool = Tool::new("documented");
    let docs = include_str!("../../docs/split-keys.md");
    let mut blocks = docs.split("```json\n").skip(1).filter_map(|block| block.split("```").next());
    let example = blocks.find(|block| block.contains("\"format\"")).unwrap();
    fs::write(tool.file(), example).unwrap();
    let records = FileSplitKeyStore::open(tool.file()).unwrap().list().await.unwrap();
    // Each member is there, and is what the writer writes.
    let written = serde_json::to_value(&records).unwrap();
    let documented: serde_json::Value = serde_json::from_str(example).unwrap();
    assert_eq!(written, documented["keys"]);
    let table = docs.split("## The key file").nth(1).unwrap();
    for member in written[0].as_object().unwrap().keys() {
        assert!(table.contains(&format!("| `{member}` |")), "{member}");
    }
}

fn proxeds_pairs() -> Vec<serde_json::Value> {
    serde_json::from_str(include_str!("../vectors/partial-keys.json")).unwrap()
}

/// Pairs that Proxed's code made, as a query of its tables and the apps' sources give them.
#[tokio::test]
async fn import_takes_existing_pairs_or_none_of_them() {
    let tool = Tool::new("import");
    let pairs = proxeds_pairs();
    let line = |pair: &serde_json::Value| {
        let provider = pair["provider"].as_str().unwrap().trim_end_matches("_project").to_uppercase();
        serde_json::json!({
            "project_id": "7d0c", "provider": provider, "key_value": pair["server_part"],
            "client_part": pair["client_part"],
        })
        .to_string()
    };
    let lines: Vec<_> = pairs.iter().map(line).collect();
    let add = "add --file keys.json --project app --provider openai";
    let sealed = tool.succeed(add, KEYS[0].1);
    let before = fs::read(tool.file()).unwrap();

    // One pair that is not right, and nothing is written.
    let (first, second) = (&pairs[0], &pairs[1]);
    let mixed = serde_json::json!({
        "project": "p", "provider": "openai", "server_part": first["server_part"],
        "client_part": second["client_part"],
    });
    let foreign = lines[0].replace("OPENAI", "GOOGLE");
    let sealed = serde_json::json!({
        "project": "p", "provider": "openai", "server_part": first["server_part"], "client_part": sealed,
    });
    let cases = [
        ("parts of two keys", mixed.to_string(), "do not belong together"),
        ("another version's", sealed.to_string(), "do not belong together"),
        ("another provider's", foreign, "no format"),
        ("no such provider", lines[0].replace("OPENAI", "OPENED"), "no provider"),
        ("twice", lines[0].clone(), "earlier line"),
        ("a slip", lines[2].replace("client_part", "clientpart"), "JSON object"),
        ("more than a pair", lines[2].replacen('{', "{\"api_key\": \"x\",", 1), "JSON object"),
        ("a part that is none", lines[2].replace(".0000", ".000"), "not a part"),
        ("no project", lines[2].replace("7d0c", ""), "project id"),
        ("a key", KEYS[0].1.to_owned(), "JSON object"),
    ];
    let server_part = first["server_part"].as_str().unwrap();
    let client_part = second["client_part"].as_str().unwrap();
    for (name, wrong, why) in cases {
        let stdin = format!("{}\n\n{wrong}\n{}\n", lines[0], lines[1]);
        let error = tool.fail("import --file keys.json", &stdin);
        assert!(error.contains("line 3: ") && error.contains(why), "{name}: {error}");
        for secret in [&server_part[3..15], &client_part[..12], &KEYS[0].1[3..15]] {
            assert!(!error.contains(secret), "{name}: {error}");
        }
        assert_eq!(fs::read(tool.file()).unwrap(), before, "{name}");
    }
    tool.fail("import --file keys.json", "\n");

    let output = tool.run("import --file keys.json --path /v1/openai/*", &lines.join("\n"));
    let (printed, error) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    crate::captured::printed(&format!("{printed}{error}"));
    assert!(output.status.success(), "{error}");
    assert_eq!(printed.lines().count(), pairs.len());
    let store = FileSplitKeyStore::open(tool.file()).unwrap();
    assert_eq!(store.list().await.unwrap().len(), pairs.len() + 1);
    let mut unsound = 0;
    for (pair, line) in pairs.iter().zip(printed.lines()) {
        let part: ClientPart = pair["client_part"].as_str().unwrap().parse().unwrap();
        let split = part.metadata().split();
        let record = store.get("7d0c", split).await.unwrap().unwrap();
        let key = Splitter::new().open(&record, &part).unwrap();
        assert_eq!(key.expose(), pair["api_key"]);
        assert_eq!(record.limits().paths().unwrap(), ["/v1/openai/*"]);
        assert!(line.contains(&split.to_string()), "{line}");
        let words: Vec<_> = line.split([' ', ',']).collect();
        let numbers: Vec<usize> = words.iter().filter_map(|word| word.parse().ok()).collect();
        // The version is one of the numbers; the two others are characters that a part lacks.
        let is_sound = numbers[numbers.len() - 2..].iter().all(|lacking| *lacking >= 12);
        unsound += usize::from(!is_sound);
    }
    assert!(unsound >= 2);
    assert_eq!(error.lines().filter(|line| line.contains("make a new API key")).count(), unsound, "{error}");
    let again = tool.fail("import --file keys.json", &lines[0]);
    assert!(again.contains("already has"), "{again}");
}

/// The server must be able to read what the operator's tool wrote.
#[cfg(unix)]
#[test]
fn w15_a_file_of_another_user_stays_his_or_stays_as_it_was() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let tool = Tool::new("owners");
    let add = "add --file keys.json --project app --provider openai";
    let key = KEYS[0].1;
    tool.succeed(add, key);
    const NOBODY: u32 = 65_534;
    // Only root may give a file away.
    if chown(tool.file(), Some(NOBODY), Some(NOBODY)).is_err() {
        return;
    }
    fs::set_permissions(tool.file(), fs::Permissions::from_mode(0o640)).unwrap();
    let owner =
        || fs::metadata(tool.file()).map(|file| (file.uid(), file.gid(), file.mode() & 0o777)).unwrap();
    tool.succeed(add, key);
    assert_eq!(owner(), (NOBODY, NOBODY, 0o640));

    // A file of root's, which everybody may read, in a folder where everybody may write.
    chown(tool.file(), Some(0), Some(0)).unwrap();
    fs::set_permissions(tool.file(), fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(&tool.folder, fs::Permissions::from_mode(0o777)).unwrap();
    let _ = fs::remove_file(tool.folder.join("keys.json.lock"));
    let as_nobody = |arguments: &str| {
        // A copy, because nobody may look into the folder of the original.
        let program = std::env::temp_dir().join(format!("split_key-{}", std::process::id()));
        // Another process writes it: the children that other tests start hold what this one has open for writing, and
        // nobody may run such a file.
        let copied = Command::new("cp").arg(example("split_key")).arg(&program).status().unwrap();
        assert!(copied.success(), "{copied}");
        let mut command = Command::new(&program);
        std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
        let child = command.args(arguments.split_whitespace()).current_dir(&tool.folder);
        let child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap();
        let _ = child.stdin.take().unwrap().write_all(key.as_bytes());
        let output = child.wait_with_output().unwrap();
        fs::remove_file(program).unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let before = fs::read(tool.file()).unwrap();
    let (succeeded, error) = as_nobody(add);
    assert!(!succeeded && error.contains("belongs to user 0"), "{error}");
    assert_eq!(fs::read(tool.file()).unwrap(), before);
    assert_eq!(owner(), (0, 0, 0o644));
    assert!(!tool.folder.join("keys.json.tmp").exists());

    // A file that the process may not read says whose it is.
    fs::set_permissions(tool.file(), fs::Permissions::from_mode(0o600)).unwrap();
    let (succeeded, error) = as_nobody("list --file keys.json");
    assert!(!succeeded && error.contains("belongs to user 0") && error.contains("mode 600"), "{error}");
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
