use http::{HeaderMap, HeaderValue, header::CONTENT_ENCODING, header::CONTENT_TYPE};
use proptest::prelude::*;

use super::Scanner;
use crate::split_key::usage::stated::TokenUsage;

const EVENTS: &str = "text/event-stream";
const JSON: &str = "application/json; charset=utf-8";

fn scanner(media_type: &'static str) -> Option<Scanner> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    Scanner::of(&headers)
}

fn stated(model: Option<&str>, input: Option<u64>, output: Option<u64>) -> TokenUsage {
    TokenUsage { model: model.map(str::to_owned), input, output }
}

fn read<'a>(media_type: &'static str, pieces: impl IntoIterator<Item = &'a [u8]>) -> TokenUsage {
    let mut scanner = scanner(media_type).unwrap();
    for piece in pieces {
        scanner.read(piece);
    }
    scanner.usage()
}

/// Name, media type, body, model, tokens of the prompt and of the answer.
type Row = (&'static str, &'static str, &'static str, Option<&'static str>, Option<u64>, Option<u64>);

/// Each with the expected statements. The forms are those of the providers' references.
const TABLE: &[Row] = &[
    (
        "chat",
        JSON,
        r#"{"id":"c","model":"gpt-5-2025-08-07","choices":[{"message":{"role":"assistant","content":"hi"}}],
        "usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,
        "prompt_tokens_details":{"cached_tokens":7,"completion_tokens":99},"completion_tokens_details":{"reasoning_tokens":5}}}"#,
        Some("gpt-5-2025-08-07"),
        Some(19),
        Some(10),
    ),
    (
        "embeddings",
        JSON,
        r#"{"object":"list","data":[{"embedding":[0.1,-2e-3,3]}],"model":"text-embedding-3-small","usage":{"prompt_tokens":8,"total_tokens":8}}"#,
        Some("text-embedding-3-small"),
        Some(8),
        None,
    ),
    (
        "a chat stream that was asked for its usage",
        EVENTS,
        "data: {\"model\":\"gpt-5\",\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\n\
         data: {\"model\":\"gpt-5\",\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n\
         data: [DONE]\n\n",
        Some("gpt-5"),
        Some(3),
        Some(4),
    ),
    (
        "a chat stream that was not",
        EVENTS,
        "data: {\"model\":\"gpt-5\",\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n",
        Some("gpt-5"),
        None,
        None,
    ),
    (
        "a stream of responses",
        EVENTS,
        "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"model\":\"gpt-5\",\"usage\":null}}\n\n\
         event: response.output_text.delta\ndata: {\"delta\":\"\\\"usage\\\":{\\\"input_tokens\\\":999}\"}\n\n\
         event: response.completed\ndata: {\"response\":{\"id\":\"r\",\"output\":[{\"content\":[{\"text\":\"hi\"}]}],\
         \"usage\":{\"input_tokens\":37,\"input_tokens_details\":{\"cached_tokens\":1},\"output_tokens\":11,\"total_tokens\":48}}}\n\n",
        Some("gpt-5"),
        Some(37),
        Some(11),
    ),
    (
        "a stream of messages",
        EVENTS,
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-opus-4-1\",\"content\":[],\
         \"usage\":{\"input_tokens\":25,\"cache_read_input_tokens\":100,\"output_tokens\":1}}}\n\n\
         event: ping\ndata: {\"type\": \"ping\"}\n\n\
         event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"output_tokens\":15}}\n\n\
         event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"output_tokens\":42}}\n\n",
        Some("claude-opus-4-1"),
        Some(25),
        Some(42),
    ),
    (
        "a stream of Google's, with the lines of Windows",
        EVENTS,
        "data: {\"candidates\":[],\"usageMetadata\":{\"promptTokenCount\":5,\"totalTokenCount\":5},\"modelVersion\":\"gemini-2.5-pro\"}\r\n\r\n\
         data: {\"usageMetadata\":{\"promptTokenCount\":5,\"candidatesTokenCount\":7,\"thoughtsTokenCount\":20}}\r\n\r\n\
         data: {\"usageMetadata\":{\"promptTokenCount\":5,\"candidatesTokenCount\":9,\"thoughtsTokenCount\":20,\
         \"promptTokensDetails\":[{\"modality\":\"TEXT\",\"tokenCount\":5,\"promptTokenCount\":6}]}}\r\n\r\n",
        Some("gemini-2.5-pro"),
        Some(5),
        Some(29),
    ),
    (
        "a stream of Google's that is one array",
        JSON,
        "[{\"usageMetadata\":{\"promptTokenCount\":5}}\n,\r\n{\"usageMetadata\":{\"promptTokenCount\":5,\"candidatesTokenCount\":9}}]\n",
        None,
        Some(5),
        Some(9),
    ),
    (
        "usage in the text",
        JSON,
        r#"{"choices":[{"message":{"content":"{\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}} \\"}}],"note":"\"usage\":{\"prompt_tokens\":3}\\","model":"m"}"#,
        Some("m"),
        None,
        None,
    ),
    (
        "usage in an object that is content",
        JSON,
        r#"{"content":[{"type":"tool_use","input":{"usage":{"input_tokens":9},"model":"x"}}],"metadata":{"usage":{"input_tokens":8}},
        "response":{"output":{"usage":{"input_tokens":7}},"metadata":{"model":"y","usage":{"input_tokens":6}}},
        "usage":{"output_tokens":2,"details":{"input_tokens":5},"list":[{"input_tokens":4}]}}"#,
        None,
        None,
        Some(2),
    ),
    (
        "usage as a list, a text and nothing",
        JSON,
        r#"{"usage":[{"input_tokens":1}],"usage":"\"input_tokens\":2","usage":{"input_tokens":"3","output_tokens":null}}"#,
        None,
        None,
        None,
    ),
    (
        "the last statement",
        JSON,
        r#"{"usage":{"input_tokens":1,"output_tokens":2}, "usage" : { "input_tokens" : 30 } }"#,
        None,
        Some(30),
        Some(2),
    ),
    (
        "one part under two names",
        JSON,
        r#"{"usage":{"prompt_tokens":12,"completion_tokens":5,"input_tokens":0,"output_tokens":0}}"#,
        None,
        Some(12),
        Some(5),
    ),
    (
        "numbers that are no counts",
        JSON,
        r#"{"usage":{"input_tokens":-5,"output_tokens":1.5,"prompt_tokens":99999999999999999999999,"completion_tokens":1e3,"promptTokenCount":1000000001}}"#,
        None,
        None,
        None,
    ),
    (
        "cut off within a number",
        JSON,
        r#"{"usage":{"input_tokens":7,"output_tokens":12"#,
        None,
        Some(7),
        None,
    ),
    (
        "an event that is cut off, and a whole one",
        EVENTS,
        "data: {\"delta\":\"a\n\ndata: {\"usage\":{\"output_tokens\":3}}\n\n",
        None,
        None,
        Some(3),
    ),
    (
        "an event in several lines, and fields that are no data",
        EVENTS,
        ": {\"usage\":{\"input_tokens\":1}}\nid: 1\ndatax: {\"usage\":{\"input_tokens\":2}}\nevent: data:\n\
         data:{\"usage\":\ndata: {\"input_tokens\":\ndata: 3}}\n\n",
        None,
        Some(3),
        None,
    ),
    ("an error", JSON, r#"{"error":{"message":"no","code":"usage"}}"#, None, None, None),
    (
        "a path as a name",
        JSON,
        r#"{"model":"deepseek\/deepseek-chat:free"}"#,
        Some("deepseek/deepseek-chat:free"),
        None,
        None,
    ),
    ("a name with a quote", JSON, r#"{"model":"a\"b"}"#, Some("other"), None, None),
    ("a name with markup", JSON, r#"{"model":"<b>"}"#, Some("<b>"), None, None),
    ("a name that is no word", JSON, r#"{"model":"a b"}"#, Some("other"), None, None),
    ("no name", JSON, r#"{"model":""}"#, Some("other"), None, None),
    (
        "a long name",
        JSON,
        r#"{"model":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}"#,
        Some("other"),
        None,
        None,
    ),
    ("rubbish", JSON, "]]}}\"\\\"\":,{[}:-7{\"usage\":{\"input_tokens\":}]", None, None, None),
];

#[test]
fn every_form() {
    for (name, media_type, body, model, input, output) in TABLE {
        let usage = read(media_type, [body.as_bytes()]);
        assert_eq!(usage, stated(*model, *input, *output), "{name}");
    }
}

#[test]
fn byte_by_byte() {
    for (name, media_type, body, model, input, output) in TABLE {
        let usage = read(media_type, body.as_bytes().chunks(1));
        assert_eq!(usage, stated(*model, *input, *output), "{name}");
    }
}

#[test]
fn other_bodies_are_not_read() {
    for media_type in ["audio/mpeg", "text/plain", "multipart/form-data; boundary=json", ""] {
        assert!(scanner(media_type).is_none(), "{media_type}");
    }
    assert!(Scanner::of(&HeaderMap::new()).is_none());
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("identity"));
    assert!(Scanner::of(&headers).is_some());
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    assert!(Scanner::of(&headers).is_none());
}

#[test]
fn nesting_costs_nothing() {
    let mut scanner = scanner(JSON).unwrap();
    scanner.read(&b"{\"a\":[".repeat(1_000_000));
    scanner.read(&b"]}".repeat(1_000_000));
    scanner.read(br#"{"usage":{"input_tokens":1}}"#);
    assert_eq!(scanner.usage().input, Some(1));
}

/// A JSON text of any value, in which names and strings are often those that count.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let word = || {
        prop_oneof![
            Just("usage".to_owned()),
            Just("input_tokens".to_owned()),
            Just("completion_tokens".to_owned()),
            Just("response".to_owned()),
            Just("model".to_owned()),
            Just(r#""usage":{"input_tokens":5}"#.to_owned()),
            any::<String>(),
        ]
    };
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        (0_u64..2_000_000_000).prop_map(Into::into),
        (-9_i64..0).prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        word().prop_map(Into::into),
    ];
    let any = leaf.prop_recursive(5, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::hash_map(word(), inner, 0..6)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    });
    prop::collection::hash_map(word(), any, 0..6)
        .prop_map(|members| serde_json::Value::Object(members.into_iter().collect()))
}

/// The same as the scanner, from a whole document, without the model.
fn expected(document: &serde_json::Value) -> (Option<u64>, Option<u64>) {
    let usages = [&document["response"]["usage"], &document["usage"]];
    let count = |name: &str| {
        // Only one of the two, or else the order of members would matter here.
        usages.iter().filter_map(|usage| usage[name].as_u64()).find(|tokens| *tokens <= 1_000_000_000)
    };
    (count("input_tokens"), count("completion_tokens"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_pieces_do_not_matter(row in 0..TABLE.len(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12)) {
        let (name, media_type, body, model, input, output) = TABLE[row];
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
        cuts.extend([0, body.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|cut| &body.as_bytes()[cut[0]..cut[1]]);
        prop_assert_eq!(read(media_type, pieces), stated(model, input, output), "{}", name);
    }

    #[test]
    fn as_a_parser_reads_it(document in json(), piece in 1_usize..40, is_pretty: bool) {
        prop_assume!(document["response"]["usage"].is_null() || document["usage"].is_null());
        let text = if is_pretty { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) };
        let text = text.unwrap();
        let usage = read(JSON, text.as_bytes().chunks(piece));
        prop_assert_eq!((usage.input, usage.output), expected(&document), "{}", text);
        let event = format!("event: x\ndata: {}\n\n", serde_json::to_string(&document).unwrap());
        let usage = read(EVENTS, event.as_bytes().chunks(piece));
        prop_assert_eq!((usage.input, usage.output), expected(&document), "{}", event);
    }

    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read(JSON, [&bytes[..]]);
        read(EVENTS, [&bytes[..]]);
    }
}
