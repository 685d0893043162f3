#!/usr/bin/env python3
"""Between nanoGPT's ckpt.pt, Hugging Face's GPT-2 and the safetensors that qtrain reads and writes.

    convert_nanogpt.py to-safetensors ckpt.pt DIR [--no-optimizer]
    convert_nanogpt.py to-ckpt DIR ckpt.pt [--no-optimizer] [--n-head N]     DIR: or a qtrain checkpoint
    convert_nanogpt.py from-hf HF_DIR DIR
    convert_nanogpt.py --self-check

DIR holds model.safetensors (f32, names of gpt2_names.py), config.json, and, where the checkpoint has moments,
optimizer.safetensors (m.<name>, v.<name>). Pickles are only ever read with weights_only=True. The formats are
described in tools/README.md.
"""

import argparse
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file

import gpt2_names as names
import gpt2_ref as ref

MODEL_ARGS = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")
HEADS_OF = {"gpt2": 12, "gpt2-medium": 16, "gpt2-large": 20, "gpt2-xl": 25}
MASKS = (".attn.bias", ".attn.masked_bias")  # buffers that early nanoGPT and Hugging Face stored
NO_LOSS_YET = 1e9  # nanoGPT's best_val_loss before the first evaluation


def fail(text):
    raise SystemExit(f"error: {text}")


def config_of(args, origin):
    missing = [k for k in MODEL_ARGS if k != "dropout" and k not in args]
    if missing:
        fail(f"{origin}: no {', '.join(missing)}")
    if args["n_embd"] % args["n_head"]:
        fail(f"{origin}: n_embd {args['n_embd']} is not divisible by n_head {args['n_head']}")
    return ref.Config(**{k: args[k] for k in MODEL_ARGS if k != "dropout"})


def check_weights(ours, cfg, origin):
    """The weights in model order and f32; refuses what is missing, unknown, misshapen or not finite."""
    want = ref.weight_shapes(cfg)
    for what, found in (("missing", want.keys() - ours.keys()), ("unknown", ours.keys() - want.keys())):
        if found:
            fail(f"{origin}: {what} tensors: {', '.join(sorted(found)[:5])}{' ...' * (len(found) > 5)}")
    for n, shape in want.items():
        if tuple(ours[n].shape) != shape:
            fail(f"{origin}: '{n}' has shape {tuple(ours[n].shape)}, the configuration asks for {shape}")
        if not ours[n].isfinite().all():
            fail(f"{origin}: '{n}' holds a number that is not finite")
    return {n: ours[n].float().contiguous() for n in want}


def untie(state, origin):
    """Without lm_head, which has to be wte, and without mask buffers."""
    state = {n: t for n, t in state.items() if not n.endswith(MASKS)}
    head = state.pop(names.HEAD, None)
    if head is not None and not torch.equal(head, state[names.EMBEDDING]):
        fail(f"{origin}: {names.HEAD} differs from {names.EMBEDDING}; only tied models can be converted")
    return state


# ---- folders -----------------------------------------------------------------------------------------------


def write_folder(folder, weights, config, moments=None):
    """moments: m.<name>, v.<name>; None leaves none, not even those of an earlier conversion."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "optimizer.safetensors").unlink(missing_ok=True)
    if moments:
        save_file(moments, folder / "optimizer.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "nanogpt"} | config, indent=1) + "\n")


def read_folder(folder):
    """(weights, config, moments or None) of what write_folder wrote."""
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "nanogpt":
        fail(f"{folder}/config.json: model_type is {config.get('model_type')}; for Hugging Face use from-hf")
    cfg = config_of(config, folder / "config.json")
    weights = check_weights(load_file(folder / "model.safetensors"), cfg, folder / "model.safetensors")
    optimizer = folder / "optimizer.safetensors"
    return weights, config, load_file(optimizer) if optimizer.exists() else None


def read_run(folder, n_head):
    """The same of a qtrain checkpoint: flat masters (f32 or bf16) and moments in state.safetensors, run.json."""
    run = json.loads((folder / "run.json").read_text())
    origin = folder / "state.safetensors"
    state = load_file(origin)
    flat = {n.removeprefix("master."): t for n, t in state.items() if n.startswith("master.")}
    if "transformer.wpe.weight" not in flat:
        fail(f"{origin}: no 'master.transformer.wpe.weight', so this is not a GPT")
    options = {k.replace("_", "-"): v for k, v in run["options"].items()}
    n_head = n_head or int(options.get("n-head") or 0) or HEADS_OF.get(options.get("model"))
    if not n_head:
        fail(f"{folder}/run.json does not tell the number of heads; add --n-head")
    C = flat["transformer.ln_f.weight"].numel()
    config = {
        "n_layer": 1 + max(int(n.split(".")[2]) for n in flat if ".h." in n),
        "n_head": n_head,
        "n_embd": C,
        "block_size": flat["transformer.wpe.weight"].numel() // C,
        "bias": "transformer.ln_f.bias" in flat,
        "vocab_size": flat[names.EMBEDDING].numel() // C,
        "dropout": float(options.get("dropout") or 0),
        "iter_num": run["step"],
    }
    cfg = config_of(config, folder)
    shapes = ref.weight_shapes(cfg)

    def shaped(flat):
        for n, t in flat.items():
            if n in shapes and t.numel() == torch.Size(shapes[n]).numel():
                flat[n] = t.view(shapes[n])
        return check_weights(flat, cfg, origin)

    weights = shaped(flat)
    if any(n.endswith(".absmax") for n in state):
        print("moments in 8 bits are nothing nanoGPT knows: its optimizer will start anew", file=sys.stderr)
        return weights, config, None
    moments = {}
    for kind in ("m.", "v."):
        found = shaped({n.removeprefix(kind): t for n, t in state.items() if n.startswith(kind)})
        moments |= {f"{kind}{n}": t for n, t in found.items()}

    def number(name, otherwise):
        return float(options.get(name) or otherwise)

    decay, common = number("weight-decay", 0.1), {
        "lr": number("learning-rate", 0) or number("matrix-lr", 6e-4),
        "betas": [number("beta1", 0.9), number("beta2", 0.95)],
        "eps": number("eps", 1e-8),
    }
    groups = [common | {"weight_decay": w} for w in (decay, 0.0)]
    return weights, config | {"optimizer": {"step": run["applied"], "groups": groups}}, moments


# ---- nanoGPT's optimizer -----------------------------------------------------------------------------------


def by_group(fused):
    """Names in the order in which nanoGPT's AdamW numbers its parameters: two dimensions first, then one."""
    return [n for n in fused if fused[n].dim() >= 2], [n for n in fused if fused[n].dim() < 2]


def moments_of(optimizer, fused, origin):
    """(m.<our name> and v.<our name>, what config.json keeps of the rest)."""
    groups, state = optimizer["param_groups"], optimizer["state"]
    order = by_group(fused)
    if [len(g["params"]) for g in groups] != [len(g) for g in order]:
        fail(
            f"{origin}: the optimizer's groups are not those of today's nanoGPT (decay from two dimensions); "
            "add --no-optimizer"
        )
    kept = [{k: list(v) if k == "betas" else v for k, v in g.items() if k != "params"} for g in groups]
    if not state:
        return None, {"step": 0, "groups": kept}
    m, v, steps = {}, {}, set()
    for group, group_names in zip(groups, order):
        for index, name in zip(group["params"], group_names):
            if index not in state or state[index]["exp_avg"].shape != fused[name].shape:
                fail(f"{origin}: optimizer state {index} does not fit '{name}'; add --no-optimizer")
            m[name], v[name] = state[index]["exp_avg"], state[index]["exp_avg_sq"]
            steps.add(float(state[index]["step"]))
    if len(steps) != 1:
        fail(f"{origin}: not all parameters took as many steps: {sorted(steps)}; add --no-optimizer")
    moments = {}
    for kind, tensors in (("m.", m), ("v.", v)):
        split = names.split_qkv(tensors)
        moments |= {f"{kind}{n}": t.float().contiguous() for n, t in split.items()}
    return moments, {"step": int(steps.pop()), "groups": kept}


def optimizer_of(config, moments, fused):
    """nanoGPT's optimizer state dict. Without moments the state is empty, and AdamW starts anew from it."""
    groups, order = config["optimizer"]["groups"], by_group(fused)
    defaults = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).state_dict()["param_groups"][0]
    first = [0, len(order[0])]
    param_groups = [
        defaults | g | {"betas": tuple(g["betas"]), "params": list(range(begin, begin + len(members)))}
        for g, begin, members in zip(groups, first, order)
    ]
    state = {}
    if moments:
        m, v = (
            names.fuse_qkv({n.removeprefix(kind): t for n, t in moments.items() if n.startswith(kind)})
            for kind in ("m.", "v.")
        )
        step = float(config["optimizer"]["step"])
        for index, name in enumerate(order[0] + order[1]):
            state[index] = {"step": torch.tensor(step), "exp_avg": m[name], "exp_avg_sq": v[name]}
    return {"state": state, "param_groups": param_groups}


# ---- the three ways ----------------------------------------------------------------------------------------


def to_safetensors(ckpt, folder, with_optimizer):
    file = torch.load(ckpt, map_location="cpu", weights_only=True)
    if not isinstance(file, dict) or not {"model", "model_args"} <= file.keys():
        fail(f"{ckpt}: not a nanoGPT checkpoint: it needs 'model' and 'model_args'")
    state = {n.removeprefix("_orig_mod."): t for n, t in file["model"].items()}
    args = {"bias": True, "dropout": 0.0} | file["model_args"]  # the first nanoGPTs had neither
    cfg = config_of(args, f"{ckpt}: model_args")
    fused = untie(state, ckpt)
    weights = check_weights(names.split_qkv(fused), cfg, ckpt)
    config = {k: args[k] for k in MODEL_ARGS}
    config["iter_num"] = file.get("iter_num", 0)
    config["best_val_loss"] = float(file.get("best_val_loss", NO_LOSS_YET))
    config["config"] = file.get("config", {})
    moments = None
    if with_optimizer and "optimizer" in file:
        fused = names.fuse_qkv(weights)
        moments, config["optimizer"] = moments_of(file["optimizer"], fused, ckpt)
    write_folder(folder, weights, config, moments)


def to_ckpt(folder, ckpt, with_optimizer, n_head=None):
    folder = pathlib.Path(folder)
    if (folder / "run.json").exists():
        weights, config, moments = read_run(folder, n_head)
    elif (folder / "config.json").exists():
        weights, config, moments = read_folder(folder)
    else:
        fail(f"{folder}: neither config.json nor run.json; of a run folder, name one of its step- folders")
    fused = names.fuse_qkv(weights)
    if "optimizer" not in config:
        groups = [{"lr": 6e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": w} for w in (0.1, 0.0)]
        config["optimizer"], moments = {"step": 0, "groups": groups}, None
    file = {
        "model": fused | {names.HEAD: fused[names.EMBEDDING]},
        "optimizer": optimizer_of(config, moments if with_optimizer else None, fused),
        "model_args": {k: config.get(k, 0.0) for k in MODEL_ARGS},
        "iter_num": config.get("iter_num", 0),
        "best_val_loss": torch.tensor(config.get("best_val_loss", NO_LOSS_YET)),
        "config": config.get("config", {}),
    }
    torch.save(file, ckpt)


def from_hf(hf_folder, folder):
    hf_folder = pathlib.Path(hf_folder)
    origin = hf_folder / "config.json"
    hf = json.loads(origin.read_text())
    if hf.get("model_type") != "gpt2":
        fail(f"{origin}: model_type is {hf.get('model_type')}, not gpt2")
    if hf.get("layer_norm_epsilon", 1e-5) != 1e-5:
        fail(f"{origin}: layer_norm_epsilon is {hf['layer_norm_epsilon']}; nanoGPT's models have 1e-5")
    if hf.get("n_inner") not in (None, 4 * hf["n_embd"]):
        fail(f"{origin}: n_inner is {hf['n_inner']}; nanoGPT's models have four times n_embd")
    activation = hf.get("activation_function", "gelu_new")
    if activation not in ("gelu", "gelu_new", "gelu_pytorch_tanh"):
        fail(f"{origin}: activation_function is {activation}; nanoGPT's models have gelu")
    if activation != "gelu":
        print(
            f"{origin}: trained with the tanh form of GELU ({activation}); nanoGPT and qtrain compute the "
            "exact one, which changes logits a little",
            file=sys.stderr,
        )
    shards = sorted(hf_folder.glob("model*.safetensors"))
    state = {}
    for shard in shards:
        state |= load_file(shard)
    if not shards:
        pickle = hf_folder / "pytorch_model.bin"
        if not pickle.exists():
            fail(f"{hf_folder}: neither model.safetensors nor pytorch_model.bin")
        state = torch.load(pickle, map_location="cpu", weights_only=True)
    # OpenAI's own files lack the prefix.
    known = ("transformer.", "lm_head.")
    state = {n if n.startswith(known) else f"transformer.{n}": t for n, t in state.items()}
    config = {
        "n_layer": hf["n_layer"],
        "n_head": hf["n_head"],
        "n_embd": hf["n_embd"],
        "block_size": hf.get("n_positions") or hf["n_ctx"],
        "bias": True,
        "vocab_size": hf["vocab_size"],
        "dropout": 0.0,
        "iter_num": 0,
        "activation": activation,
    }
    fused = names.hf_transposed(untie(state, hf_folder))
    weights = check_weights(names.split_qkv(fused), config_of(config, origin), hf_folder)
    write_folder(folder, weights, config)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--self-check", action="store_true")
    modes = parser.add_subparsers(dest="mode")
    mode = modes.add_parser("to-safetensors", help="nanoGPT's ckpt.pt -> folder")
    mode.add_argument("ckpt"), mode.add_argument("dir")
    mode.add_argument("--no-optimizer", action="store_true", help="leave the moments out")
    mode = modes.add_parser("to-ckpt", help="folder or qtrain checkpoint -> nanoGPT's ckpt.pt")
    mode.add_argument("dir"), mode.add_argument("ckpt")
    mode.add_argument("--no-optimizer", action="store_true", help="leave the moments out: AdamW starts anew")
    mode.add_argument("--n-head", type=int, help="of a qtrain checkpoint that does not tell")
    mode = modes.add_parser("from-hf", help="Hugging Face's GPT-2 -> folder")
    mode.add_argument("hf_dir"), mode.add_argument("dir")
    args = parser.parse_args()
    if args.self_check:
        import convert_nanogpt_check

        return convert_nanogpt_check.run()
    if args.mode == "to-safetensors":
        to_safetensors(args.ckpt, args.dir, not args.no_optimizer)
    elif args.mode == "to-ckpt":
        to_ckpt(args.dir, args.ckpt, not args.no_optimizer, args.n_head)
    elif args.mode == "from-hf":
        from_hf(args.hf_dir, args.dir)
    else:
        parser.error("say which way: to-safetensors, to-ckpt or from-hf")
    return 0


if __name__ == "__main__":
    sys.exit(main())
