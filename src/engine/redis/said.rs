//! What the scripts answer.

use bytes::Bytes;
use redis::{FromRedisValue, Value};

use crate::{
    Error, Gone, Limit, Offset,
    engine::{Appended, PageEntry, Reason},
};

/// A list that a script has answered, item by item.
pub(super) struct Said(std::vec::IntoIter<Value>);

impl Said {
    pub(super) fn new(value: Value) -> Result<Self, Error> {
        match value {
            Value::Array(items) => Ok(Self(items.into_iter())),
            _ => Err(strange()),
        }
    }

    pub(super) fn items(self) -> impl Iterator<Item = Value> {
        self.0
    }

    pub(super) fn next(&mut self) -> Result<Value, Error> {
        self.0.next().ok_or_else(strange)
    }

    pub(super) fn bytes(&mut self) -> Result<Bytes, Error> {
        match self.next()? {
            Value::BulkString(bytes) => Ok(bytes.into()),
            _ => Err(strange()),
        }
    }

    pub(super) fn text(&mut self) -> Result<String, Error> {
        String::from_redis_value(self.next()?).map_err(|_| strange())
    }

    pub(super) fn number(&mut self) -> Result<u64, Error> {
        self.text()?.parse().map_err(|_| strange())
    }

    pub(super) fn maybe_number(&mut self) -> Result<Option<u64>, Error> {
        let text = self.text()?;
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| strange()) }
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
            _ => Err(strange()),
        }
    }
}

/// What the script has answered for one append.
pub(super) fn appended(said: Value) -> Result<Appended, Error> {
    // A plain one: where the channel ends now, as Redis writes it.
    if let Value::BulkString(id) = &said {
        let tail = parse_id(id).ok_or_else(strange)?;
        return Ok(Appended { tail, closed: false, accepted: None, duplicate: false });
    }
    let mut said = Said::new(said)?;
    Err(match &*said.text()? {
        "done" => {
            let tail = said.offset()?;
            let (closed, duplicate) = (said.flag()?, said.flag()?);
            let accepted = said.maybe_number()?.zip(said.maybe_number()?);
            return Ok(Appended { tail, closed, accepted, duplicate });
        }
        "unknown" => Error::Unknown,
        "deleted" => said.gone()?,
        "closed" => Error::Closed,
        "type" => Error::ContentType { holds: said.text()? },
        "fenced" => Error::Fenced { epoch: said.number()? },
        "gap" => Error::Gap { expected: said.number()?, received: said.number()? },
        "epoch" => Error::Epoch,
        "sequence" => Error::Sequence,
        // Redis has refused this one, and not those that went with it.
        "failed" if said.text()?.contains("OOM") => Error::Full(Limit::History),
        _ => strange(),
    })
}

pub(super) fn entry(value: Value) -> Result<PageEntry, Error> {
    let mut said = Said::new(value)?;
    Ok(PageEntry {
        fingerprint: said.number()?,
        messages: u32::try_from(said.number()?).map_err(|_| strange())?,
        data: said.bytes()?,
    })
}

/// An offset as the scripts answer it where it is all they say.
pub(super) fn parse_id(id: &[u8]) -> Option<Offset> {
    let (at, low) = std::str::from_utf8(id).ok()?.split_once('-')?;
    Some(Offset::new(at.parse().ok()?, low.parse().ok()?))
}

/// An answer that no script of ours gives: somebody else writes to these keys.
pub(super) fn strange() -> Error {
    Error::Unreachable
}
