"""The self-check of convert_nanogpt.py: round trips bit for bit, training continued from a converted
checkpoint, logits of a converted Hugging Face model, and files that have to be refused.
"""

import contextlib
import io
import json
import pathlib
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file

import convert_nanogpt as convert
import gpt2_names as names
import gpt2_ref as ref
import torch_models

GROUPS = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8}


def expect(condition, what):
    if not condition:
        raise SystemExit(f"self-check failed: {what}")


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def same_tree(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and same_bits(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_tree(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


def model_and_optimizer(cfg):
    model = torch_models.Gpt(cfg)
    decays, stays = convert.by_group(dict(model.named_parameters()))
    groups = [
        GROUPS | {"params": [model.get_parameter(n) for n in members], "weight_decay": decay}
        for members, decay in ((decays, 0.1), (stays, 0.0))
    ]
    return model, torch.optim.AdamW(groups)


def step(model, optimizer, ids, targets):
    optimizer.zero_grad()
    loss = model(ids, targets)
    loss.backward()
    optimizer.step()
    return loss.item()


def checkpoint(cfg, model, optimizer, prefix=""):
    """As nanoGPT's train.py saves it."""
    state = {prefix + n: t for n, t in model.state_dict().items()}
    state[prefix + names.HEAD] = state[prefix + names.EMBEDDING]
    args = {k: getattr(cfg, k, 0.0) for k in convert.MODEL_ARGS}
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "model_args": args,
        "iter_num": 2,
        "best_val_loss": torch.tensor(1.8924),
        "config": {"dataset": "shakespeare_char", "bias": cfg.bias, "learning_rate": 1e-3},
    }


def check_round_trip(folder, bias, prefix):
    torch.manual_seed(3)
    cfg = ref.Config(n_layer=2, n_head=3, n_embd=30, vocab_size=61, block_size=16, bias=bias)
    model, optimizer = model_and_optimizer(cfg)
    for p in model.parameters():
        torch.nn.init.normal_(p, 0.0, 0.1)
    batches = [(torch.randint(0, 61, (2, 16)), torch.randint(0, 61, (2, 16))) for _ in range(3)]
    for batch in batches[:2]:
        step(model, optimizer, *batch)
    first = checkpoint(cfg, model, optimizer, prefix)
    torch.save(first, folder / "ckpt.pt")
    convert.to_safetensors(folder / "ckpt.pt", folder / "dir", True)
    convert.to_ckpt(folder / "dir", folder / "back.pt", True)
    back = torch.load(folder / "back.pt", weights_only=True)
    expected = dict(first)
    expected["model"] = {n.removeprefix("_orig_mod."): t for n, t in first["model"].items()}
    for key in expected:
        expect(same_tree(expected[key], back[key]), f"'{key}' changed on the way (bias {bias}, '{prefix}')")
    tied = back["model"]
    expect(tied[names.HEAD].data_ptr() == tied[names.EMBEDDING].data_ptr(), "the head is no longer tied")

    stored = load_file(folder / "dir/model.safetensors")
    q, _, v = first["model"][f"{prefix}transformer.h.1.attn.c_attn.weight"].chunk(3)
    expect(same_bits(stored["transformer.h.1.attn.c_q.weight"], q), "c_q is not the first third of c_attn")
    expect(same_bits(stored["transformer.h.1.attn.c_v.weight"], v), "c_v is not the last third of c_attn")

    # Training goes on as if nothing had happened; without moments it does not.
    results = []
    for optimizer_state in (back["optimizer"], None):
        other, other_optimizer = model_and_optimizer(cfg)
        other.load_state_dict({n: t for n, t in back["model"].items() if n != names.HEAD})
        if optimizer_state is None:
            convert.to_ckpt(folder / "dir", folder / "bare.pt", False)
            optimizer_state = torch.load(folder / "bare.pt", weights_only=True)["optimizer"]
        other_optimizer.load_state_dict(optimizer_state)
        step(other, other_optimizer, *batches[2])
        results.append(other)
    step(model, optimizer, *batches[2])
    pairs = [list(zip(model.parameters(), other.parameters())) for other in results]
    expect(all(same_bits(a.detach(), b.detach()) for a, b in pairs[0]), "training went on differently")
    expect(not all(torch.equal(a, b) for a, b in pairs[1]), "the moments make no difference")
    return folder / "dir"


def check_run(folder, converted):
    """The same weights and moments as qtrain's checkpoint keeps them: flat, with prefixes."""
    weights = load_file(converted / "model.safetensors")
    moments = load_file(converted / "optimizer.safetensors")
    run = folder / "step-000000002"
    run.mkdir()
    flat = {f"master.{n}": t.flatten() for n, t in weights.items()} | {
        n: t.flatten() for n, t in moments.items()
    }
    save_file(flat, run / "state.safetensors")
    options = {"model": "gpt", "n-head": "3", "beta2": "0.95", "weight-decay": "0.1"}
    (run / "run.json").write_text(json.dumps({"step": 2, "applied": 2, "options": options}))
    convert.to_ckpt(run, folder / "run.pt", True)
    convert.to_ckpt(converted, folder / "folder.pt", True)
    got, want = (torch.load(folder / f"{n}.pt", weights_only=True) for n in ("run", "folder"))
    for key in ("model", "model_args", "iter_num"):
        expect(same_tree(want[key], got[key]), f"'{key}' of a qtrain checkpoint changed")
    expect(same_tree(want["optimizer"]["state"], got["optimizer"]["state"]), "moments of a qtrain checkpoint")

    # 8-bit moments are left out.
    name = "transformer.h.0.attn.c_q.weight"
    flat[f"m.{name}"] = torch.zeros(flat[f"m.{name}"].numel(), dtype=torch.uint8)
    flat[f"m.{name}.absmax"] = torch.ones(4)
    save_file(flat, run / "state.safetensors")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        convert.to_ckpt(run, folder / "run8.pt", True)
    got = torch.load(folder / "run8.pt", weights_only=True)
    expect(same_tree(want["model"], got["model"]) and got["optimizer"]["state"] == {}, "8-bit moments")
    expect("8 bits" in said.getvalue(), "nothing was said about 8-bit moments")
    return run


def check_hf(folder):
    """Logits, although a transposed square matrix or swapped thirds would still have the right shapes."""
    config = transformers.GPT2Config(
        vocab_size=61,
        n_positions=16,
        n_embd=30,
        n_layer=2,
        n_head=3,
        activation_function="gelu",
        bos_token_id=None,
        eos_token_id=None,
    )
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(4)
    model = transformers.GPT2LMHeadModel(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 0.0, 0.2)
    model.save_pretrained(folder / "hf")
    convert.from_hf(folder / "hf", folder / "from_hf")
    weights, cfg, _ = convert.read_folder(folder / "from_hf")
    ids = torch.randint(0, 61, (2, 16))
    with torch.no_grad():
        want = model(input_ids=ids).logits
        got = ref.forward(weights, ids, convert.config_of(cfg, "self-check"))
    error = ((got - want).abs().max() / want.abs().max()).item()
    expect(error < 1e-5, f"logits of the Hugging Face model differ by {error:.2g}")

    changed = json.loads((folder / "hf/config.json").read_text()) | {"activation_function": "gelu_new"}
    (folder / "hf/config.json").write_text(json.dumps(changed))
    with contextlib.redirect_stderr(io.StringIO()) as said:
        convert.from_hf(folder / "hf", folder / "from_hf")
    expect("tanh form" in said.getvalue(), "nothing was said about the tanh form of GELU")
    (folder / "hf/config.json").write_text(json.dumps(changed | {"layer_norm_epsilon": 1e-6}))
    refused("layer_norm_epsilon", convert.from_hf, folder / "hf", folder / "from_hf")


def refused(text, function, *args):
    try:
        function(*args)
    except SystemExit as e:
        expect(text in str(e), f"'{e}' does not say '{text}'")
        return
    expect(False, f"accepted, although it should be refused for '{text}'")


def check_refusals(folder, run):
    good = torch.load(folder / "ckpt.pt", weights_only=True)

    def with_model(change):
        model = {n.removeprefix("_orig_mod."): t.clone() for n, t in good["model"].items()}
        change(model)
        torch.save(good | {"model": model}, folder / "bad.pt")

    name, extra = "transformer.h.0.mlp.c_fc.weight", "transformer.h.0.extra.weight"
    cases = (
        ("missing tensors: " + name, lambda m: m.pop(name)),
        ("unknown tensors: " + extra, lambda m: m.update({extra: m[name]})),
        ("has shape", lambda m: m.update({name: m[name].T})),
        ("only tied models", lambda m: m[names.HEAD].add_(1)),
        ("not finite", lambda m: m[name].view(-1)[5:6].fill_(float("nan"))),
    )
    for text, change in cases:
        with_model(change)
        refused(text, convert.to_safetensors, folder / "bad.pt", folder / "bad", True)
    optimizer = good["optimizer"] | {"param_groups": good["optimizer"]["param_groups"][:1]}
    torch.save(good | {"optimizer": optimizer}, folder / "bad.pt")
    refused("--no-optimizer", convert.to_safetensors, folder / "bad.pt", folder / "bad", True)
    convert.to_safetensors(folder / "bad.pt", folder / "bad", False)
    # Mask buffers of early files are no weights.
    with_model(lambda m: m.update({"transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16)}))
    convert.to_safetensors(folder / "bad.pt", folder / "bad", True)

    state = json.loads((run / "run.json").read_text())
    state["options"].pop("n-head")
    (run / "run.json").write_text(json.dumps(state))
    refused("--n-head", convert.to_ckpt, run, folder / "bad.pt", True)
    refused("step-", convert.to_ckpt, folder, folder / "bad.pt", True)


def run():
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        for bias in (False, True):
            for prefix in ("", "_orig_mod."):
                converted = check_round_trip(folder, bias, prefix)
        check_refusals(folder, check_run(folder, converted))
        check_hf(folder)
    print("ckpt.pt, qtrain checkpoints and Hugging Face folders convert as they should")
    return 0
