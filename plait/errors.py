"""Every error that plait raises on purpose, and the exit code that each one means.

PlaitError                 1   something went wrong
├── UserError              2   a user's mistake: one message says what, where, and what would be right
│   ├── RunFileError           in a run file or an override
│   ├── DataError              in a corpus, a tokenizer or a token file
│   ├── CheckpointError        in a run's folder or a checkpoint
│   └── StorageError           in a URL, its credentials, or what they allow
│       └── NotStored              nothing of that name is there
├── StorageFailed          1   a storage system that does not answer, or answers wrongly: worth another try
├── WorkerFailed           1   a worker raised or died; the message names its rank
├── ProofFailed            3   a check ran, and what it checks does not hold
└── Interrupted           75   stopped on request, everything saved: run again to resume
"""


class PlaitError(Exception):
    """The root of plait's errors."""

    exit_code = 1


class UserError(PlaitError, ValueError):
    """A user's mistake, found before any process starts."""

    exit_code = 2


class RunFileError(UserError):
    """A run file, or an override of one, that cannot be trained."""


class DataError(UserError):
    """A corpus, a tokenizer or a token file that cannot be used."""


class CheckpointError(UserError):
    """A run's folder or a checkpoint that does not fit what was asked."""


class StorageError(UserError):
    """A URL that cannot be used: unknown, without its driver, refused, denied; trying again changes nothing."""


class NotStored(StorageError):
    """Nothing of that name is there."""


class StorageFailed(PlaitError):
    """A storage system that does not answer, or answers wrongly; it may do better later."""


class WorkerFailed(PlaitError):
    """A worker raised or died; the message names its rank and shows its traceback."""


class ProofFailed(PlaitError):
    """A check ran to its end, and what it checks does not hold."""

    exit_code = 3


class Interrupted(PlaitError):
    """The run stopped on request with everything saved; the same command resumes it."""

    exit_code = 75
