"""The run file: what one training is, typed and strict.

`load` reads TOML and dotted overrides into a `Run`; `Run` may as well be built in Python. A mistake raises `RunFileError` with
the setting's path, what is wrong and what would be right.
"""

from plait.spec.duration import Duration
from plait.spec.fitting import place_of, stages_of
from plait.spec.reading import load, parse, schema
from plait.spec.sections import (
    Balance,
    BatchStage,
    Checkpoint,
    Cluster,
    Data,
    Device,
    Layout,
    Mixture,
    Model,
    Optimizer,
    Run,
    Schedule,
    Section,
    Source,
    Splits,
    Sync,
    Tokenizer,
    Train,
    Watch,
    flatten,
    shapes_curve,
)

__all__ = [
    "Balance",
    "BatchStage",
    "Checkpoint",
    "Cluster",
    "Data",
    "Device",
    "Duration",
    "Layout",
    "Mixture",
    "Model",
    "Optimizer",
    "Run",
    "Schedule",
    "Section",
    "Source",
    "Splits",
    "Sync",
    "Tokenizer",
    "Train",
    "Watch",
    "flatten",
    "load",
    "parse",
    "place_of",
    "schema",
    "shapes_curve",
    "stages_of",
]
