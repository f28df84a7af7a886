"""Commands that make one model of another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from plait.cli.app import Device, RunFolder, app, device_named
from plait.errors import UserError


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A model's folder, as transformers' save_pretrained writes it.")],
    out: Annotated[Path, typer.Option(help="The run's folder that is made of it.")],
    context: Annotated[int | None, typer.Option(help="Fewer positions than the model was made for.", min=1)] = None,
) -> None:
    """Take a model over from Hugging Face: config, tensors, tokenizer."""
    from plait.tasks.huggingface.importing import import_model

    taken = import_model(folder, out, context=context)
    print(f"{taken.folder}: {taken.kind}, {taken.parameters:,} parameters, {taken.bytes / 2**20:,.0f} MiB")
    print(taken.next)


@app.command()
def export(
    folder: RunFolder,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to write, for transformers' from_pretrained.")],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    shard_gb: Annotated[float, typer.Option(help="Most gigabytes in one file of tensors.", min=1e-6)] = 5.0,
    adapter: Annotated[bool, typer.Option("--adapter", help="Adapters alone, as PEFT reads them; else they are merged.")] = False,
) -> None:
    """Write the newest checkpoint as a Hugging Face model."""
    from plait.tasks.huggingface.exporting import export_model

    given = export_model(folder, to, dtype=dtype, shard_bytes=int(shard_gb * 1e9), adapter=adapter)
    print(f"{given.folder}: {given.kind} after step {given.step}, {given.bytes / 2**20:,.0f} MiB: {', '.join(given.files)}")


@app.command()
def merge(
    folder: RunFolder,
    out: Annotated[Path, typer.Option(help="Folder of the merged model.")],
) -> None:
    """Merge adapters into the model that they were trained for."""
    from plait.tasks.merge import merge as merge_adapters

    print(merge_adapters(folder, out))


@app.command()
def shrink(
    folder: RunFolder,
    out: Annotated[Path | None, typer.Option(help="Folder of the smaller model.")] = None,
    layers: Annotated[int | None, typer.Option(help="Layers that stay.")] = None,
    decoder_layers: Annotated[int | None, typer.Option(help="t5: of the decoder.")] = None,
    heads: Annotated[int | None, typer.Option(help="Query heads that stay in each layer; their key heads with them.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Neurons that stay in each MLP.")] = None,
    expert_hidden: Annotated[int | None, typer.Option(help="moe: neurons that stay in each expert.")] = None,
    importance: Annotated[str, typer.Option(help="What is chosen by: taylor, gradients of the loss; or magnitude.")] = "taylor",
    sequences: Annotated[int, typer.Option(help="taylor: of the training split.", min=1)] = 64,
    sparsity: Annotated[float | None, typer.Option(help="Share of each matrix that becomes zero.", min=0.0, max=0.999)] = None,
    pattern: Annotated[str, typer.Option(help="Zeros anywhere: free; or two of each four: 2:4.")] = "free",
    rounded: Annotated[str | None, typer.Option("--int8", help="Weights in int8: weights; inputs too: dynamic.")] = None,
    beside: Annotated[list[Path] | None, typer.Option(metavar="DIR", help="More rows of the table; repeat for several.")] = None,
    split: Annotated[str, typer.Option(help="Whose loss the table tells.")] = "validation",
    limit: Annotated[int, typer.Option(help="Sequences of it.", min=1)] = 64,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a line a row.")] = False,
) -> None:
    """Make a trained model smaller, and show size, speed and loss before and after; without a wish, of what is there."""
    from plait.tasks import shrink as shrinking
    from plait.tasks.showing import weighed_table
    from plait.tasks.weighing import weigh

    wanted = {"layers": layers, "decoder_layers": decoder_layers, "heads": heads, "hidden": hidden, "expert_hidden": expert_hidden}
    sizes = {name: size for name, size in wanted.items() if size is not None}
    wish = shrinking.Wish(sizes, importance, sequences, sparsity, pattern, rounded)
    if wish.empty != (out is None):
        raise UserError(
            "--out: says where a smaller model goes; " + ("say what it loses: --heads, --hidden, --int8, ..." if out else "name a folder")
        )
    if out is not None:
        shrinking.shrink(folder, out, wish, device_named(device))
    models = weigh([folder, *([out] if out else []), *(beside or [])], split, limit, device_named(device))
    if as_json:
        print("\n".join(json.dumps(each.as_dict()) for each in models))
    else:
        weighed_table(models)
