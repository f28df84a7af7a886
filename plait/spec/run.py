"""The run: its sections, what they exclude in one another, and what of them shapes the curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator

from plait.spec.cluster import Cluster
from plait.spec.data import Data
from plait.spec.elastic import Balance, Elastic
from plait.spec.finetune import Finetune
from plait.spec.keeping import Checkpoint
from plait.spec.layout import Layout
from plait.spec.model import Model
from plait.spec.prune import Prune
from plait.spec.section import Section
from plait.spec.sync import Agreement, Sync
from plait.spec.train import Train
from plait.spec.watching import Alerts, Watch


class Run(Section):
    """One training. The sections are the tables of the run file."""

    model: Model = Model()
    data: Data
    train: Train
    finetune: Finetune | None = None
    prune: Prune | None = None
    layout: Layout = Layout()
    sync: Sync = Sync()
    balance: Balance = Balance()
    elastic: Elastic = Elastic()
    checkpoint: Checkpoint = Checkpoint()
    alerts: Alerts = Alerts()
    watch: Watch = Watch()
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _agree(self) -> Self:
        capacity = self.balance.stated
        if capacity is not None and len(capacity) != self.layout.replicas:
            raise ValueError(f"balance.capacity names {len(capacity)} replicas and layout.replicas = {self.layout.replicas}")
        if not self.layout.auto and not self.fewest_replicas <= self.layout.replicas <= self.most_replicas:
            raise ValueError(
                f"elastic.replicas = {self.elastic.replicas} is [fewest, most], and layout.replicas = {self.layout.replicas}, which a run "
                "begins with, is not between them"
            )
        if self.layout.auto and (capacity is not None or self.sync.strategy != "allreduce"):
            raise ValueError('layout.auto is for sync.strategy = "allreduce" without balance.capacity so far; write the layout')
        if self.layout.pipeline > 1 and self.train.micro_batch == "auto":
            raise ValueError('train.micro_batch = "auto" measures whole models; write a number with layout.pipeline')
        if self.layout.pipeline > 1 and self.layout.schedule == "zero_bubble" and (whole := self._backward_in_one_piece()):
            raise ValueError(
                f'layout.schedule = "zero_bubble" computes gradients of weights after those of inputs, and {whole} has both come at once; '
                'use layout.schedule = "interleaved"'
            )
        return self

    @model_validator(mode="after")
    def _learnable(self) -> Self:
        """A family learns what it can tell; one's own model what one likes."""
        if self.model.family in Model.FAMILIES and self.settled:
            kinds, kind = self.model.objectives, self.data.objective.kind
            if kind not in kinds:
                others = "".join(f' or "{other}"' for other in kinds[1:])
                raise ValueError(
                    f'model.family = "{self.model.family}" and data.objective.kind = "{kind}": this family learns by "{kinds[0]}"{others}; '
                    f'write data.objective = {{ kind = "{kinds[0]}" }}'
                )
            if kind == "translate" and self.model.causal and self.data.chat is None:
                raise ValueError(
                    f'model.family = "{self.model.family}" translates in conversations, and data.objective.kind = "translate" has none; '
                    'write [data.chat], or use an encoder-decoder, family = "t5"'
                )
            if self.model.family == "t5" and self.data.chat is not None:
                raise ValueError('data.chat is for decoders, and model.family = "t5" reads a source by itself; leave data.chat out')
        return self

    @model_validator(mode="after")
    def _translated(self) -> Self:
        """Sentences are translated amid training by an encoder-decoder."""
        if self.train.evaluate_translations is None or not self.settled:
            return self
        if not self.data.translates or self.model.causal or self.train.evaluate_every is None:
            raise ValueError(
                'train.evaluate_translations is of an encoder-decoder with data.objective.kind = "translate", at each '
                "train.evaluate_every; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _headed(self) -> Self:
        """What a head excludes."""
        kind, head = self.data.objective.kind, self.data.objective.head
        if head is not None and self.settled and ":" in self.model.family:
            raise ValueError(f'data.objective.kind = "{kind}" is for model.family = "bert"; a model of your own tells tokens')
        if self.model.pooling is not None and self.settled and (head is None or not head.pooled):
            raise ValueError(
                f'model.pooling = "{self.model.pooling}" is for data.objective.kind = "classify" or "regress", and it is "{kind}"; '
                "leave pooling out"
            )
        if kind in ("regress", "answer") and self.train.loss != "cross_entropy":
            raise ValueError(f'train.loss = "{self.train.loss}" is for labels, and data.objective.kind = "{kind}" has none; leave loss out')
        if kind in ("regress", "answer") and self.train.label_smoothing:
            raise ValueError(f'train.label_smoothing is for labels, and data.objective.kind = "{kind}" has none; leave it out')
        if self.data.objective.weights is not None and self.train.loss != "cross_entropy":
            raise ValueError(f'data.objective.weights are for train.loss = "cross_entropy", and it is "{self.train.loss}"; leave one out')
        if kind == "answer" and self.layout.context > 1:
            raise ValueError(
                f'layout.context = {self.layout.context} cuts samples by positions, of which data.objective.kind = "answer" chooses among '
                "all; leave layout.context out"
            )
        return self

    @model_validator(mode="after")
    def _sided(self) -> Self:
        """What an encoder-decoder, whose rows are a source and a target, cannot do."""
        kind = self.data.objective.kind
        if self.data.document_mask and self.data.chat is None and kind in ("span", "translate"):
            what = "spans are told of all of a sample" if kind == "span" else "pairs never see each other"
            raise ValueError(f'data.document_mask = true and data.objective.kind = "{kind}": {what}; leave one out')
        twice = self.layout.pipeline > 1 and self.layout.schedule in ("interleaved", "zero_bubble")
        if self.model.family == "t5" and twice and self.layout.offload:
            raise ValueError(
                f'layout.schedule = "{self.layout.schedule}" has two stages on a rank, and with model.family = "t5" both compute with its '
                'distances, which layout.offload would leave on the host; use schedule = "1f1b", or leave offload out'
            )
        return self

    @model_validator(mode="after")
    def _agreeable(self) -> Self:
        for agreement in self.sync.agreements:
            self._check_agreement(agreement)
        spike = next((name for name in ("spike", "spike_norm") if getattr(self.train, name) is not None), None)
        if spike and all(agreement.unit == "piece" for agreement in self.sync.agreements):
            raise ValueError(
                f'train.{spike} judges the loss of a global batch, and sync.update = "{self.sync.update}" has none that is computed '
                f'from the same parameters; use update = "synchronous", or leave {spike} out'
            )
        if self.elastic.check_every is not None and all(agreement.strategy == "server" for agreement in self.sync.agreements):
            raise ValueError(
                'elastic.check_every compares the state of replicas, and sync.strategy = "server" keeps it once, on the servers; leave '
                "check_every out"
            )
        if self.sync.serves and self.train.micro_batch == "auto":
            raise ValueError(
                'train.micro_batch = "auto" is for shares of a batch, and sync.strategy = "server" leases micro-batches; write a number'
            )
        if self.balance.capacity is not None and all(agreement.strategy == "server" for agreement in self.sync.agreements):
            raise ValueError(
                'balance.capacity is for shares of a batch, and sync.strategy = "server" leases pieces to whoever is ready; leave it out'
            )
        if self.balance.measures and (why := self._shares_shape_the_curve()):
            raise ValueError(f"{self.balance.told} has shares follow speeds, and {why}")
        return self

    @model_validator(mode="after")
    def _prunable(self) -> Self:
        if self.prune is None:
            return self
        if self.adapted:
            raise ValueError("prune makes weights zero that finetune.lora leaves as they are; leave one of the two out")
        other = next((agreement.strategy for agreement in self.sync.agreements if agreement.strategy != "allreduce"), None)
        if other:
            raise ValueError(
                f'prune chooses weights that all replicas hold alike after each step, and sync.strategy = "{other}" has no such; '
                'use sync.strategy = "allreduce"'
            )
        return self

    def _shares_shape_the_curve(self) -> str | None:
        """Why, where they do in every phase."""
        modes = [agreement.mode for agreement in self.sync.agreements]
        if "allreduce" in modes or ("synchronous" in modes and self.balance.policy != "static"):
            return None
        first = self.sync.agreements[0]
        if first.unit == "round":
            return (
                f'sync.strategy = "{first.strategy}" has each replica take steps of its own on its share, which shapes the curve; state '
                "balance.capacity"
            )
        return (
            f'sync.update = "{first.mode}" leases pieces to whoever is ready, so that who is quicker takes more of them anyway; '
            "leave it out"
        )

    def _check_agreement(self, agreement: Agreement) -> None:
        replicas, optimizer = self.layout.replicas, self.train.optimizer.name
        if self.model.family == "moe" and self.model.mixture.balance == "bias" and agreement.mode != "allreduce":
            raise ValueError(
                f'model.balance = "bias" follows the load of a whole global batch, which "{agreement.mode}" does not gather; '
                'use model.balance = "auxiliary"'
            )
        if self.train.optimizer.state == "int8" and agreement.strategy != "allreduce":
            raise ValueError(
                f'train.optimizer.state = "int8" is for sync.strategy = "allreduce": "{agreement.strategy}" averages or hands on states as '
                "floats; leave state out"
            )
        if agreement.mode == "bounded" and agreement.staleness is not None and agreement.staleness < replicas - 1:
            raise ValueError(
                f"sync.staleness = {agreement.staleness} lets {agreement.staleness + 1} replicas work at once, and "
                f"layout.replicas = {replicas}; use staleness = {replicas - 1} or more"
            )
        if agreement.strategy == "server" and optimizer == "muon" and self.layout.ranks > 1:
            raise ValueError(
                'train.optimizer.name = "muon" needs whole matrices, and sync.strategy = "server" holds what each rank of a replica does; '
                'use "adamw", or replicas of one rank'
            )
        if agreement.strategy in ("local_sgd", "diloco") and self.balance.stated is not None and 0 in self.balance.stated:
            raise ValueError(
                f'balance.capacity gives a replica nothing, and sync.strategy = "{agreement.strategy}" has each take steps of its own'
            )

    def _backward_in_one_piece(self) -> str | None:
        """The setting that makes it so: a program, or a block that is computed again, and would be for each of its weights."""
        if self.train.compile:
            return "train.compile = true"
        return None if self.model.recompute == "none" else f'model.recompute = "{self.model.recompute}"'

    @property
    def fewest_replicas(self) -> int:
        """Replicas without which the run waits."""
        return self.elastic.replicas[0] if self.elastic.replicas else 1

    @property
    def most_replicas(self) -> int:
        """Replicas that the run grows to."""
        return self.elastic.replicas[1] if self.elastic.replicas else self.layout.replicas

    @property
    def settled(self) -> bool:
        """Whether all is known: the model of a run that goes on from another is known when that one has been looked at."""
        return self.finetune is None or self.finetune.checksum is not None

    @property
    def adapted(self) -> bool:
        """Whether adapters are trained, and the rest of the model stands in the base alone."""
        return self.finetune is not None and self.finetune.lora is not None

    def rate_factor(self, path: str) -> float:
        """What the learning rate is multiplied by for the parameter of this path."""
        return 1.0 if self.finetune is None else self.finetune.rate(path, self.model.layers)

    def resolved(self) -> dict[str, Any]:
        """Every setting with its value, as plain data that TOML and JSON can hold; unset ones are left out. So is what a base will tell."""
        table = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        if not self.settled:
            table["model"] = {name: table["model"][name] for name in table["model"] if name in self.model.model_fields_set}
            table["data"] = {name: table["data"][name] for name in table["data"] if name in self.data.model_fields_set | _OWN_DATA}
        return table

    def identity(self) -> dict[str, Any]:
        """The settings that shape the curve, dotted: a run resumes only where these are equal.

        Layout, cluster, checkpoints and what is merely watched may change between starts.
        """
        return {key: value for key, value in flatten(self.resolved()).items() if shapes_curve(key)}


_FREE = {
    "model.recompute",
    "model.recompute_layers",
    "data.backup",
    "data.cache",
    "data.cache.folder",
    "data.cache.gib",
    "data.cache.tier",
    "data.compress",
    "data.fetched_gib",
    "data.prepared",
    "data.workers",
    "finetune.from",
    "train.micro_batch",
    "train.evaluate_every",
    "train.evaluate_sequences",
    "train.evaluate_translations",
    "train.log_every",
    "train.spike",
    "train.spike_norm",
    "train.spike_skips",
    "train.spike_limit",
    "train.compile",
    "sync.bucket_mib",
    "sync.servers",
    "sync.link.latency",
    "sync.link.bandwidth",
}


_OWN_DATA = set(Data.model_fields) - {"tokenizer", "sequence"}
"""Settings of [data] that no base tells."""


def shapes_curve(setting: str) -> bool:
    """Whether a run resumes only with the same value of a dotted setting."""
    return setting.startswith(("model.", "data.", "train.", "finetune.", "prune.", "sync.")) and setting not in _FREE


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
