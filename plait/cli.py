"""The command line. Each command is a few lines around what the same name does in Python."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from plait import __version__, spec
from plait.errors import PlaitError, UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Train language models in parallel.")
data = typer.Typer(no_args_is_help=True, help="Prepare corpora.")
app.add_typer(data, name="data")
alerts = typer.Typer(no_args_is_help=True, help="Who is told when something goes wrong.")
app.add_typer(alerts, name="alerts")
storage = typer.Typer(no_args_is_help=True, help="Look after places where data is kept.")
app.add_typer(storage, name="store")
verify = typer.Typer(no_args_is_help=True, help="Prove plait's promises on this machine.")
app.add_typer(verify, name="verify")

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...", help="Settings laid over the file's.")]
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")]
PreparedData = Annotated[Path, typer.Argument(metavar="PREPARED", help="A folder that plait data prepare printed, or its run file.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@app.callback(invoke_without_command=True)
def _plait(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"plait {__version__}")
        raise typer.Exit


@app.command()
def train(
    run_file: RunFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME of the run file when left out.")] = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Print every setting and stop.")] = False,
) -> None:
    """Train; what is missing is prepared, and what is there is resumed."""
    run = spec.load(run_file, overrides or ())
    if resolved:
        _print_toml(run)
        return
    from plait.cluster import environment
    from plait.tasks import pretrain
    from plait.tasks.showing import PreparingBar, conclusion

    result = pretrain.train(run, out or Path("runs") / run_file.stem, preparing=PreparingBar())
    if environment.leading():
        print(conclusion(result))


@app.command()
def evaluate(
    folder: RunFolder,
    split: Annotated[list[str] | None, typer.Option(help="train, validation or test; repeat for a table.")] = None,
    limit: Annotated[int | None, typer.Option(help="Sequences; all when left out.", min=1)] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Of labels: show simpler ways to tell them beside it.")] = False,
    confusion: Annotated[Path | None, typer.Option(metavar="FILE", help="Of labels: draw what is taken for what, as SVG.")] = None,
    device: Device = "auto",
    beams: Annotated[int, typer.Option(help="Of a translator: texts that are followed at once.", min=1)] = 4,
    length_penalty: Annotated[float, typer.Option(help="Of a translator: 0 prefers short texts, 1 the best mean.")] = 1.0,
    loss_only: Annotated[bool, typer.Option("--loss-only", help="Of a translator: do not translate.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a line a split.")] = False,
) -> None:
    """Measure a trained model: loss, perplexity, accuracy of the next token; of labels F1, of a translator BLEU and chrF too."""
    from plait.tasks import evaluate as evaluating
    from plait.tasks.beam import Beams
    from plait.tasks.showing import print_scores

    splits = split or ["validation"]
    settings = {"limit": limit, "device": _device(device), "beams": Beams(beams, length_penalty), "loss_only": loss_only}
    scores = [evaluating.evaluate(folder, each, **settings) for each in splits]  # type: ignore[arg-type]
    beside = evaluating.baselines_of(folder, splits) if baselines else []
    if confusion is not None:
        evaluating.draw_confusion(scores[-1], confusion)
    print_scores(scores, beside, as_json)


@app.command()
def translate(
    folder: RunFolder,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Lines; standard input, line by line, when left out.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Translate the lines of a text file, compressed or not.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write there what --file gives.")] = None,
    against: Annotated[Path | None, typer.Option(metavar="FILE", help="Right translations of --file: print BLEU and chrF.")] = None,
    pair: Annotated[str | None, typer.Option(help="Of a model of several pairs: the name of the source in the run file.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Read before each line; the pair's when left out.")] = None,
    beams: Annotated[int | None, typer.Option(help="Texts that are followed at once; 4 for an encoder-decoder.", min=1)] = None,
    length_penalty: Annotated[float, typer.Option(help="0 prefers short texts, 1 the best mean.")] = 1.0,
    tokens: Annotated[int, typer.Option(help="Most tokens of a translation.", min=1)] = 200,
    batch: Annotated[int, typer.Option(help="Lines at once.", min=1)] = 16,
    longer: Annotated[str, typer.Option(help="Lines longer than the model has learned: cut, skip or fail.")] = "cut",
    device: Device = "auto",
) -> None:
    """Translate lines with a trained model."""
    from plait.tasks.lines import translate_file, translate_lines
    from plait.tasks.showing import against_table
    from plait.tasks.translate import load_translator

    if longer not in ("cut", "skip", "fail"):
        raise UserError(f"--longer {longer}: is none of cut, skip, fail")
    if file is None and (out is not None or against is not None):
        raise UserError(f"--{'out' if out is not None else 'against'} is for the lines of a --file; name one")
    writing = {"beams": beams, "length_penalty": length_penalty, "tokens": tokens, "batch": batch, "longer": longer}
    translator = load_translator(folder, pair=pair, prefix=prefix, device=_device(device), **writing)  # type: ignore[arg-type]
    if file is None:
        translate_lines(translator, texts or (line.rstrip("\n") for line in sys.stdin))
    elif (scored := translate_file(translator, file, out, against)) is not None:
        against_table(*scored)


@app.command()
def generate(
    folder: RunFolder,
    prompt: Annotated[list[str] | None, typer.Option(help="Text to go on from; repeat for several.")] = None,
    tokens: Annotated[int, typer.Option(help="Most tokens to write.", min=1)] = 200,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Choose among the k likeliest.", min=1)] = None,
    top_p: Annotated[float | None, typer.Option(help="Choose among the likeliest that make up p.", min=0.0, max=1.0)] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; repeat for several.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 0,
    beams: Annotated[int | None, typer.Option(help="t5: texts that are followed at once; 4 when left out.", min=1)] = None,
    length_penalty: Annotated[float | None, typer.Option(help="t5: 0 prefers short texts, 1 the best mean; 1 when left out.")] = None,
    device: Device = "auto",
) -> None:
    """Write text with a trained model, as it comes; with an encoder-decoder the likeliest, by beam search."""
    from plait.tasks.beam import Beams
    from plait.tasks.generate import Sampling
    from plait.tasks.showing import stream, write_by_beams
    from plait.tasks.trained import load

    trained = load(folder, _device(device))
    if trained.run.model.family == "t5" or beams is not None or length_penalty is not None:
        write_by_beams(trained, prompt or [""], Beams(beams or 4, 1.0 if length_penalty is None else length_penalty, tokens))
        return
    among = {"top_k": top_k, "top_p": top_p}
    sampling = Sampling(tokens, temperature, **among, stop=tuple(stop or ()), ends=trained.ends, seed=seed)  # type: ignore[arg-type]
    stream(trained, prompt or [""], sampling)


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
def chat(
    folder: RunFolder,
    system: Annotated[str | None, typer.Option(help="Said before the conversation.")] = None,
    tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 200,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Choose among the k likeliest.", min=1)] = None,
    top_p: Annotated[float | None, typer.Option(help="Choose among the likeliest that make up p.", min=0.0, max=1.0)] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    device: Device = "auto",
) -> None:
    """Talk with a trained model, line by line; also with one that is still being trained."""
    from plait.tasks.chat import Conversation, converse
    from plait.tasks.generate import Sampling
    from plait.tasks.trained import load

    sampling = Sampling(tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    converse(Conversation(load(folder, _device(device)), sampling, system))


@app.command()
def serve(
    folder: RunFolder,
    host: Annotated[str, typer.Option(help="Address to listen at; another than this machine's own needs a secret.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes one that is free.", min=0, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="The model's name; the folder's when left out.")] = None,
    device: Device = "auto",
) -> None:
    """Serve a trained model as OpenAI's completions and chat completions; requests bear PLAIT_SECRET where that is set."""
    from plait.tasks.listening import listen

    listen(folder, host, port, name or folder.resolve().name, _device(device))


@app.command()
def classify(
    folder: RunFolder,
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Standard input, line by line, when left out.")] = None,
    file: Annotated[Path | None, typer.Option("--on", metavar="FILE", help="Lines of text, or JSONL.")] = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a line a text.")] = False,
) -> None:
    """Tell the label of each text and how probable it is; or a number, or the label of each word."""
    from plait.tasks import labelling
    from plait.tasks.trained import load

    for told in labelling.label(load(folder, _device(device)), texts or [], file):
        print(labelling.as_json(told) if as_json else labelling.line(told), flush=True)


@app.command()
def answer(
    folder: RunFolder,
    question: Annotated[str | None, typer.Option(help="A question of your own.")] = None,
    passage: Annotated[str | None, typer.Option(help="What it is about; an encoder's answer is a span of it.")] = None,
    file: Annotated[Path | None, typer.Option("--on", metavar="FILE", help="JSONL or Parquet of questions and answers.")] = None,
    limit: Annotated[int | None, typer.Option(help="Questions; all when left out.", min=1)] = None,
    none: Annotated[
        float | None, typer.Option(help="Spans: no answer where the best is not better by so much; always one when left out.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 64,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write each answer there, as JSONL.")] = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Answer a question, or a file's; exact match and F1, as SQuAD counts them."""
    from dataclasses import asdict

    from plait.tasks.answer import answer as answer_all
    from plait.tasks.answer import reply
    from plait.tasks.showing import answers_table, write_lines
    from plait.tasks.trained import load

    if (question is None) == (file is None):
        raise UserError("give a --question (with its --passage), or questions --on a file")
    if question is not None:
        span = reply(load(folder, _device(device)), question, passage, none=none, tokens=tokens)
        print(json.dumps(asdict(span), ensure_ascii=False) if as_json else span.answer or "(no answer)")
        return
    assert file is not None
    answers = answer_all(folder, file, limit=limit, tokens=tokens, none=none, device=_device(device))
    if out is not None:
        write_lines(out, answers.told)
    if as_json:
        print(json.dumps(answers.as_dict()))
    else:
        answers_table(answers)


@app.command("lm-eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def lm_eval(context: typer.Context) -> None:
    """lm-evaluation-harness, with --model plait --model_args path=DIR; everything else is its own."""
    try:
        from plait.tasks.harness import main as harness
    except ImportError as error:
        raise UserError(f"plait lm-eval needs {error.name}: pip install 'plait[harness]'") from None
    harness(context.args)


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
        shrinking.shrink(folder, out, wish, _device(device))
    models = weigh([folder, *([out] if out else []), *(beside or [])], split, limit, _device(device))
    if as_json:
        print("\n".join(json.dumps(each.as_dict()) for each in models))
    else:
        weighed_table(models)


@app.command()
def status(
    folder: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how a run is doing: its step, its generation, and what each worker does."""
    from plait.cluster import status as now
    from plait.tasks.showing import status_table

    found = now.read(folder)
    if as_json:
        print(json.dumps(found))
    else:
        status_table(found)


@app.command()
def checkpoints(
    folder: RunFolder,
    check: Annotated[bool, typer.Option("--check", help="Read every byte and compare checksums.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List a run's checkpoints, those of its second home too, and say which are damaged; exit code 3 where one is."""
    from plait.errors import ProofFailed
    from plait.tasks.showing import checkpoint_line
    from plait.train.inventory import inventory

    found = []
    for held in inventory(folder, check):
        found.append(held)
        if not as_json:
            print(checkpoint_line(held, check), flush=True)
    if as_json:
        print(json.dumps([held.as_dict() for held in found]))
    if damaged := [held for held in found if held.wrong is not None]:
        raise ProofFailed("" if as_json else f"{folder}: {len(damaged)} of {len(found)} checkpoints are damaged")
    if not as_json and not found:
        print(f"{folder}: no checkpoint has been saved yet")


@app.command()
def doctor(
    folder: Annotated[Path, typer.Option("--out", help="Where runs would be kept.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine has, and what will and will not work here."""
    from dataclasses import asdict

    from plait.cluster.doctor import examine
    from plait.tasks.showing import findings_table

    findings = examine(folder)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        findings_table(findings)


@app.command()
def schema() -> None:
    """Print the run file's JSON Schema, for editors."""
    print(json.dumps(spec.schema(), indent=2))


@data.command("prepare")
def prepare(run_file: RunFile, overrides: Overrides = None) -> None:
    """Make token files of a run's corpus, or find those that were made."""
    from plait.tasks import pretrain
    from plait.tasks.showing import PreparingBar, prepared_lines

    print(prepared_lines(pretrain.prepare(spec.load(run_file, overrides or ()), PreparingBar())))


@data.command("stats")
def data_stats(
    what: PreparedData,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots.")] = None,
) -> None:
    """Show what a prepared corpus holds: lengths, languages, sources, why documents were dropped, token counts."""
    from plait.data import statistics
    from plait.tasks import corpus

    prepared = corpus.opened(what, overrides or ())
    told = statistics.of(prepared)
    if page is not None:
        from plait.proof.report.corpus import write_page

        write_page(prepared, told, page)
    if as_json:
        print(json.dumps(told.as_dict()))
    else:
        corpus.print_statistics(told)


@data.command("explain")
def data_explain(
    what: PreparedData,
    document: Annotated[str, typer.Option(help="16 digits of its hash, FILE:LINE, or its number.")],
    overrides: Overrides = None,
) -> None:
    """Say why a document was kept, changed or dropped: by which rule, with which value."""
    from plait.data.explain import explain
    from plait.tasks import corpus

    print(explain(corpus.opened(what, overrides or ()), document))


@alerts.command("test")
def alerts_test(run_file: RunFile, overrides: Overrides = None) -> None:
    """Send one alert by the command and the webhook of a run file, as a training would."""
    from plait.watch.alerts import rehearse

    run = spec.load(run_file, overrides or ())
    for line in rehearse(run.alerts, Path("runs") / run_file.stem):
        print(line, flush=True)


@storage.command("check")
def check_store(
    url: Annotated[str, typer.Argument(metavar="URL", help="A place to write: s3://bucket/path, hdfs://host/path, ./folder, ...")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write, read, list and delete at a URL, and show what works there and how fast; exit code 1 or 2 where something does not."""
    from plait.store.check import check
    from plait.store.showing import table

    checked = list(check(url))
    if as_json:
        print(json.dumps([each.as_dict() for each in checked]))
    else:
        table(checked)
    if failed := [each.trouble for each in checked if each.state == "failed" and each.trouble is not None]:
        raise failed[0]


@verify.command("layouts")
def verify_layouts(
    run_file: RunFile,
    overrides: Overrides = None,
    layouts: Annotated[list[str] | None, typer.Option(help="tensor=2,pipeline=2; repeat for several. All that fit when left out.")] = None,
    steps: Annotated[int, typer.Option(help="Steps to compare.", min=1)] = 10,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there too.")] = None,
) -> None:
    """Train in one process and under each layout, in fp64, and compare the curves; exit code 3 where one differs."""
    from plait.errors import ProofFailed
    from plait.proof import layouts as proof
    from plait.proof.showing import conclusion, heading, line

    run = spec.load(run_file, overrides or ())
    chosen = [proof.parse_layout(text) for text in layouts] if layouts else None
    print(heading(proof.Tolerance()), flush=True)
    report = proof.verify_layouts(run, chosen, steps, told=lambda compared: print(line(compared), flush=True))
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
    if not report.ok:
        raise ProofFailed(conclusion(report))
    print(conclusion(report))


@verify.command("faults")
def verify_faults(
    run_file: RunFile,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(help="Steps to compare.", min=6)] = 12,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there too.")] = None,
) -> None:
    """Kill workers at each point of a step, hang them, have them fail, and compare with the undisturbed curve, in fp64; exit code 3 where
    a failure is not survived as promised."""
    from plait.errors import ProofFailed
    from plait.proof import faults as proof
    from plait.proof.layouts import Tolerance
    from plait.proof.showing import survived_conclusion, survived_heading, survived_line

    run = spec.load(run_file, overrides or ())
    print(survived_heading(Tolerance()), flush=True)
    report = proof.verify_faults(run, steps, told=lambda each: print(survived_line(each), flush=True))
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
    if not report.ok:
        raise ProofFailed(survived_conclusion(report))
    print(survived_conclusion(report))


@verify.command("soak")
def verify_soak(
    run_file: RunFile,
    overrides: Overrides = None,
    kills: Annotated[int, typer.Option(help="Processes to kill.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Of who is killed, and when.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there too.")] = None,
) -> None:
    """Kill random workers of one run, many times, and compare with the undisturbed curve, in fp64; exit code 3 where it is not survived as
    promised."""
    from plait.errors import ProofFailed
    from plait.proof.showing import soaked_lines, tell_of_kills
    from plait.proof.soak import soak

    soaked = soak(spec.load(run_file, overrides or ()), kills, seed, told=tell_of_kills(kills))
    if json_file is not None:
        json_file.write_text(json.dumps(soaked.as_dict(), indent=1) + "\n", encoding="utf-8")
    if not soaked.ok:
        raise ProofFailed(soaked_lines(soaked))
    print(soaked_lines(soaked))


@verify.command("run")
def verify_run(
    folder: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prove from a run's journal that each sample of each committed step was used exactly once; exit code 3 where one was not."""
    from plait.errors import ProofFailed
    from plait.proof import coverage, showing

    proof = coverage.verify_run(folder)
    if as_json:
        print(json.dumps(proof.as_dict()))
    if not proof.ok:
        raise ProofFailed("" if as_json else f"{folder}: {showing.coverage(proof)}")
    if not as_json:
        print(f"{folder}: {showing.coverage(proof)}")


@app.command()
def compare(
    what: Annotated[
        list[str], typer.Argument(metavar="RUN.toml [section.key=value]... | --runs DIR DIR...", help="A run file; or folders of runs.")
    ],
    out: Annotated[Path, typer.Option(help="The report's folder: compare.html, compare.json, runs/.")],
    runs: Annotated[bool, typer.Option("--runs", help="Compare runs that exist.")] = False,
    sync: Annotated[str, typer.Option(help="Strategies, with commas between.")] = "local_sgd,diloco,synchronous,bounded,asynchronous",
    compress: Annotated[str, typer.Option(help="Codecs for allreduce, or STRATEGY/CODEC, with commas between.")] = "",
    seeds: Annotated[int, typer.Option(help="Trainings of each.", min=1)] = 1,
) -> None:
    """Train under each strategy for the same tokens, or take runs that exist, and report what each costs and does to the loss."""
    from plait.proof import compare as comparing
    from plait.proof import report, telling

    comparing.check_out(out)
    if runs:
        comparison = comparing.compare_runs([Path(folder) for folder in what], telling.tell)
    else:
        run = spec.load(what[0], what[1:])
        names, codecs = ([name for name in text.split(",") if name.strip()] for text in (sync, compress))
        comparison = comparing.compare(run, names, out, compress=codecs, seeds=seeds, told=telling.tell)
    report.write(comparison, out, shlex.join(["plait", *sys.argv[1:]]))
    telling.conclude(comparison)
    print(f"{out / 'compare.html'}")
    comparing.check_ended(comparison)


def main() -> None:
    """Run a command; an error of plait's is one message and an exit code."""
    try:
        app(standalone_mode=True)
    except PlaitError as error:
        if str(error):
            print(f"plait: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(1)


def _print_toml(run: spec.Run) -> None:
    import tomli_w

    print(tomli_w.dumps(run.resolved()), end="")


def _device(name: str) -> spec.Device:
    return spec.Cluster(device=name).device  # type: ignore[arg-type]
