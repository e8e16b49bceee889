"""`durable-streams` from PyPI as it comes: reads.py URL read|poll|events|write. Prints what it reads, a line of JSON each."""

import json
import sys

from durable_streams import DurableStream, SeqConflictError, StreamExistsError, StreamNotFoundError, stream


def say(what):
    print(json.dumps(what), flush=True)


def read(url):
    with stream(url, live=False) as session:
        for message in session.read_json():
            say(message)


def follow(url, live):
    # The offset is not optional here: the protocol wants one with `live`, and this client sends none by itself.
    with stream(url, offset="-1", live=live) as session:
        for message in session.iter_json():
            say(message)
            if message == "the end":
                return


def write(url):
    handle = DurableStream.create(url, content_type="application/json", ttl_seconds=60)
    handle.append("one", seq="1")
    try:
        handle.append("never", seq="0")
    except SeqConflictError:
        handle.append("two", seq="2")
    try:
        DurableStream.create(url, content_type="text/plain")
    except StreamExistsError:
        say("there already")
    read(url)
    handle.delete()
    try:
        read(url)
    except StreamNotFoundError:
        say("deleted")


url, what = sys.argv[1:]
{
    "read": read,
    "poll": lambda url: follow(url, "long-poll"),
    "events": lambda url: follow(url, "sse"),
    "write": write,
}[what](url)
