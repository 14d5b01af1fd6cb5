use std::{
    fmt::Write,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use allocation_counter::measure;
use http::Request;
use serde_json::{Value, json};

use super::*;
use crate::gate::credential::TokenDigest;
use crate::gate::decision::Rejected;
use crate::gate::enforcement::Enforcement;
use crate::gate::evidence::Evidence;
use crate::gate::proof::Facts;
use crate::gate::rejection::{MalformedToken, Rejection};
use crate::gate::routing::{Environment, Route};
use crate::runtime::{SystemTime, Timestamp, set_wall_clock};

const START: u64 = 1_767_225_600;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(START + seconds)
}

fn by_version() -> RolloutReport {
    // Not `to_str`: the report must bear every text.
    RolloutReport::by(|head| std::str::from_utf8(head.headers.get("x-app-version")?.as_bytes()).ok())
}

fn head(version: Option<&str>) -> request::Parts {
    let mut head = Request::new(()).into_parts().0;
    if let Some(version) = version {
        head.extensions.insert(Arc::<str>::from(version));
    }
    head
}

/// Reads the label from an extension, so that it can have every character.
fn by_extension() -> RolloutReport {
    RolloutReport::by(|head| head.extensions.get::<Arc<str>>().map(|label| &**label))
}

fn facts() -> Facts {
    Facts::new(Route::Production, Enforcement::Enforce, Timestamp::now())
}

fn verified(report: &RolloutReport, enforcement: Enforcement, evidence: Evidence, label: Option<&str>) {
    let (facts, head) = (facts(), head(label));
    let device = Ok(facts.verified(evidence, TokenDigest::of(b"token")));
    report.decision(&Event::new(&device, &facts, enforcement, &head));
}

fn rejected(
    report: &RolloutReport,
    enforcement: Enforcement,
    rejected: impl Into<Rejected>,
    label: Option<&str>,
) {
    let (facts, head) = (facts(), head(label));
    report.decision(&Event::rejected(&rejected.into(), &facts, enforcement, &head));
}

fn parsed(report: &RolloutReport) -> Value {
    serde_json::from_str(&report.to_json()).unwrap()
}

fn fresh() -> Evidence {
    Evidence::fresh("Key", "key")
}

/// A report of one hour with something in each of its places.
fn busy_report() -> RolloutReport {
    set_wall_clock(at(0));
    let report = by_extension();
    let monitor = Enforcement::Monitor;
    for _ in 0..990 {
        verified(&report, monitor, fresh(), Some("1.4.2"));
    }
    verified(&report, monitor, Evidence::remembered("Key", "cache"), Some("1.4.2"));
    verified(&report, monitor, Evidence::stand_in("Key", "debug-token", "ci".into()), None);
    set_wall_clock(at(60));
    for _ in 0..7 {
        rejected(&report, monitor, Rejection::MissingToken, Some("1.3.0"));
    }
    set_wall_clock(at(1_800));
    rejected(&report, monitor, Rejection::MissingToken, None);
    let development = Rejected::from(Rejection::RefusedToken).with_environment(Environment::Development);
    rejected(&report, Enforcement::Enforce, development, Some("1.4.2"));
    verified(&report, Enforcement::Enforce, fresh(), Some("1.4.2"));
    report.decision(&Event::exempt(monitor, None, &head(Some("1.3.0"))));
    report.decision(&Event::left_out(None, &head(Some("1.3.0"))));
    set_wall_clock(at(3 * 3_600));
    report
}

#[test]
fn the_json_holds_every_count() {
    let counts = |checked: u64, share: f64, codes: Value| {
        let rejected: u64 = codes.as_object().unwrap().values().filter_map(Value::as_u64).sum();
        json!({"checked": checked, "rejected": rejected, "rejected_share": share, "codes": codes})
    };
    let expected = json!({
        "since": START, "until": START + 3 * 3_600, "exempt": 1, "left_out": 1,
        "monitor": counts(1_000, 0.008, json!({"missing_token": 8})),
        "enforce": counts(2, 0.5, json!({"refused_token": 1})),
        "environments": {
            "production": counts(1_001, 0.008, json!({"missing_token": 8})),
            "development": counts(1, 1.0, json!({"refused_token": 1})),
        },
        "evidence": {"fresh": 991, "remembered": 1, "stand_in": 1},
        "codes": {
            "missing_token": {"requests": 8, "first": START + 60, "last": START + 1_800},
            "refused_token": {"requests": 1, "first": START + 1_800, "last": START + 1_800},
        },
        "labels": {
            "1.4.2": counts(993, 0.001, json!({"refused_token": 1})),
            "1.3.0": counts(7, 1.0, json!({"missing_token": 7})),
        },
        "other": counts(0, 0.0, json!({})),
        "none": counts(2, 0.5, json!({"missing_token": 1})),
    });
    assert_eq!(parsed(&busy_report()), expected);
}

#[test]
fn the_text_is_aligned() {
    let expected = "\
Device checks of the last 3 h

monitor mode: would refuse 8 of 1000 checked requests (0.80 %)
enforce mode: refused 1 of 2 checked requests (50.00 %)
exempt, not checked: 1
left out of shadow mode, not checked: 1

code              requests     share        first         last
missing_token            8    0.80 %      2 h ago      2 h ago
refused_token            1    0.10 %      2 h ago      2 h ago

environment        checked   rejected     share  codes
production            1001          8    0.80 %  missing_token 8
development              1          1  100.00 %  refused_token 1

evidence          verified     share
fresh                  991   99.80 %
remembered               1    0.10 %
stand_in                 1    0.10 %

label              checked   rejected     share  codes
1.4.2                  993          1    0.10 %  refused_token 1
1.3.0                    7          7  100.00 %  missing_token 7
(none)                   2          1   50.00 %  missing_token 1
";
    let text = busy_report().to_string();
    assert_eq!(text, expected, "{text}");
}

#[test]
fn ages_have_one_unit() {
    set_wall_clock(at(0));
    let report = RolloutReport::new();
    let day = 24 * 3_600;
    let cases =
        [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_199, "119 min"), (7_200, "2 h"), (2 * day, "2 d")];
    for (seconds, age) in cases {
        set_wall_clock(at(seconds));
        let first_line = format!("Device checks of the last {age}\n");
        assert!(report.to_string().starts_with(&first_line), "{seconds}: {report}");
    }
}

#[test]
fn a_reset_forgets_everything_and_a_report_without_a_closure_has_no_labels() {
    let report = busy_report();
    report.reset();
    set_wall_clock(at(3 * 3_600 + 5));
    let empty = RolloutReport::new();
    report.reset();
    assert_eq!(parsed(&report), parsed(&empty));

    rejected(&empty, Enforcement::Enforce, Rejection::MissingToken, Some("1.3.0"));
    let all = parsed(&empty);
    assert_eq!(all["enforce"]["checked"], 1);
    assert_eq!((&all["labels"], &all["none"]["checked"]), (&json!({}), &json!(0)));
    assert!(!empty.to_string().contains("label"), "{empty}");
}

#[test]
fn a_label_can_break_neither_a_line_nor_the_json() {
    let long = "9".repeat(3_000);
    let cases: &[(&str, &str)] = &[
        ("1.4.2", "1.4.2"),
        ("app/1.4.2+build-7:b_1", "app/1.4.2+build-7:b_1"),
        ("1.4.2 (381)", "1.4.2__381_"),
        ("1\n2\r3\t4\x005\u{1b}[31m", "1_2_3_4_5__31m"),
        ("\",\"x\":{\\", "___x_:__"),
        ("(other)", "_other_"),
        ("(none)", "_none_"),
        ("<script>&amp;", "_script__amp_"),
        ("\u{202e}1.4\u{2028}", "_1.4_"),
        ("アプリ", "___"),
        (&long, &long[..64]),
        (&"é".repeat(100), &"_".repeat(64)),
    ];
    for (label, shown) in cases {
        let report = by_extension();
        verified(&report, Enforcement::Monitor, fresh(), Some(label));
        let all = parsed(&report);
        assert_eq!(all["labels"].as_object().unwrap().keys().collect::<Vec<_>>(), [shown], "{label:?}");
        let text = report.to_string();
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with(shown)).collect();
        assert_eq!(rows.len(), 1, "{label:?}: {text}");
        assert!(
            text.chars().all(|letter| letter == '\n' || (' '..='~').contains(&letter)),
            "{label:?}: {text}"
        );
    }
    let report = by_extension();
    verified(&report, Enforcement::Monitor, fresh(), Some(""));
    assert_eq!((&parsed(&report)["labels"], &parsed(&report)["none"]["checked"]), (&json!({}), &json!(1)));
}

#[test]
fn a_header_with_bytes_that_are_no_text_has_no_label() {
    let report = by_version();
    let mut head = head(None);
    head.headers.insert("x-app-version", http::HeaderValue::from_bytes(b"\xff\xfe").unwrap());
    report.decision(&Event::rejected(&Rejection::MissingToken.into(), &facts(), Enforcement::Monitor, &head));
    assert_eq!(parsed(&report)["none"]["codes"], json!({"missing_token": 1}));
}

#[test]
fn a_million_labels_take_no_more_memory_than_64_and_do_not_displace_a_frequent_one() {
    let report = by_extension();
    let head = &mut head(None);
    let (facts, missing) = (facts(), Rejection::MissingToken.into());
    let mut label = String::new();
    let grown = measure(|| {
        for number in 0..1_000_000_u32 {
            label.clear();
            // The frequent one comes once in 50 requests, which is less than the number of rows.
            let text = if number % 50 == 0 { write!(label, "1.4.2") } else { write!(label, "{number:064}") };
            text.unwrap();
            head.extensions.insert(Arc::<str>::from(&*label));
            report.decision(&Event::rejected(&missing, &facts, Enforcement::Monitor, head));
        }
    });
    assert!(grown.bytes_current < 64 << 10, "{grown:?}");

    let all = parsed(&report);
    let labels = all["labels"].as_object().unwrap();
    assert_eq!((labels.len(), &labels["1.4.2"]["checked"]), (64, &json!(20_000)));
    let of = |counts: &Value| counts["checked"].as_u64().unwrap();
    assert_eq!(labels.values().map(of).sum::<u64>() + of(&all["other"]), 1_000_000);
    assert_eq!(all["other"]["codes"], json!({"missing_token": 1_000_000 - 20_000 - 63}));
    assert!(report.to_string().contains("\n(other) "), "{report}");
    assert!(report.to_string().lines().count() <= 90, "{report}");
}

#[test]
fn a_known_label_allocates_nothing() {
    let report = by_extension();
    let (facts, head) = (facts(), head(Some("1.4.2")));
    let device = Ok(facts.verified(fresh(), TokenDigest::of(b"token")));
    let missing = Rejection::MissingToken.into();
    let decide = || {
        report.decision(&Event::new(&device, &facts, Enforcement::Monitor, &head));
        report.decision(&Event::rejected(&missing, &facts, Enforcement::Monitor, &head));
    };
    decide();
    assert_eq!(measure(decide).count_total, 0);
}

#[test]
fn debug_shows_no_head() {
    let mut head = head(None);
    head.headers.insert("cookie", http::HeaderValue::from_static("session=secret"));
    head.uri = "/?key=secret".parse().unwrap();
    let malformed = Rejected::from(Rejection::from(MalformedToken::Empty));
    let facts = facts();
    let event = Event::rejected(&malformed, &facts, Enforcement::Monitor, &head);
    let shown = format!("{event:?} {:?}", by_version());
    assert!(shown.contains("MalformedToken(Empty)") && !shown.contains("secret"), "{shown}");
}

#[test]
fn a_version_that_is_new_during_a_flood_of_known_labels_is_among_the_others() {
    let report = by_extension();
    let send = |label: &str| verified(&report, Enforcement::Monitor, fresh(), Some(label));
    (0..2 * 64).for_each(|number| send(&format!("flood-{}", number % 64)));
    for number in 0..100 {
        send("2.0.0");
        send(&format!("more-{number}"));
    }
    let all = parsed(&report);
    assert!(all["labels"].get("2.0.0").is_none(), "{report}");
    // After the flood, the version gets a row.
    (0..2).for_each(|_| send("2.0.0"));
    assert_eq!(parsed(&report)["labels"]["2.0.0"]["checked"], 2);
}
