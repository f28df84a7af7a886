"""The run file: what one training is, typed and strict.

`load` reads TOML and dotted overrides into a `Run`; `Run` may as well be built in Python. A mistake raises `RunFileError` with
the setting's path, what is wrong and what would be right.
"""

from plait.spec.augment import Augment
from plait.spec.cache import Cache
from plait.spec.clean import Clean, Limits
from plait.spec.cluster import Cluster, Device
from plait.spec.data import Chat, Data, Source, Tokenizer
from plait.spec.duration import Duration
from plait.spec.elastic import Balance
from plait.spec.finetune import OF_HEADS, Finetune, Lora, some_paths
from plait.spec.fitting import place_of, stages_of
from plait.spec.keeping import Checkpoint
from plait.spec.layout import Layout
from plait.spec.model import Mixture, Model, RopeScaling
from plait.spec.objective import Head, Objective
from plait.spec.prune import Prune
from plait.spec.reading import load, parse, schema
from plait.spec.run import Run, flatten, shapes_curve
from plait.spec.section import Section
from plait.spec.split import Splits
from plait.spec.sync import Agreement, Link, Phase, Sync
from plait.spec.train import BatchStage, Optimizer, Schedule, Train
from plait.spec.until import Until
from plait.spec.watching import AlertKind, Alerts, Watch, check_webhook, masked_url

__all__ = [
    "OF_HEADS",
    "Agreement",
    "AlertKind",
    "Alerts",
    "Augment",
    "Balance",
    "BatchStage",
    "Cache",
    "Chat",
    "Checkpoint",
    "Clean",
    "Cluster",
    "Data",
    "Device",
    "Duration",
    "Finetune",
    "Head",
    "Layout",
    "Limits",
    "Link",
    "Lora",
    "Mixture",
    "Model",
    "Objective",
    "Optimizer",
    "Phase",
    "Prune",
    "RopeScaling",
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
    "check_webhook",
    "flatten",
    "load",
    "masked_url",
    "parse",
    "place_of",
    "schema",
    "shapes_curve",
    "some_paths",
    "stages_of",
]
