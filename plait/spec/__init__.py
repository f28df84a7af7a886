"""The run file: what one training is, typed and strict.

`load` reads TOML and dotted overrides into a `Run`; `Run` may as well be built in Python. A mistake raises `RunFileError` with
the setting's path, what is wrong and what would be right.
"""

from plait.spec.duration import Duration
from plait.spec.fitting import place_of, stages_of
from plait.spec.reading import load, parse, schema
from plait.spec.section import Section
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
    Source,
    Splits,
    Tokenizer,
    Train,
    Watch,
    flatten,
    shapes_curve,
)
from plait.spec.sync import Agreement, Link, Phase, Sync
from plait.spec.until import Until

__all__ = [
    "Agreement",
    "Balance",
    "BatchStage",
    "Checkpoint",
    "Cluster",
    "Data",
    "Device",
    "Duration",
    "Layout",
    "Link",
    "Mixture",
    "Model",
    "Optimizer",
    "Phase",
    "Run",
    "Schedule",
    "Section",
    "Source",
    "Splits",
    "Sync",
    "Tokenizer",
    "Train",
    "Until",
    "Watch",
    "flatten",
    "load",
    "parse",
    "place_of",
    "schema",
    "shapes_curve",
    "stages_of",
]
