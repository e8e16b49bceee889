-- What all scripts begin with. A channel is two keys: `…:channel`, a hash that says what it is, and `…:log`, a stream of its
-- appends, whose ids are `<position>-<fingerprint>`. An offset is such an id, so it proves by itself which append it is.
-- One that was forked has a third, `…:forks`, a sorted set of the forks (see `helpers.lua`); `…:was` is what a deleted one leaves.
--
-- The hash has `type`, and in one field each what seldom changes, `is`, and what every append changes, `at`: a field costs as much as
-- a number of numbers in it. Beside them are the last `Stream-Seq`, the producers, the ids of the last
-- broadcasts, and where a fork comes from. `forgot` exists if the channel may have forgotten a producer. A version without this field
-- ignores it, and refuses an unknown producer with a gap, so the field has not changed the layout's number.
--
-- A fingerprint is below 2^53, so that Lua can count with it: 21 bits that all appends of a log share, and 32 of its own.
--
-- The limits precede this as constants, which cost nothing: `APPENDS`, `BYTES`, `AGE` (0 for any), `LINGER`, `PRODUCERS`, `INLINE`,
-- the bytes that a publication carries, `READ`, the appends that a read returns, `REGISTERED`, and `LAYOUT`, the number of this layout.

-- The field `at`: the layout; whether the short script may make a plain append (`j` or `b` for its content, or `-`); the log's
-- tag; the positions of its tail and of its floor, their fingerprints, the bytes appended up to each; when the first append
-- was made, and when the expiry of the keys was last set. Positions have no gaps, so they count.
--
-- Every layout stores a hash at `…:channel` whose field `at` begins with a byte that is the layout's number, from 1 to 31. A
-- script checks it before it unpacks anything else, and changes nothing of a channel of another layout. The field stays below 64
-- bytes: up to that, Redis stores a small hash compactly.
local AT = '<Bc1I3I6I6I7I7I6I6I6I6'
local AT_SIZE = 55

-- Beside an append's data: its messages, when it was made, how many bytes were ever appended up to its end.
local ONE = '<I4I6I6'
local ONE_SIZE = 16

-- What is published of an append, after a `+` and before its data: its position and fingerprint, the fingerprint that it follows,
-- its messages, whether it closes (1) and whether the data is there (2).
local HEARD = '<I6I7I7I4B'

-- What an append is asked for with: its kind if it is plain (`j`, `b`, or `-`), messages, own part of the fingerprint, and the
-- length of the type that was said, which follows, and is followed by what only the long script looks at.
local WISH = '<c1I4I4I4'

-- How long it may be until the expiry is set again.
local SPARE = AGE > 0 and math.ceil(AGE / 8) or math.huge
local OLD = AGE > 0 and AGE or math.huge
