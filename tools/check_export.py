#!/usr/bin/env python3
"""Checks exports of qtrain against transformers, and imports of what transformers made.

    check_export.py --build build/ci RUN [RUN ...] [--text FILE] [--work DIR] [--new 64]

For each run folder: exports in f32 and bf16, packed and master, are loaded by transformers, which computes in f32.
Logits must equal, to 1e-5, what qtrain computes in f32 from the same folder, and, where the run was trained in f32
and the export is f32, those of the run itself. Where either is bf16, weights or activations were rounded: to 1e-2
of the largest logit. The continuation by the likeliest token must be the same (f32), and AutoTokenizer's ids of
FILE. What --init-from makes of the export must give the same bytes when it is exported again.
Then folders that transformers makes of random weights, nanochat and GPT-2, are read by qtrain: the same logits.
Prints one line per check; exits 1 when one fails. Needs torch, transformers 5 and safetensors.
"""

import argparse
import filecmp
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file

PROMPT_TOKENS = 24
failures = []


def report(what, ok, detail):
    print(f"{'ok  ' if ok else 'FAIL'}  {what:<58} {detail}")
    if not ok:
        failures.append(what)


class Programs:
    def __init__(self, build, work):
        self.qtrain, self.dump, self.work = build / "qtrain", build / "tests" / "logits_dump", work

    def run(self, *args):
        done = subprocess.run([str(a) for a in args], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, args))}\n{done.stdout}{done.stderr}")
        return done.stdout

    def say(self, ids, new, text, *options):
        """logits, greedy continuation and ids of the text, by qtrain."""
        out = self.work / "said.safetensors"
        self.run(self.dump, out, ",".join(map(str, ids)), new, text or "-", *options)
        return load_file(out)


def load(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


@torch.no_grad()
def continued(model, ids, new):
    ids = list(ids)
    for _ in range(new):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-new:]


@torch.no_grad()
def compare_logits(what, model, said, ids, rounded=False):
    theirs = model(torch.tensor([ids])).logits[0]
    off, most = (theirs - said["logits"]).abs().max().item(), theirs.abs().max().item()
    bound = 1e-2 * most if rounded else 1e-5
    report(f"{what}: logits", off <= bound,
           f"largest difference {off:.2e}, bound {bound:.1e}, largest logit {most:.2f}")


def same_folders(a, b):
    names = sorted(p.name for p in a.iterdir())
    if names != sorted(p.name for p in b.iterdir()):
        return False, "other files"
    different = [n for n in names if not filecmp.cmp(a / n, b / n, shallow=False)]
    return not different, ", ".join(different) or f"{len(names)} files"


def check_run(programs, run, text, new):
    name, work = run.name, programs.work
    config = None
    newest = max(run.glob("step-*"))
    trained_in = json.loads((newest / "run.json").read_text())["options"]["dtype"]
    for weights in ("packed", "master"):
        for form in ("f32", "bf16"):
            folder = work / f"{name}-{weights}-{form}"
            programs.run(programs.qtrain, "export", "--out", run, "--to", folder, "--format", form,
                         "--weights", weights)
            config = transformers.AutoConfig.from_pretrained(folder)
            ids = [(7 * i * i + 3) % config.vocab_size for i in range(PROMPT_TOKENS)]
            what = f"{name}: {weights}, {form}"
            model = load(folder)
            read = programs.say(ids, new, None, "--init-from", folder, "--dtype", "f32")
            compare_logits(f"{what}, read by qtrain", model, read, ids)
            if weights == "packed":
                said = programs.say(ids, new, None, "--out", run)
                compare_logits(what, model, said, ids, rounded=form == "bf16" or trained_in != "f32")
            if form == "f32":
                ours = (said if weights == "packed" and trained_in == "f32" else read)["greedy"].tolist()
                theirs = continued(model, ids, new)
                report(f"{what}: {new} likeliest tokens", theirs == ours, f"{len(set(theirs))} different ones")
    if text:
        tokenizer = transformers.AutoTokenizer.from_pretrained(work / f"{name}-packed-f32")
        content = pathlib.Path(text).read_bytes().decode()  # line ends as they are
        theirs = tokenizer(content, add_special_tokens=False)["input_ids"]
        ours = programs.say(ids, 0, text, "--out", run)["text"].tolist()
        report(f"{name}: ids of the text", theirs == ours, f"{len(ours)} of {len(content.encode())} bytes")
        report(f"{name}: text of the ids", tokenizer.decode(theirs) == content, "decode gives the text back")
        report(f"{name}: special tokens", tokenizer.bos_token_id == config.bos_token_id,
               f"bos {tokenizer.bos_token} {tokenizer.bos_token_id}")
    for form in ("f32", "bf16"):
        first, again = work / f"{name}-packed-{form}", work / f"{name}-again-{form}"
        programs.run(programs.qtrain, "export", "--init-from", first, "--to", again, "--format", form)
        same, detail = same_folders(first, again)
        report(f"{name}: {form} export -> init -> export", same, detail)


def made_by_transformers():
    torch.manual_seed(11)
    nanochat = transformers.NanoChatConfig(
        vocab_size=300, hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, initializer_range=0.2)
    gpt2 = transformers.GPT2Config(
        vocab_size=300, n_positions=96, n_embd=48, n_layer=3, n_head=4, activation_function="gelu",
        initializer_range=0.2, bos_token_id=1, eos_token_id=1)
    for name, config in (("nanochat", nanochat), ("gpt2", gpt2)):
        model = transformers.AutoModelForCausalLM.from_config(config).float()
        with torch.no_grad():  # biases and norms too: nothing may stay at a value that hides a mistake
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.05)
        yield name, model


def check_made(programs, new):
    for name, model in made_by_transformers():
        for shards in ("5GB", "100KB"):
            folder = programs.work / f"made-{name}-{shards}"
            model.save_pretrained(folder, max_shard_size=shards)
            files = len(list(folder.glob("*.safetensors")))
            ids = [(5 * i * i + 1) % 300 for i in range(PROMPT_TOKENS)]
            said = programs.say(ids, new, None, "--init-from", folder, "--dtype", "f32")
            what = f"made by transformers: {name}, {files} file{'s' * (files > 1)}"
            loaded = load(folder)
            compare_logits(what, loaded, said, ids)
            theirs = continued(loaded, ids, new)
            report(f"{what}: {new} likeliest tokens", theirs == said["greedy"].tolist(),
                   f"{len(set(theirs))} different ones")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=pathlib.Path)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--text")
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--new", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs(args.build, args.work or pathlib.Path(folder))
        for run in args.runs:
            check_run(programs, run, args.text, args.new)
        check_made(programs, args.new)
    print(f"{len(failures)} failed" if failures else "all equal")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
