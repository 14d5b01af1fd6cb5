//! Scanner: finds the tokens in a response while its bytes pass, in constant memory.

use http::{HeaderMap, header::CONTENT_ENCODING, header::CONTENT_TYPE};

use crate::split_key::usage::stated::{MAX_MODEL, Statements, TokenUsage, count_named};

/// A reader of a response's body, piece by piece. It keeps the path to the place where it is, and no text but the name
/// of a member or model.
///
/// A statement counts at its place only: in the member `usage` or `usageMetadata` of an event or document, or of its
/// member `response` or `message`. The same words within a string, or deeper, are content.
pub(super) enum Scanner {
    Json(JsonScanner),
    Events(EventScanner),
}

impl Scanner {
    /// A scanner for a body with these headers; `None` if the body is neither JSON nor a stream of events, or is
    /// compressed.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        if headers.get_all(CONTENT_ENCODING).iter().any(|coding| coding != "identity") {
            return None;
        }
        let media_type = headers.get(CONTENT_TYPE)?.to_str().ok()?.to_ascii_lowercase();
        match media_type.split(';').next().unwrap_or_default().trim() {
            "text/event-stream" => Some(Self::Events(EventScanner::default())),
            json if json.contains("json") => Some(Self::Json(JsonScanner::default())),
            _ => None,
        }
    }

    pub(super) fn read(&mut self, bytes: &[u8]) {
        match self {
            Self::Json(json) => json.read(bytes),
            Self::Events(events) => events.read(bytes),
        }
    }

    pub(super) fn usage(&self) -> TokenUsage {
        match self {
            Self::Json(json) => json.statements.usage(),
            Self::Events(events) => events.json.statements.usage(),
        }
    }
}

/// Reads the JSON in the `data:` lines of server-sent events.
#[derive(Default)]
pub(super) struct EventScanner {
    json: JsonScanner,
    line: Line,
    /// The last byte was a carriage return: a line feed belongs to it.
    after_return: bool,
}

/// The place within a line.
enum Line {
    /// So many bytes are those of [`DATA`].
    Field(usize),
    Data,
    Other,
}

impl Default for Line {
    fn default() -> Self {
        Self::Field(0)
    }
}

const DATA: &[u8] = b"data:";

impl EventScanner {
    fn read(&mut self, mut bytes: &[u8]) {
        while let Some(first) = bytes.first() {
            if std::mem::take(&mut self.after_return) && *first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            self.read_in_line(line);
            bytes = match rest {
                [] => rest,
                [end, rest @ ..] => {
                    self.after_return = *end == b'\r';
                    self.end_line();
                    rest
                }
            };
        }
    }

    fn read_in_line(&mut self, mut bytes: &[u8]) {
        while let (Line::Field(matched), [byte, rest @ ..]) = (&mut self.line, bytes) {
            bytes = rest;
            match DATA.get(*matched) == Some(byte) {
                false => self.line = Line::Other,
                true if *matched + 1 == DATA.len() => self.line = Line::Data,
                true => *matched += 1,
            }
        }
        if matches!(self.line, Line::Data) {
            self.json.read(bytes);
        }
    }

    fn end_line(&mut self) {
        if matches!(self.line, Line::Field(0)) {
            // An empty line ends the event, and a document that was cut off with it.
            self.json.restart();
        }
        self.line = Line::default();
    }
}

/// Reads JSON documents without checking them.
#[derive(Default)]
pub(super) struct JsonScanner {
    statements: Statements,
    /// The objects and arrays around this place, without an array that is the whole document: Google sends its
    /// events in one.
    depth: usize,
    in_root_array: bool,
    /// The outermost of them. All others are content.
    levels: [Level; 3],
    /// The next string is the name of a member.
    awaits_name: bool,
    within: Within,
    text: ShortText,
}

#[derive(Clone, Copy, Default)]
struct Level {
    is_object: bool,
    member: Member,
}

/// The member of an object whose value is being read.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Member {
    #[default]
    Other,
    /// Holds what other providers have at the top.
    Inner,
    Usage,
    Model,
    Count(usize),
}

/// The thing whose bytes are being read.
#[derive(Clone, Copy, Default)]
enum Within {
    #[default]
    Nothing,
    Text {
        kind: Text,
        escaped: bool,
    },
    /// The digits of a count; `None` if it is no whole number, or too large.
    Count(usize, Option<u64>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Text {
    Name,
    Model,
    Content,
}

impl JsonScanner {
    /// Begins another document. The statements stay.
    fn restart(&mut self) {
        *self = Self { statements: std::mem::take(&mut self.statements), ..Self::default() };
    }

    fn read(&mut self, mut bytes: &[u8]) {
        while let [byte, rest @ ..] = bytes {
            bytes = match self.within {
                // Nearly all bytes of most responses.
                Within::Text { kind: Text::Content, escaped: false } => {
                    let Some(end) = memchr::memchr2(b'"', b'\\', bytes) else { return };
                    self.read_text(bytes[end], Text::Content, false);
                    &bytes[end + 1..]
                }
                Within::Text { kind, escaped } => {
                    self.read_text(*byte, kind, escaped);
                    rest
                }
                Within::Count(index, digits) => {
                    self.read_count(*byte, index, digits);
                    rest
                }
                // Deep in content, such as in the numbers of an embedding, only the depth matters.
                Within::Nothing if self.depth > self.levels.len() => {
                    let next = bytes.iter().position(|byte| matches!(byte, b'"' | b'{' | b'}' | b'[' | b']'));
                    let Some(next) = next else { return };
                    self.read_structure(bytes[next]);
                    &bytes[next + 1..]
                }
                Within::Nothing => {
                    self.read_structure(*byte);
                    rest
                }
            };
        }
    }

    fn read_structure(&mut self, byte: u8) {
        match byte {
            b'{' | b'[' => self.open(byte == b'{'),
            b'}' | b']' => self.close(),
            b':' => self.awaits_name = false,
            b',' => {
                let is_object = self.level().is_some_and(|level| {
                    level.member = Member::Other;
                    level.is_object
                });
                self.awaits_name = is_object;
            }
            b'"' => {
                let kind = match self.member() {
                    _ if self.awaits_name => Text::Name,
                    Member::Model => Text::Model,
                    _ => Text::Content,
                };
                self.text = ShortText::default();
                self.within = Within::Text { kind, escaped: false };
            }
            b'-' | b'0'..=b'9' => {
                if let Member::Count(index) = self.member() {
                    self.read_count(byte, index, Some(0));
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, is_object: bool) {
        if self.depth == 0 && !is_object && !self.in_root_array {
            self.in_root_array = true;
            return;
        }
        self.depth = self.depth.saturating_add(1);
        let is_near = self.level().is_some_and(|level| {
            *level = Level { is_object, member: Member::Other };
            true
        });
        self.awaits_name = is_object && is_near;
    }

    fn close(&mut self) {
        if self.depth == 0 {
            self.in_root_array = false;
        }
        self.depth = self.depth.saturating_sub(1);
        self.awaits_name = false;
    }

    fn read_text(&mut self, byte: u8, kind: Text, escaped: bool) {
        match byte {
            b'"' if !escaped => {
                self.within = Within::Nothing;
                match kind {
                    Text::Name => self.enter_member(),
                    Text::Model => self.statements.state_model(self.text.bytes()),
                    Text::Content => {}
                }
                return;
            }
            b'\\' if !escaped => {
                self.within = Within::Text { kind, escaped: true };
                return;
            }
            b'/' => self.text.push(byte),
            // Any other escape: no name that counts has one.
            _ if escaped => self.text.spoil(),
            _ => self.text.push(byte),
        }
        self.within = Within::Text { kind, escaped: false };
    }

    fn read_count(&mut self, byte: u8, index: usize, digits: Option<u64>) {
        match byte {
            b'0'..=b'9' => {
                let longer =
                    digits.and_then(|digits| digits.checked_mul(10)?.checked_add((byte - b'0').into()));
                self.within = Within::Count(index, longer);
            }
            b'-' | b'+' | b'.' | b'e' | b'E' => self.within = Within::Count(index, None),
            _ => {
                if let Some(tokens) = digits {
                    self.statements.state_count(index, tokens);
                }
                self.within = Within::Nothing;
                self.read_structure(byte);
            }
        }
    }

    /// The level of this place, unless it is too deep.
    fn level(&mut self) -> Option<&mut Level> {
        self.levels.get_mut(self.depth.checked_sub(1)?)
    }

    fn member(&mut self) -> Member {
        self.level().map(|level| level.member).unwrap_or_default()
    }

    /// Takes the name that was read as that of the member whose value comes next.
    fn enter_member(&mut self) {
        let name = self.text.bytes().unwrap_or_default();
        let around = self.levels.map(|level| level.member);
        let member = match (self.depth, around) {
            (1, _) | (2, [Member::Inner, ..]) => match name {
                b"usage" | b"usageMetadata" => Member::Usage,
                b"model" | b"modelVersion" => Member::Model,
                b"response" | b"message" if self.depth == 1 => Member::Inner,
                _ => Member::Other,
            },
            (2, [Member::Usage, ..]) | (3, [Member::Inner, Member::Usage, _]) => {
                count_named(name).map(Member::Count).unwrap_or_default()
            }
            _ => Member::Other,
        };
        if let Some(level) = self.level() {
            level.member = member;
        }
    }
}

/// The beginning of a string: enough for a name.
struct ShortText {
    bytes: [u8; MAX_MODEL],
    /// `None` if the string is too long, or spoilt.
    length: Option<usize>,
}

impl Default for ShortText {
    fn default() -> Self {
        Self { bytes: [0; MAX_MODEL], length: Some(0) }
    }
}

impl ShortText {
    fn push(&mut self, byte: u8) {
        let Some(length) = self.length else { return };
        match self.bytes.get_mut(length) {
            Some(place) => {
                *place = byte;
                self.length = Some(length + 1);
            }
            None => self.length = None,
        }
    }

    fn spoil(&mut self) {
        self.length = None;
    }

    fn bytes(&self) -> Option<&[u8]> {
        self.bytes.get(..self.length?)
    }
}

#[cfg(test)]
mod tests;
