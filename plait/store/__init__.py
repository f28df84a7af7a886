"""Storage: one way to keep files, whatever system a URL names.

    home = store.at("s3://bucket/runs/x")            file, memory, s3, gs, hdfs, webhdfs, alluxio, hf, redis, memcached, ...
    home.write("about.json", b"{}")                  whole or not at all: a rename on file systems, one put on object stores
    home.read("about.json")                          b"{}"
    home.read("piece-0", 4096, 8192)                 a range
    home.create("manifest.json", content)            only where nothing stands: True for whoever was first
    home.upload(Path("piece-0"), "step-1/piece-0")   a file, in parts where the system has them
    home.download("step-1/piece-0", Path("piece-0"))
    home.entries("step-1/")                          [Entry(name, bytes, version)], sorted by name, folders walked through
    home.stat("piece-0")                             Entry or None
    home.delete("piece-0")                           what is not there is no matter
    home.url("piece-0")                              for messages: never with a secret in it

Names are relative to the URL, with "/" between their parts; a store makes folders as it needs them.

Errors are plait's: StorageError for what trying again does not mend (unknown scheme, missing driver, refused credentials, missing
bucket, permission denied), NotStored for a name that is not there, StorageFailed for a system that does not answer or answers wrongly.
Each names the URL and what is wrong. No call here tries twice: plait.store.patience does.

A plain path is a URL as well. Endpoints and credentials come from each system's usual places (docs/storage.md), never from the URL.
Drivers are imported when a system is first used; which extra brings one, the error says. A store may be used from several threads, but
not across a fork: open it again there. Nothing here imports torch.
"""

from plait.store.location import Location, is_url, parse
from plait.store.protocol import Entry, Store
from plait.store.systems import at

__all__ = ["Entry", "Location", "Store", "at", "is_url", "parse"]
