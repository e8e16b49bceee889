//! What the scripts answer.

use bytes::Bytes;
use redis::{FromRedisValue, Value};

use super::{connection::Kind, errors::refused, scripts::LAYOUT};
use crate::{
    Error, Gone, Offset,
    engine::{Appended, PageEntry, Reason},
};

/// A list that a script has answered, item by item.
pub(super) struct Reply {
    items: std::vec::IntoIter<Value>,
    kind: Kind,
}

impl Reply {
    pub(super) fn new(value: Value, kind: Kind) -> Result<Self, Error> {
        match value {
            Value::Array(items) => Ok(Self { items: items.into_iter(), kind }),
            _ => Err(strange(kind)),
        }
    }

    pub(super) fn items(self) -> impl Iterator<Item = Value> {
        self.items
    }

    pub(super) fn next(&mut self) -> Result<Value, Error> {
        self.items.next().ok_or_else(|| strange(self.kind))
    }

    pub(super) fn bytes(&mut self) -> Result<Bytes, Error> {
        match self.next()? {
            Value::BulkString(bytes) => Ok(bytes.into()),
            _ => Err(self.strange()),
        }
    }

    pub(super) fn text(&mut self) -> Result<String, Error> {
        String::from_redis_value(self.next()?).map_err(|_| self.strange())
    }

    pub(super) fn number(&mut self) -> Result<u64, Error> {
        self.text()?.parse().map_err(|_| self.strange())
    }

    pub(super) fn maybe_number(&mut self) -> Result<Option<u64>, Error> {
        let text = self.text()?;
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| self.strange()) }
    }

    pub(super) fn flag(&mut self) -> Result<bool, Error> {
        Ok(self.text()? == "1")
    }

    pub(super) fn offset(&mut self) -> Result<Offset, Error> {
        Ok(Offset::new(self.number()?, self.number()?))
    }

    /// That a channel was deleted, and where it ended.
    pub(super) fn gone(&mut self) -> Result<Error, Error> {
        let tail = self.offset()?;
        Ok(Error::Gone(Gone::new(Reason::Deleted, tail, tail)))
    }

    pub(super) fn list(&mut self) -> Result<Vec<Value>, Error> {
        match self.next()? {
            Value::Array(items) => Ok(items),
            _ => Err(self.strange()),
        }
    }

    /// Reads the rest of an answer that begins with a word which all scripts have in common: see `failure` in `helpers.lua`.
    pub(super) fn failure(&mut self, word: &str) -> Error {
        self.parse_failure(word).unwrap_or_else(|unparsable| unparsable)
    }

    fn parse_failure(&mut self, word: &str) -> Result<Error, Error> {
        match word {
            "layout" => Ok(Error::Layout { found: self.number()?, supported: LAYOUT.into() }),
            "failed" => {
                let (text, changed) = (self.text()?, self.flag()?);
                Ok(if changed && self.kind == Kind::Write { Error::Uncertain } else { refused(&text) })
            }
            _ => Err(self.strange()),
        }
    }

    /// The error for an answer that no script gives.
    pub(super) fn strange(&self) -> Error {
        strange(self.kind)
    }
}

/// Whether the script did not make an append, because it would have created a channel whose name was not registered in the index.
pub(super) fn is_unindexed(said: &Value) -> bool {
    matches!(said, Value::Array(items) if matches!(&items[..], [Value::BulkString(word)] if word == b"unindexed"))
}

/// What the script has answered for one append.
pub(super) fn appended(said: Value) -> Result<Appended, Error> {
    // A plain one: where the channel ends now, as Redis writes it.
    if let Value::BulkString(id) = &said {
        let tail = parse_id(id).ok_or_else(|| strange(Kind::Write))?;
        return Ok(Appended { tail, closed: false, accepted: None, duplicate: false });
    }
    let mut said = Reply::new(said, Kind::Write)?;
    Err(match &*said.text()? {
        "done" => {
            let tail = said.offset()?;
            let (closed, duplicate) = (said.flag()?, said.flag()?);
            let accepted = said.maybe_number()?.zip(said.maybe_number()?);
            return Ok(Appended { tail, closed, accepted, duplicate });
        }
        "unknown" => Error::Unknown,
        // Although it was registered just now: the server had stopped meanwhile.
        "unindexed" => Error::Unreachable,
        "deleted" => said.gone()?,
        "closed" => Error::Closed,
        "type" => Error::ContentType { holds: said.text()? },
        "fenced" => Error::Fenced { epoch: said.number()? },
        "gap" => Error::Gap { expected: said.number()?, received: said.number()? },
        "unknown-producer" => Error::UnknownProducer { epoch: said.number()? },
        "epoch" => Error::Epoch,
        "sequence" => Error::Sequence,
        word => said.failure(word),
    })
}

pub(super) fn entry(value: Value) -> Result<PageEntry, Error> {
    let mut said = Reply::new(value, Kind::Read)?;
    Ok(PageEntry {
        fingerprint: said.number()?,
        messages: u32::try_from(said.number()?).map_err(|_| said.strange())?,
        data: said.bytes()?,
    })
}

/// An offset as the scripts answer it where it is all they say.
pub(super) fn parse_id(id: &[u8]) -> Option<Offset> {
    let (at, low) = std::str::from_utf8(id).ok()?.split_once('-')?;
    Some(Offset::new(at.parse().ok()?, low.parse().ok()?))
}

/// The error for an answer that no script gives, so that what answered was not Redis, or another version of it. The script may
/// have run: of a write, nothing is known.
pub(super) fn strange(kind: Kind) -> Error {
    match kind {
        Kind::Read => Error::Engine("the answer is none that this version understands".into()),
        Kind::Write => Error::Uncertain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limit;

    fn list(items: &[&str]) -> Value {
        Value::Array(items.iter().map(|item| Value::BulkString(item.as_bytes().to_vec())).collect())
    }

    #[test]
    fn an_append_is_reported_as_not_made_only_if_the_script_says_that_nothing_was_changed() {
        let engine = |text: &str, changed| appended(list(&["failed", text, changed])).expect_err("it failed");
        assert!(
            matches!(engine("WRONGTYPE Operation", "0"), Error::Engine(text) if text.to_string() == "WRONGTYPE Operation")
        );
        assert!(matches!(engine("OOM command not allowed", "0"), Error::Full(Limit::Memory)));
        assert!(matches!(engine("@user_script: 7: -OOM command not allowed", "0"), Error::Full(Limit::Memory)));
        assert!(matches!(engine("ERR no ROOM left", "0"), Error::Engine(_)));
        assert!(matches!(engine("OOM command not allowed", "1"), Error::Uncertain));
        let layout = appended(list(&["layout", "2"])).expect_err("it failed");
        assert_eq!(layout.to_string(), "the channel's keys in Redis have layout 2, this version reads layout 1");
    }

    #[test]
    fn an_answer_that_no_script_gives_leaves_a_write_uncertain() {
        let strange = [
            Value::Nil,
            Value::Okay,
            Value::Int(1),
            Value::BulkString(b"7".to_vec()),
            list(&[]),
            list(&["hello"]),
            list(&["done", "x"]),
            list(&["failed"]),
            list(&["failed", "OOM"]),
            list(&["layout", "x"]),
        ];
        for value in strange {
            assert!(matches!(appended(value.clone()), Err(Error::Uncertain)), "{value:?}");
        }
        assert!(matches!(Reply::new(Value::Nil, Kind::Write), Err(Error::Uncertain)));
        assert!(matches!(Reply::new(Value::Nil, Kind::Read), Err(Error::Engine(_))));
    }
}
