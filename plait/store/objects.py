"""Object stores through fsspec's kept implementations: S3, Google Cloud Storage, Alluxio's S3 proxy, the Hugging Face hub.

An object appears whole: by one put, or by the last request of an upload in parts. `create` is a put on the condition that nothing
stands there. Listings are asked for each time, never remembered.
"""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plait.errors import StorageError
from plait.store import trouble
from plait.store.location import Location
from plait.store.protocol import Entry, Store

CONNECT_SECONDS = 10
READ_SECONDS = 60
_ALLUXIO_PORT = 39999


class ObjectStore(Store):
    """A prefix in a bucket."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        if not location.host:
            raise StorageError(f"{location.url}: names no bucket; write {location.scheme}://BUCKET/PATH")
        self._files = self._opened()

    @abstractmethod
    def _opened(self) -> Any:
        """fsspec's file system."""

    def _read(self, name: str, first: int, end: int | None) -> bytes:
        try:
            content: bytes = self._files.cat_file(self._path(name), start=first, end=end)  # a start: else the size is asked for first
        except Exception as error:
            if _code(error) in _BEHIND_THE_END:
                return b""
            raise
        return content

    def _write(self, name: str, content: bytes) -> None:
        self._files.pipe_file(self._path(name), content)

    def _create(self, name: str, content: bytes) -> bool:
        try:
            self._files.pipe_file(self._path(name), content, mode="create")
        except FileExistsError:
            return False
        return True

    def _upload(self, path: Path, name: str) -> None:
        self._files.put_file(str(path), self._path(name))

    def _stat(self, name: str) -> Entry | None:
        try:
            about = self._files.info(self._path(name))
        except FileNotFoundError:
            return None
        return _entry(name, about) if about["type"] == "file" else None

    def _list(self, prefix: str) -> Iterator[Entry]:
        folder = self._path(prefix.rpartition("/")[0])
        root = self._path("").rstrip("/") + "/"
        for path, about in self._files.find(folder, detail=True).items():
            if path.startswith(root):
                yield _entry(path.removeprefix(root), about)

    def _delete(self, name: str) -> None:
        self._files.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self.location.host}/{self.location.inside(name)}"


class S3Store(ObjectStore):
    """Amazon's S3 and what speaks its language: AWS_ENDPOINT_URL or ~/.aws/config names another endpoint.

    Contents are read by botocore, on which s3fs stands: in threads of who reads, where s3fs has one loop for all of a process.
    """

    def _opened(self) -> Any:
        return self._s3()

    def _s3(self, endpoint: str | None = None, key: str | None = None, secret: str | None = None) -> Any:
        import botocore.session
        import s3fs
        from botocore.config import Config

        waiting = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS, "retries": {"max_attempts": 1}}
        known = {"endpoint_url": endpoint, "key": key, "secret": secret}
        files = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True, config_kwargs=waiting, **known)
        files.retries = 1  # plait.store.patience tries again, and says so
        session, who = botocore.session.get_session(), {"aws_access_key_id": key, "aws_secret_access_key": secret}
        self._client = session.create_client("s3", endpoint_url=endpoint, config=Config(**waiting), **who)
        return files

    def _read(self, name: str, first: int, end: int | None) -> bytes:
        bucket, _, key = self._path(name).partition("/")
        part = {"Range": f"bytes={first}-{'' if end is None else end - 1}"} if first or end is not None else {}
        try:
            content: bytes = self._client.get_object(Bucket=bucket, Key=key, **part)["Body"].read()
        except Exception as error:
            if _code(error) in _BEHIND_THE_END:
                return b""
            raise
        return content

    def _create(self, name: str, content: bytes) -> bool:
        try:
            return super()._create(name, content)
        except OSError as error:
            if _code(error) in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                return False
            raise

    def _kind(self, error: Exception) -> trouble.Kind | None:
        return _S3_KINDS.get(_code(error)) or _S3_KINDS.get(type(error).__name__)


class AlluxioStore(S3Store):
    """Alluxio by its proxy's S3 door: alluxio://HOST[:39999]/folder/path. A FUSE mount is a path like any other.

    The proxy takes a user's name for a key, and puts without a condition: `create` looks first, and two at once may both be told True.
    """

    conditional = False

    def _opened(self) -> Any:
        endpoint = f"http://{self.location.host}:{self.location.port or _ALLUXIO_PORT}/api/v1/s3"
        return self._s3(endpoint, key=os.environ.get("ALLUXIO_USER") or os.environ.get("USER") or "plait", secret="-")

    def _create(self, name: str, content: bytes) -> bool:
        if self._stat(name) is not None:
            return False
        self._write(name, content)
        return True

    def _path(self, name: str) -> str:
        return self.location.inside(name)


class GoogleStore(ObjectStore):
    """Google Cloud Storage; STORAGE_EMULATOR_HOST names an emulator."""

    def _opened(self) -> Any:
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else it asks Google what kind of bucket this is
        import gcsfs

        logging.getLogger("gcsfs").addHandler(logging.NullHandler())  # it logs what it raises as well
        emulated = os.environ.get("STORAGE_EMULATOR_HOST")
        return gcsfs.GCSFileSystem(token="anon" if emulated else None, use_listings_cache=False, skip_instance_cache=True)

    def _kind(self, error: Exception) -> trouble.Kind | None:
        text = str(error)
        if text.startswith("Forbidden"):
            return "denied"
        if _code(error) == "401" or type(error).__name__ in ("DefaultCredentialsError", "RefreshError"):
            return "refused"
        return None


class HubStore(ObjectStore):
    """Hugging Face datasets and models: hf://datasets/OWNER/NAME[@REVISION]/path. Read here, written by the hub's own tools."""

    def _opened(self) -> Any:
        from huggingface_hub import HfFileSystem

        return HfFileSystem(endpoint=os.environ.get("HF_ENDPOINT"), skip_instance_cache=True)

    def _write(self, name: str, content: bytes) -> None:
        raise StorageError(f"{self.url(name)}: the hub is read here, not written; use hf upload")

    def _create(self, name: str, content: bytes) -> bool:
        raise StorageError(f"{self.url(name)}: the hub is read here, not written; use hf upload")

    def _upload(self, path: Path, name: str) -> None:
        self._write(name, b"")

    def _delete(self, name: str) -> None:
        self._write(name, b"")

    def _kind(self, error: Exception) -> trouble.Kind | None:
        """Its client tells of a repository that is not there as of a file, with the reason behind."""
        named = {type(error).__name__, type(error.__cause__).__name__}
        if "GatedRepoError" in named:
            return "denied"
        if named & {"RepositoryNotFoundError", "RevisionNotFoundError"}:
            return "no container"
        status = getattr(getattr(error, "response", None), "status_code", None)
        return {401: "refused", 403: "denied"}.get(status)  # type: ignore[return-value, arg-type]


def _entry(name: str, about: dict[str, Any]) -> Entry:
    version = about.get("ETag") or about.get("etag") or about.get("blob_id")
    return Entry(name, int(about["size"] or 0), None if version is None else str(version).strip('"'))


_S3_KINDS: dict[str, trouble.Kind] = {
    "NoSuchBucket": "no container",
    "NoSuchKey": "missing",
    "AccessDenied": "denied",
    "403": "denied",
    "InvalidAccessKeyId": "refused",
    "SignatureDoesNotMatch": "refused",
    "ExpiredToken": "refused",
    "InvalidToken": "refused",
    "TokenRefreshRequired": "refused",
    "NoCredentialsError": "refused",
    "PartialCredentialsError": "refused",
    "ProfileNotFound": "unfit",
    "InvalidBucketName": "unfit",
    "ParamValidationError": "unfit",
    "AuthorizationHeaderMalformed": "unfit",
}


_BEHIND_THE_END = ("InvalidRange", "416")


def _code(error: BaseException | None) -> str:
    """The code that a server answered with: of S3, wherever s3fs has put botocore's error; of Google, in gcsfs's."""
    while error is not None:
        answer = getattr(error, "response", None)
        if isinstance(answer, dict):
            return str(answer.get("Error", {}).get("Code", ""))
        if (code := getattr(error, "code", None)) is not None:
            return str(code)
        error = error.__cause__ or error.__context__
    return ""
