"""Commands that use what was trained: measure it, have it write, translate, classify, answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from plait.cli.app import Device, RunFolder, app, device_named
from plait.errors import UserError


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
    settings = {"limit": limit, "device": device_named(device), "beams": Beams(beams, length_penalty), "loss_only": loss_only}
    scores = [evaluating.evaluate(folder, each, **settings) for each in splits]  # type: ignore[arg-type]
    beside = evaluating.baselines_of(folder, splits) if baselines else []
    if confusion is not None:
        evaluating.draw_confusion(scores[-1], confusion)
    print_scores(scores, beside, as_json)


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

    trained = load(folder, device_named(device))
    if trained.run.model.family == "t5" or beams is not None or length_penalty is not None:
        write_by_beams(trained, prompt or [""], Beams(beams or 4, 1.0 if length_penalty is None else length_penalty, tokens))
        return
    among = {"top_k": top_k, "top_p": top_p}
    sampling = Sampling(tokens, temperature, **among, stop=tuple(stop or ()), ends=trained.ends, seed=seed)  # type: ignore[arg-type]
    stream(trained, prompt or [""], sampling)


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
    translator = load_translator(folder, pair=pair, prefix=prefix, device=device_named(device), **writing)  # type: ignore[arg-type]
    if file is None:
        translate_lines(translator, texts or (line.rstrip("\n") for line in sys.stdin))
    elif (scored := translate_file(translator, file, out, against)) is not None:
        against_table(*scored)


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

    for told in labelling.label(load(folder, device_named(device)), texts or [], file):
        print(labelling.as_json(told) if as_json else labelling.line(told), flush=True)


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
    converse(Conversation(load(folder, device_named(device)), sampling, system))


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

    listen(folder, host, port, name or folder.resolve().name, device_named(device))


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
        span = reply(load(folder, device_named(device)), question, passage, none=none, tokens=tokens)
        print(json.dumps(asdict(span), ensure_ascii=False) if as_json else span.answer or "(no answer)")
        return
    assert file is not None
    answers = answer_all(folder, file, limit=limit, tokens=tokens, none=none, device=device_named(device))
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
