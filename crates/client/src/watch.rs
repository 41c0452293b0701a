//! Every change as it happens: server-sent events (WHATWG HTML, section 9.2), the subset that the server sends.

use futures_util::stream::{self, Stream, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sterna_model::event::Event as Fact;

use crate::Client;
use crate::error::{Error, Result};

/// A line longer than this is no event of ours: the watch ends instead of filling memory.
const LINE_MAX: usize = 16 * 1024 * 1024;

/// One event of a watch.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Change(Change),
    /// A fact was recorded.
    Fact(Fact),
    /// Numbers of running transfers; never stored.
    Progress(Value),
}

/// An object changed; `object` is absent when it is gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub kind: String,
    pub name: String,
    pub revision: u64,
    #[serde(default)]
    pub object: Option<Value>,
}

impl Client {
    /// Changes after revision `from` (absent: from now on), of these kinds (none: all); recorded facts are of kind
    /// `event`.
    pub async fn watch(
        &self,
        from: Option<u64>,
        kinds: &[&str],
    ) -> Result<impl Stream<Item = Result<Event>>> {
        let from = from.map(|from| ("from", from.to_string()));
        let kind = (!kinds.is_empty()).then(|| ("kind", kinds.join(",")));
        let query: Vec<_> = from.into_iter().chain(kind).collect();
        let response = self.stream("/v1/watch", &query).await?;
        let client = self.clone();
        let chunks =
            response.bytes_stream().map(move |chunk| chunk.map_err(|error| client.transport(&error)));
        Ok(events(chunks))
    }
}

fn events(chunks: impl Stream<Item = Result<bytes::Bytes>>) -> impl Stream<Item = Result<Event>> {
    let mut parser = Parser::default();
    chunks.flat_map(move |chunk| {
        let found = match chunk {
            Err(error) => vec![Err(error)],
            Ok(bytes) => parser.push(&bytes),
        };
        stream::iter(found)
    })
}

/// Bytes in, events out; keeps what is incomplete.
#[derive(Debug, Default)]
struct Parser {
    rest: Vec<u8>,
    event: String,
    data: String,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) -> Vec<Result<Event>> {
        self.rest.extend_from_slice(bytes);
        let mut found = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            found.extend(self.on_line(line.trim_end_matches(['\r', '\n'])));
        }
        if self.rest.len() > LINE_MAX || self.data.len() > LINE_MAX {
            self.rest.clear();
            self.data.clear();
            found.push(Err(unreadable("an event is too long")));
        }
        found
    }

    fn on_line(&mut self, line: &str) -> Option<Result<Event>> {
        if line.is_empty() {
            let (event, data) = (std::mem::take(&mut self.event), std::mem::take(&mut self.data));
            return if data.is_empty() { None } else { read(&event, &data) };
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.event = value.to_owned(),
            "data" if self.data.is_empty() => self.data.push_str(value),
            "data" => {
                self.data.push('\n');
                self.data.push_str(value);
            }
            // Comments keep the line alive; `id` repeats the revision.
            _ => {}
        }
        None
    }
}

/// `None` for kinds of events that this version does not know.
fn read(event: &str, data: &str) -> Option<Result<Event>> {
    let read = match event {
        "progress" => serde_json::from_str(data).map(Event::Progress),
        "event" => serde_json::from_str(data).map(Event::Fact),
        "change" | "" => serde_json::from_str(data).map(Event::Change),
        // The server says why the watch ends.
        "gone" => return Some(Err(unreadable(data))),
        _ => return None,
    };
    Some(read.map_err(|error| unreadable(&error.to_string())))
}

fn unreadable(why: &str) -> Error {
    Error::Unreadable { request: "GET /v1/watch".to_owned(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = ": hello\n\nevent: change\nid: 7\ndata: {\"kind\":\"vm\",\"name\":\"web\",\"revision\":7}\n\n\
                        event: progress\ndata: {\"migration\":\"m1\"}\n\n";

    #[test]
    fn events_are_found_wherever_the_stream_is_cut() {
        let whole: Vec<_> = Parser::default().push(TEXT.as_bytes()).into_iter().map(Result::unwrap).collect();
        assert_eq!(whole.len(), 2);
        assert!(
            matches!(&whole[0], Event::Change(change) if change.revision == 7 && change.object.is_none())
        );
        for cut in 0..TEXT.len() {
            let mut parser = Parser::default();
            let mut parts = parser.push(&TEXT.as_bytes()[..cut]);
            parts.extend(parser.push(&TEXT.as_bytes()[cut..]));
            let parts: Vec<_> = parts.into_iter().map(Result::unwrap).collect();
            assert_eq!(parts, whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_broken_event_is_an_error_and_the_next_one_is_read() {
        let found =
            Parser::default().push(b"data: {\n\ndata: {\"kind\":\"vm\",\"name\":\"a\",\"revision\":1}\n\n");
        assert!(found[0].is_err() && found[1].is_ok());
    }
}
