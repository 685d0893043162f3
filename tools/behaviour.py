#!/usr/bin/env python3
"""Compares two builds of qtrain: the same commands have to leave the same bits, files, logs and messages.

`scripts/prove behaviour` builds the programs and calls this. Each side has a program for the cpu and one linked with
the simulator (CMake target qtrain_on_sim), in which --device cuda needs no card. Both sides run the same command lines
in a working folder of their own, so that no path differs. Exit status: 0 all equal, 1 a difference, 2 usage.
"""
import argparse
import collections
import concurrent.futures
import filecmp
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# What tells of time, power and their sensors, and nothing of what was computed. A field that one log has and the
# other has not is a difference also where it stands here.
IGNORED_LOG_FIELDS = {
    "unix_s", "seconds", "tokens_per_s", "mfu", "executed_flops_s", "watts", "celsius", "sm_mhz", "device_used_bytes",
    "kwh", "kwh_at_least",
}
# Records that come or not with the load of the machine.
IGNORED_LOG_KINDS = {"slow"}
IGNORED_RUN_FIELDS = {"seconds", "energy"}  # of a checkpoint's run.json
# What checkpoints have gained since: no difference where the old side has none of it.
ADDED_RUN_FIELDS, ADDED_FILES = {"evaluated_step"}, {"evaluated"}
GONE_OPTIONS = {"control"}  # of run.json's options: no difference where only one side has them
# Of manifest.json: the time, and what follows from run.json's times.
IGNORED_MANIFEST_FIELDS = {"created", "manifest_xxh3_128"}
# Of printed text: times, rates, and the disk space that happens to be free. Each but the last is replaced, not left out.
MASKS = [
    (re.compile(r"^( +\d+/\d+ +[\d.]+(?: +\S+){3}) .*$", re.M), r"\1 <rates>"),
    (re.compile(r", \S+ (?:ms|s|min|h|d)? ?of training;"), ", <time> of training;"),
    (re.compile(r"^  time       .*$", re.M), "  time       <time>"),
    (re.compile(r"^(  paging     .*): \S+ \S+ at .*$", re.M), r"\1 <time>"),
    (re.compile(r"^(  disk\n(?:    .*\n)*?    total .*)   (fits|DOES NOT FIT) .*$", re.M), r"\1   \2 <free>"),
    (re.compile(r"by \S+ \S+ on the disk"), "by <free> on the disk"),
    (re.compile(r"stopped after .* \(--stop-after\)"), "stopped after <time> (--stop-after)"),
    (re.compile(r"^  \S+ MB/s, .* in all$", re.M), "  <rates>"),
    (re.compile(r"^.*the last \d+ steps took .*\n", re.M), ""),  # comes or not, as the machine is busy
]

# Every value has to come at least twice among the drawn runs.
MODELS = {
    "d2": "--model d2",
    "nanochat-gqa": "--model nanochat --n-layer 2 --n-head 2 --n-kv-head 1 --n-embd 128",
    "gpt": "--model gpt --n-layer 2 --n-head 2 --n-embd 96",
    "gpt-bias-dropout": "--model gpt --n-layer 1 --n-head 2 --n-embd 128 --bias --dropout 0.1",
}
AXES = {
    "model": list(MODELS),
    "quant": ["none", "nf4"],
    "ckpt-activations": ["on", "off"],
    "dtype": ["f32", "bf16", "fp16"],
    "optim": ["adamw8", "adamw"],
    "paging": ["on", "off"],
    "master": ["f32", "bf16-sr"],
    "grad-dtype": ["auto", "f32", "bf16"],
    "device": ["cpu", "sim"],
    "gemm": ["auto", "fused", "scratch"],
    "data-order": ["shuffle", "sequential", "random"],
    "schedule": ["warmdown", "cosine"],
    "story": ["straight", "kill", "stop", "more-steps"],
    "export": ["f32", "bf16", "fp16"],
    "weights": ["packed", "master"],
}
STEPS = 4
COMPARISONS = ["state", "plan", "log", "export", "carry"]
TITLES = {
    "state": "1 state hashes, checkpoints, screens, samples, evaluations",
    "plan": "2 plans: --json and text with its command, exit codes, stderr",
    "log": "3 log.jsonl without times, rates and energy",
    "export": "4 export folders",
    "carry": "5 old checkpoints loaded and continued",
}


def is_valid(run):
    """What check_options() and the planner take; everything else is drawn again."""
    if run["dtype"] == "fp16" and (run["quant"] != "none" or run["master"] != "f32"):
        return False
    return run["grad-dtype"] != "bf16" or run["dtype"] == "bf16"


def count_values(runs):
    counts = collections.Counter((axis, run[axis]) for run in runs for axis in AXES)
    # An option that has nothing to act on is not covered by standing there.
    for value in AXES["gemm"]:
        counts["gemm", value] = sum(r["gemm"] == value and r["device"] == "sim" and r["quant"] == "nf4" for r in runs)
    return counts


def missing_values(runs, least):
    counts = count_values(runs)
    return [f"{axis} {value}: {counts[axis, value]}"
            for axis in AXES for value in AXES[axis] if counts[axis, value] < least]


def draw_runs(seed, count, least):
    draws = random.Random(f"runs {seed}")
    for _ in range(20000):
        runs = []
        while len(runs) < count:
            run = {axis: draws.choice(values) for axis, values in AXES.items()}
            if is_valid(run):
                runs.append(run)
        if not missing_values(runs, least):
            return runs
    raise SystemExit(f"behaviour: no {count} runs with every value {least} times: choose another --seed")


def draw_plan(draws):
    def some(text, *values):
        return [f"--{text}", str(draws.choice(values))] if draws.random() < 0.5 else []

    words = draws.choice([["--model", name] for name in ("d2", "d4", "d12", "d20", "d32", "gpt2", "gpt2-medium", "gpt2-xl")]
                         + [MODELS["nanochat-gqa"].split(), MODELS["gpt-bias-dropout"].split()])
    device = draws.choice(["cpu", "cuda"])
    words += ["--device", device, "--ram", draws.choice(["1GiB", "4GiB", "16GiB", "64GiB"])]
    words += ["--vram", draws.choice(["512MiB", "1GiB", "2GiB", "6GiB", "8GiB", "12GiB", "24GiB"])]
    kinds = {}
    while not kinds or not is_valid(kinds) and draws.random() < 0.9:  # a few stay that are refused
        kinds = {option: draws.choice(AXES[option]) for option in ("quant", "dtype", "optim", "paging", "master", "grad-dtype")}
    for option, value in kinds.items():
        words += [f"--{option}", value]
    words += some("arch", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120") + some("gemm", "fused", "scratch")
    words += some("seq-len", 256, 512, 1024, 2048) + some("vocab-size", 4096, 32768, 50304, 65536)
    words += some("micro-batch", 1, 2, 2, 4, 3) + some("batch-tokens", 8192, 65536, 524288)
    words += some("steps", 0, 100, 20000) + some("save-every", 0, 100) + some("keep", 2, 3, 5, 9)
    words += some("loss-chunk", 0, 64, 1024) + some("seed", 1, 2**63)
    words += draws.choice([[], ["--ckpt-activations"], ["--ckpt-activations"]])
    refused = ["--vramm 3GiB", "--rehearse", "--dropout 0.1", "--n-kv-head 2", "--batch-tokens 1000", "--keep 1"]
    words += draws.choice([""] * 20 + refused).split()
    return device, words


def common_text():
    """Prose with enough structure to learn from."""
    draws = random.Random("text")
    words = [["the fox", "a miller", "the old king", "my sister"], ["sees", "follows", "forgets", "paints"],
             ["the river", "a lamp", "the red door", "nothing", "the long road"]]
    return "".join(" ".join(draws.choice(part) for part in words) + ".\n" for _ in range(1500))


class Side:
    """Programs and working folder of one of the two; `extra` holds words added to a verb by the self-test."""

    def __init__(self, name, programs, work):
        self.name, self.programs, self.cwd, self.extra = name, programs, work / name, {}
        self.cwd.mkdir(parents=True)
        (self.cwd / "text.txt").write_text(common_text())
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("QTRAIN_")}
        self.environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}

    def start(self, device, words, out, err):
        words = words + self.extra.get(words[0], [])
        return subprocess.Popen([self.programs[device], *words], cwd=self.cwd, stdout=out, stderr=err,
                                stdin=subprocess.DEVNULL, env=self.environment)

    def call(self, device, words):
        process = self.start(device, words, subprocess.PIPE, subprocess.PIPE)
        out, err = process.communicate(timeout=600)
        return {"exit": process.returncode, "stdout": masked(out), "stderr": masked(err)}

    def call_killed(self, device, words, step):
        """Runs until the process halts itself inside the step, then kills it."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = self.start(device, [*words, "--halt-in-step", str(step)], out, err)
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            halted = os.WIFSTOPPED(status)
            if halted:
                process.kill()
                process.wait(timeout=60)
                code = process.returncode
            else:
                code = process.returncode = os.waitstatus_to_exitcode(status)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(masked(file.read()))
        return {"halted": halted, "exit": code, "stdout": texts[0], "stderr": texts[1]}


def masked(data):
    text = data.decode("utf-8", "backslashreplace")
    for pattern, replacement in MASKS:
        text = pattern.sub(replacement, text)
    return text


def state_hash(text):
    found = re.findall(r"; state ([0-9a-f]{32})$", text, re.M)
    return found[-1] if found else None


def json_masked(value, ignored):
    if isinstance(value, dict):
        return {k: "<ignored>" if k in ignored else json_masked(v, ignored) for k, v in value.items()}
    return [json_masked(v, ignored) for v in value] if isinstance(value, list) else value


def log_records(path):
    """Records in the order and with the digits of the file, times and rates masked."""
    records = []
    for line in path.read_text().splitlines():
        record = json.loads(line, parse_float=lambda text: "number " + text)
        if record.get("kind") not in IGNORED_LOG_KINDS:
            records.append(json.dumps(json_masked(record, IGNORED_LOG_FIELDS)))
    return records


def checkpoint_file(path, beside):
    """What is compared of a file; `beside`: the same file of the other side."""
    if path.name == "run.json":
        state = json_masked(json.loads(path.read_text()), IGNORED_RUN_FIELDS)
        gained = ADDED_RUN_FIELDS - json.loads(beside.read_text()).keys()
        state["options"] = {k: v for k, v in state["options"].items() if k not in GONE_OPTIONS}
        return json.dumps({k: v for k, v in state.items() if k not in gained}).encode()
    if path.name == "manifest.json":
        manifest = json_masked(json.loads(path.read_text()), IGNORED_MANIFEST_FIELDS)
        for file in manifest["files"]:
            if file["name"] == "run.json":
                file["bytes"] = file["xxh3_128"] = "<ignored>"
        return json.dumps(manifest).encode()
    return path.read_bytes()


def files_of(folder):
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


class Report:
    def __init__(self):
        self.counts, self.differences = collections.Counter(), collections.defaultdict(list)

    def check(self, comparison, where, old, new):
        self.counts[comparison] += 1
        if old == new:
            return
        pairs = itertools.zip_longest(str(old).splitlines(), str(new).splitlines())
        if isinstance(old, list) and isinstance(new, list):
            pairs = itertools.zip_longest(old, new)
        elif isinstance(old, dict) and isinstance(new, dict):
            pairs = ((f"{k}: {old.get(k)}", f"{k}: {new.get(k)}") for k in {**old, **new})
        first = next(((a, b) for a, b in pairs if a != b), (old, new))
        self.differences[comparison].append(f"{where}\n      old {str(first[0])[:400]}\n      new {str(first[1])[:400]}")

    def fail(self, comparison, text):
        self.differences[comparison].append(text)

    def folders(self, comparison, where, old, new):
        """Two folders of checkpoints: names and bytes, without times."""
        known = files_of(old)
        kept = [name for name in files_of(new) if name in known or name.name not in ADDED_FILES]
        self.check(comparison, f"{where}: names of files", known, kept)
        for name in files_of(old):
            if (new / name).is_file():
                same = checkpoint_file(old / name, new / name) == checkpoint_file(new / name, old / name)
                self.check(comparison, f"{where}/{name}: bytes", "the same", "the same" if same else "other bytes")


def run_words(run, name, steps):
    words = ["train", *MODELS[run["model"]].split(), *"--data text.txt --tokenizer-kind bytes --cache".split(), f"cache-{name}"]
    words += ["--ckpt-activations"] if run["ckpt-activations"] == "on" else []
    for option in ["quant", "dtype", "optim", "paging", "master", "grad-dtype", "data-order", "schedule"]:
        words += [f"--{option}", run[option]]
    words += ["--device", "cpu"] if run["device"] == "cpu" else ["--device", "cuda", "--gemm", run["gemm"]]
    words += ["--steps", str(steps), "--decay-steps", "8", "--out", f"run-{name}"]
    words += "--seq-len 32 --batch-tokens 64 --micro-batch 1 --eval-every 3 --eval-tokens 64 --save-every 2 --keep 3".split()
    return words + "--sample-tokens 6 --threads 1 --ram 8GiB".split() + run.get("options", [])


def use_words(run, name, verb, *rest):
    device = "cpu" if run["device"] == "cpu" else "cuda"
    return [verb, "--out", f"run-{name}", "--device", device, "--threads", "1", "--ram", "8GiB", *rest]


def do_train(side, run, name, steps=STEPS):
    """Everything that the story of the run does with the program."""
    words, device = run_words(run, name, steps), run["device"]
    results = []
    if run["story"] == "kill":
        results.append(side.call_killed(device, words, 4))
    elif run["story"] == "stop":
        # Stopped by the clock at the first moment that it may be. A signal would be seen in one step or in the next.
        results.append(side.call(device, run_words(run, name, 2)))
        results.append(side.call(device, [*words, "--stop-after", "0.000001s"]))
    elif run["story"] == "more-steps":
        results.append(side.call(device, run_words(run, name, 2)))
    return [*results, side.call(device, words)]


def do_use(side, run, name):
    evaluation = ["--data", "text.txt", "--tokenizer-kind", "bytes", "--cache", f"cache-{name}", "--eval-tokens", "64"]
    return {
        "sample": side.call(run["device"], use_words(run, name, "sample", "--prompt", "a fox", "--sample-tokens", "8")),
        "eval": side.call(run["device"], use_words(run, name, "eval", *evaluation)),
    }


def did_as_told(report, comparison, where, run, results):
    """The old side has to do what the run is drawn for; else nothing is shown."""
    codes = {"kill": [-9, 0], "stop": [0, 75, 0], "more-steps": [0, 0], "straight": [0]}[run["story"]]
    seen = [r["exit"] for r in results]
    if seen != codes or not all(r.get("halted", True) for r in results) or not state_hash(results[-1]["stdout"]):
        report.fail(comparison, f"{where}: the old program did not do it: exit codes {seen}, {results[-1]['stderr'].strip()[:300]}")


def compare_run(old, new, run, name, tamper=lambda point: None):
    report = Report()
    where = f"run {name} ({' '.join(str(v) for k, v in run.items() if k != 'options')})"
    sides = (old, new)
    a, b = (do_train(side, run, name) for side in sides)
    did_as_told(report, "state", where, run, a)
    report.check("state", f"{where}: state hash", state_hash(a[-1]["stdout"]), state_hash(b[-1]["stdout"]))
    for i, (x, y) in enumerate(zip(a, b)):
        report.check("state", f"{where}: call {i + 1}", x, y)
    folders = [side.cwd / f"run-{name}" for side in sides]
    for side_a in sorted(folders[0].glob("step-*")):
        report.folders("state", f"{where}/{side_a.name}", side_a, folders[1] / side_a.name)
    x, y = (do_use(side, run, name) for side in sides)
    for verb in x:
        if x[verb]["exit"] != 0:
            report.fail("state", f"{where}: the old program's {verb}: {x[verb]['stderr'][:300]}")
        report.check("state", f"{where}: {verb}", x[verb], y[verb])

    tamper("log")
    logs = [log_records(folder / "log.jsonl") for folder in folders]
    if run.get("wants") and not any(f'"kind": "{run["wants"]}"' in record for record in logs[0]):
        report.fail("log", f"{where}: the old program's log has no {run['wants']}")
    report.check("log", f"{where}: log.jsonl", *logs)

    words = use_words(run, name, "export", "--to", f"hf-{name}", "--format", run["export"], "--weights", run["weights"])
    x, y = (side.call("cpu", words) for side in sides)
    report.check("export", f"{where}: what export says", x, y)
    if x["exit"] != 0:
        report.fail("export", f"{where}: the old program's export: {x['stderr'][:300]}")
    tamper("export")
    exports = [side.cwd / f"hf-{name}" for side in sides]
    report.check("export", f"{where}: names", *(files_of(folder) for folder in exports))
    for file in files_of(exports[0]):
        same = (exports[1] / file).is_file() and filecmp.cmp(exports[0] / file, exports[1] / file, shallow=False)
        report.check("export", f"{where}: {file}", "the same", "the same" if same else "other bytes")

    # The old side's folder in both places: each loads it, says its hash, and continues it.
    shutil.rmtree(folders[1])
    shutil.copytree(folders[0], folders[1], symlinks=True)
    tamper("carry")
    straight = {**run, "story": "straight"}
    for steps, what in ((STEPS, "loaded"), (STEPS + 2, "continued")):
        if run.get("wants") and steps > STEPS:
            break
        x, y = (do_train(side, straight, name, steps) for side in sides)
        did_as_told(report, "carry", f"{where}, {what}", straight, x)
        report.check("carry", f"{where}, {what}: state hash", state_hash(x[-1]["stdout"]), state_hash(y[-1]["stdout"]))
        report.check("carry", f"{where}, {what}", x[-1], y[-1])
    x, y = (do_use(side, run, name) for side in sides)
    report.check("carry", f"{where}, continued: sample and eval", x, y)
    report.check("carry", f"{where}, continued: log", *(log_records(folder / "log.jsonl") for folder in folders))
    return report


def compare_plan(old, new, device, words, number):
    report = Report()
    program = "cpu" if device == "cpu" else "sim"
    results = []
    for verb in (["plan", "--json"], ["plan"]):
        if verb == ["plan"] and "--rehearse" in words:
            continue
        x, y = (side.call(program, [*verb, *words]) for side in (old, new))
        report.check("plan", f"plan {number}: {' '.join([*verb, *words])}", x, y)
        results.append(x["exit"])
    return report, results


OVERFLOW = {"model": "gpt", "quant": "none", "ckpt-activations": "off", "dtype": "fp16", "optim": "adamw", "paging": "off",
            "master": "f32", "grad-dtype": "auto", "gemm": "auto", "data-order": "shuffle", "schedule": "cosine",
            "story": "straight", "export": "f32", "weights": "packed", "wants": "overflow",
            "options": ["--clip", "0"]}
# Where a gradient overflows within the few steps; compare_run() checks that it does.
OVERFLOW_OPTIONS = {"cpu": ["--learning-rate", "1.5"], "sim": ["--learning-rate", "1", "--seed", "1"]}


def whole_comparison(old, new, arguments):
    report, exits = Report(), collections.Counter()
    count, least, plans = (8, 1, 40) if arguments.quick else (arguments.runs, 2, arguments.plans)
    runs = draw_runs(arguments.seed, count, least)
    counts = count_values(runs)
    print(f"{len(runs)} drawn runs; times each value comes (at least {least}):")
    for axis in AXES:
        print(f"  {axis:<17} " + ", ".join(f"{value} {counts[axis, value]}" for value in AXES[axis]))
    runs += [{**OVERFLOW, "device": d, "options": OVERFLOW["options"] + OVERFLOW_OPTIONS[d]} for d in AXES["device"]]
    draws = random.Random(f"plans {arguments.seed}")
    drawn = [draw_plan(draws) for _ in range(plans)]
    print("plans: " + ", ".join(f"{n} on {device}" for device, n in sorted(collections.Counter(d for d, _ in drawn).items())))
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = {pool.submit(compare_run, old, new, run, str(i)): f"run {i}" for i, run in enumerate(runs)}
        jobs |= {pool.submit(compare_plan, old, new, *plan, i): f"plan {i}" for i, plan in enumerate(drawn)}
        for job in concurrent.futures.as_completed(jobs):
            result = job.result()
            if isinstance(result, tuple):
                result, codes = result
                exits.update(codes)
            report.counts += result.counts
            for comparison, texts in result.differences.items():
                report.differences[comparison] += texts
    print("exit codes of the plans: " + ", ".join(f"{code}: {n}" for code, n in sorted(exits.items())))
    if min(exits[0], exits[3]) < sum(exits.values()) // 8 or exits[2] == 0:
        report.fail("plan", "of the drawn plans an eighth has to fit (0), an eighth not (3), and some to be refused (2)")
    return report


def edit_log(path, kind, change):
    lines = path.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if f'"kind":"{kind}"' in line)
    lines[at] = change(lines[at])
    path.write_text("".join(line + "\n" for line in lines if line))


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def self_test(old, new):
    """Old against old, with one thing changed on the new side each time. Returns whether the right one noticed each."""
    run = {**draw_runs(1, 16, 1)[0], "device": "cpu", "story": "kill", "dtype": "f32", "grad-dtype": "auto", "quant": "none"}
    new.programs = old.programs
    passed, numbers = True, itertools.count()

    def case(title, wanted, point=None, edit=None, extra=None, plan=False):
        nonlocal passed
        number = f"self{next(numbers)}"
        folder = new.cwd / f"run-{number}"
        new.extra = extra or {}
        if plan:
            report, _ = compare_plan(old, new, "cuda", ["--model", "d4", "--vram", "12GiB", "--ram", "8GiB"], 0)
        else:
            report = compare_run(old, new, run, number, lambda at: edit(folder, new.cwd / f"hf-{number}") if at == point else None)
        new.extra = {}
        noticed = [c for c in COMPARISONS if report.differences[c]]
        good = wanted in noticed if wanted else not noticed
        passed = passed and good
        print(f"  {'ok  ' if good else 'FAIL'} {title}: noticed by {', '.join(noticed) or 'none'}")

    def replace_hash(folder, _):
        other = new.cwd / "run-self0"
        shutil.rmtree(folder)
        shutil.copytree(other, folder)

    case("nothing is changed", None)
    case("another seed", "state", extra={"train": ["--seed", "43"]})
    case("another sample", "state", extra={"sample": ["--seed", "43"]})
    case("another evaluation", "state", extra={"eval": ["--eval-tokens", "32"]})
    case("a plan of another sequence", "plan", extra={"plan": ["--seq-len", "512"]}, plan=True)
    case("a refused plan", "plan", extra={"plan": ["--no-such-option"]}, plan=True)
    case("a changed loss", "log", "log",
         lambda run, _: edit_log(run / "log.jsonl", "step", lambda l: l.replace('"loss":', '"loss":1')))
    case("a lost record", "log", "log", lambda run, _: edit_log(run / "log.jsonl", "save", lambda l: ""))
    case("a lost time field", "log", "log",
         lambda run, _: edit_log(run / "log.jsonl", "step", lambda l: re.sub(r'"unix_s":[^,}]*,?', "", l)))
    case("another time", None, "log",
         lambda run, _: edit_log(run / "log.jsonl", "step", lambda l: re.sub(r'"unix_s":[^,}]*', '"unix_s":1', l)))
    case("a flipped bit of an export", "export", "export", lambda _, hf: flip_bit(hf / "model.safetensors"))
    case("a lost file of an export", "export", "export", lambda _, hf: (hf / "config.json").unlink())
    case("a damaged checkpoint", "carry", "carry", lambda run, _: flip_bit(run / f"step-{STEPS:09d}" / "weights.safetensors"))
    case("a checkpoint that is not read", "carry", "carry", lambda run, _: shutil.rmtree(run))
    return passed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for side in ("old", "new"):
        parser.add_argument(f"--{side}-cpu", required=True, metavar="PATH", help=f"qtrain of the {side} commit")
        parser.add_argument(f"--{side}-sim", required=True, metavar="PATH", help="its qtrain_on_sim")
        parser.add_argument(f"--{side}-commit", default="unknown", metavar="NAME", help="only printed")
    parser.add_argument("--work", metavar="FOLDER", help="kept; without it a temporary one, which goes where all is equal")
    parser.add_argument("--seed", type=int, default=1, help="of the draws")
    parser.add_argument("--runs", type=int, default=32)
    parser.add_argument("--plans", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="fewer runs, every value once, and 40 plans")
    parser.add_argument("--self-test", action="store_true", help="changes one thing each time that has to be noticed")
    arguments = parser.parse_args()
    work = Path(arguments.work or tempfile.mkdtemp(prefix="qtrain-behaviour-")).resolve()
    if arguments.work and work.exists() and any(work.iterdir()):
        parser.error(f"{work} is not empty")
    sides = []
    for name in ("old", "new"):
        programs = {device: str(Path(getattr(arguments, f"{name}_{device}")).resolve()) for device in AXES["device"]}
        for program in programs.values():
            if not os.access(program, os.X_OK):
                parser.error(f"{program} is no program")
        sides.append(Side(name, programs, work))
    started = time.monotonic()
    print(f"old {arguments.old_commit}, new {arguments.new_commit}; devices: cpu, simulated card; seed {arguments.seed}")
    if arguments.self_test:
        passed = self_test(*sides)
    else:
        report = whole_comparison(*sides, arguments)
        passed = not any(report.differences.values())
        for comparison in COMPARISONS:
            for text in report.differences[comparison][:10]:
                print(f"  DIFFERENT {text}")
        print(f"{'comparison':<64} {'checks':>7} {'different':>9}")
        for comparison in COMPARISONS:
            print(f"{TITLES[comparison]:<64} {report.counts[comparison]:>7} {len(report.differences[comparison]):>9}")
    print(f"{'PASS' if passed else 'FAIL'} after {time.monotonic() - started:.0f} s" + ("" if passed else f"; folders: {work}"))
    if passed and not arguments.work:
        shutil.rmtree(work)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
