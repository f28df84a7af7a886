"""Places: paths and URLs in a run file, which may hold no secret, since run files are shown, kept and passed on."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile of ~/.aws/credentials",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login",
    "hdfs": "HADOOP_USER_NAME, or a Kerberos ticket (kinit)",
    "webhdfs": "HADOOP_USER_NAME, or HADOOP_TOKEN, a delegation token",
    "alluxio": "ALLUXIO_USER",
    "hf": "HF_TOKEN, or hf auth login",
    "mongodb": "MONGODB_USERNAME and MONGODB_PASSWORD",
    "cassandra": "CASSANDRA_USERNAME and CASSANDRA_PASSWORD, or ~/.cassandra/cqlshrc",
    "redis": "REDIS_USERNAME and REDISCLI_AUTH",
    "rediss": "REDIS_USERNAME and REDISCLI_AUTH",
}
"""Where each storage system's user names, keys and passwords are looked for, by scheme."""

_SECRET = re.compile(r"(pass|secret|token|credential|signature|(^|[-_])key|auth$|sig$)", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY = re.compile(r"[?&]([^=&#\s]+)=([^&#\s]*)")


def redacted(text: str) -> str:
    """A text in which no URL shows a password or a token."""
    text = _USERINFO.sub(lambda found: f"{found[0].split(':')[0]}:***@" if ":" in found[0] else found[0], text)
    return _QUERY.sub(lambda found: found[0][: -len(found[2])] + "***" if found[2] and _SECRET.search(found[1]) else found[0], text)


def without_secret(place: str) -> str:
    """The place, if its URL holds no secret. Raises ValueError, which shows none either."""
    shown = redacted(place)
    if shown == place:
        return place
    where = CREDENTIALS.get(place.partition("://")[0])
    raise ValueError(f"{shown} holds a secret, and run files are shown and kept; it belongs in {where or 'the environment'}")


Place = Annotated[str, AfterValidator(without_secret)]
"""A path or a URL."""
