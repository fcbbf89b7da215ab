"""The model's layers once more, in float64 NumPy: one image, one head, one token and one expert at a time, without the package.

Parameters come under the names and in the shapes that the package gives them.
"""

import math
from typing import NamedTuple

import numpy as np


def wide(params):
    """A tree of parameters in float64."""
    if hasattr(params, "items"):
        return {name: wide(leaf) for name, leaf in params.items()}
    return np.asarray(params, np.float64)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def layer_norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def mlp(params, x, act=gelu):
    up = act(x @ params["w_up_DF"] + params.get("b_up_F", 0))
    return up @ params["w_down_FD"] + params.get("b_down_D", 0)


def attention(params, x, context, mask):
    """One image, one query head at a time; query heads share key-value heads in order."""

    def norm(values, name):
        if name not in params:
            return values
        return values / np.sqrt((values**2).mean(-1, keepdims=True) + 1e-6) * params[name]["scale_K"]

    heads, head_dim, width = params["w_o_HKD"].shape
    shared = heads // params["w_k_MNK"].shape[1]
    out = np.zeros((*x.shape[:2], width))
    for b in range(x.shape[0]):
        for h in range(heads):
            n = h // shared
            q = x[b] @ params["w_q_DHK"][:, h] + (params["b_q_HK"][h] if "b_q_HK" in params else 0)
            k = context[b] @ params["w_k_MNK"][:, n] + (params["b_k_NK"][n] if "b_k_NK" in params else 0)
            v = context[b] @ params["w_v_MNK"][:, n] + (params["b_v_NK"][n] if "b_v_NK" in params else 0)
            logits = norm(q, "norm_q") @ norm(k, "norm_k").T / np.sqrt(head_dim)
            logits[:, ~mask[b]] = -np.inf
            out[b] += softmax(logits) @ v @ params["w_o_HKD"][h]
    return out + params.get("b_o_D", 0)


def scores(params, x_SD):
    return softmax(x_SD @ params["w_router_DE"])


def expert(params, number, x_D):
    up = x_D @ params["w_up_EDF"][number] + (params["b_up_EF"][number] if "b_up_EF" in params else 0)
    return gelu(up) @ params["w_down_EFD"][number] + (params["b_down_ED"][number] if "b_down_ED" in params else 0)


def algorithm_1(scores_SE, slots):
    """(token, expert, experts that share the gate): each expert takes its best tokens, among equals the first."""
    tokens, experts = scores_SE.shape
    return [
        (token, number, None)
        for number in range(experts)
        for token in sorted(range(tokens), key=lambda s, e=number: (-scores_SE[s, e], s))[:slots]
    ]


def gshard_top2(scores_SE, slots):
    """(token, expert, experts that share the gate): each token asks two, all first choices before any second."""
    ranked = [sorted(range(len(row)), key=lambda e, row=row: (-row[e], e)) for row in scores_SE]
    served, room = [], [slots] * scores_SE.shape[1]
    for choice in range(2):
        for token, order in enumerate(ranked):
            if room[order[choice]]:
                room[order[choice]] -= 1
                served.append((token, order[choice], order[:2]))
    return served


def choices(params, x_BSD, group, slots, kind):
    """What `algorithm_1` or `gshard_top2` chooses in every group, first tokens of the groups added."""
    choose = {"expert_choice": algorithm_1, "token_choice": gshard_top2}[kind]
    x_RD = x_BSD.reshape(-1, x_BSD.shape[-1])
    return [
        (start + token, number, shared)
        for start in range(0, len(x_RD), group)
        for token, number, shared in choose(scores(params, x_RD[start : start + group]), slots)
    ]


def sparse_outputs(params, x_BSD, chosen):
    """The sparse layer after its choices are made, one token and one expert at a time."""
    x_RD = x_BSD.reshape(-1, x_BSD.shape[-1])
    scores_RE, out_RD = scores(params, x_RD), np.zeros_like(x_RD)
    for token, number, shared in chosen:
        gate = scores_RE[token, number] / (scores_RE[token, shared].sum() if shared else 1)
        out_RD[token] += gate * expert(params, number, x_RD[token])
    return out_RD.reshape(x_BSD.shape)


def moe(params, x_BSD, group, slots, kind):
    """The whole layer: outputs and experts per token."""
    chosen = choices(params, x_BSD, group, slots, kind)
    experts_R = np.bincount([token for token, _, _ in chosen], minlength=x_BSD[..., 0].size)
    return sparse_outputs(params, x_BSD, chosen), experts_R.reshape(x_BSD.shape[:2])


class Layer(NamedTuple):
    """What a sparse layer gives: outputs, experts per token, choices as (token, expert, the token's own choices), and losses."""

    out_BSD: np.ndarray
    experts_BS: np.ndarray
    chosen: list
    dropped: float
    losses: dict
    threshold_E: np.ndarray | None
    asked_E: np.ndarray | None


def served(scores_SE, slots, choices, bias_E=0):
    """((token, expert, the token's choices) of every request that finds room, how often each expert was asked)."""
    ranked = [sorted(range(len(row)), key=lambda e, row=row: (-row[e], e))[:choices] for row in scores_SE + bias_E]
    found, room = [], [slots] * scores_SE.shape[1]
    for choice in range(choices):
        for token, order in enumerate(ranked):
            if room[order[choice]]:
                room[order[choice]] -= 1
                found.append((token, order[choice], order))
    return found, np.bincount(np.ravel(ranked), minlength=scores_SE.shape[1])


def router_logits(params, inputs, reads, router):
    """(B, S, E), one token and one expert at a time."""
    read = {"modulated": "x", "normed_time": "tokens", "start": "start"}[reads]
    x_BSD = inputs[read] if reads == "modulated" else layer_norm(inputs[read])
    w = params["w_router_DE"]
    out = np.zeros((*x_BSD.shape[:2], w.shape[1]))
    for b, s, e in np.ndindex(out.shape):
        x, column = x_BSD[b, s], w[:, e]
        out[b, s, e] = x @ column / (np.linalg.norm(x) * np.linalg.norm(column) if router == "cosine" else 1)
        if reads == "normed_time":
            out[b, s, e] += inputs["time"][b] @ params["w_time_DE"][:, e]
    return out


def any_expert(params, number, x_D):
    """An expert with or without a gate."""
    if "w_gate_EDF" not in params:
        return expert(params, number, x_D)

    def bias(name):
        return params[name][number] if name in params else 0

    up = x_D @ params["w_up_EDF"][number] + bias("b_up_EF")
    gate = silu(x_D @ params["w_gate_EDF"][number] + bias("b_gate_EF"))
    return (gate * up) @ params["w_down_EFD"][number] + bias("b_down_ED")


def _choices_of(values, likely, passed, spec, bias_E=0):
    """(choices, how many there would be with room for all, thresholds, shares of requests) of one image, (S, E) of all."""
    tokens, experts = values.shape
    slots = math.ceil(tokens * spec.capacity_factor / experts)
    room = min(tokens, math.ceil(slots * spec.most))
    best = [sorted(range(tokens), key=lambda s, e=e: (-values[s, e], s)) for e in range(experts)]
    if spec.routing in ("token_choice", "top_k"):
        chosen, asked_E = served(values, slots, spec.top_k, bias_E)
        return chosen, tokens * spec.top_k, None, asked_E / asked_E.sum()
    if spec.routing == "expert_race":
        least = np.full(experts, sorted(values.ravel())[-experts * slots]) if passed is None else passed
        wins = [[s for s in best[e] if values[s, e] >= least[e]] for e in range(experts)]
        if passed is None:
            return [(s, e, None) for e in range(experts) for s in wins[e][:room]], sum(map(len, wins)), least, None
    elif passed is not None and likely is None:  # expert choice, matched to training
        wins = [[s for s in best[e] if values[s, e] >= passed[e]] for e in range(experts)]
    elif passed is not None:  # DiffMoE, of an image alone
        wins = [best[e][: int((likely[:, e] > passed[e]).sum())] for e in range(experts)]
    if passed is not None:
        taken = sorted(((s, e, None) for e in range(experts) for s in wins[e][:room]), key=lambda t: -values[t[:2]])
        return taken[: experts * slots], sum(map(len, wins)), passed, None
    by = values if likely is None else likely
    least = [sorted(by[:, e])[-slots] for e in range(experts)] if spec.record or likely is not None else None
    return [(s, e, None) for s, e, _ in algorithm_1(values, slots)], experts * slots, least, None


def sparse_layer(params, inputs, reads, spec, chosen=None):
    """The layer with every option, images routed alone; `chosen` of an earlier call keeps the choices."""
    logits = router_logits(params, inputs, reads, spec.router)
    values = {"softmax": softmax, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "identity": lambda x: x}[spec.score](
        logits
    )
    images, tokens, experts = logits.shape
    seen = inputs.get("seen", inputs["x"])  # by the predictor, to which no gradient goes
    predicted = mlp(params["predictor"], seen, silu) if "predictor" in params else None
    likely = None if predicted is None else 1 / (1 + np.exp(-predicted))
    passed = params.get("threshold_E") if spec.by_threshold else None
    fresh, wanted, thresholds, asked = zip(
        *(
            _choices_of(values[b], None if likely is None else likely[b], passed, spec, params.get("bias_E", 0))
            for b in range(images)
        ),
        strict=True,
    )
    chosen = fresh if chosen is None else chosen
    out, experts_BS = np.zeros_like(inputs["x"]), np.zeros((images, tokens), int)
    taken = np.zeros(logits.shape)
    for b in range(images):
        for s, e, _ in chosen[b]:
            taken[b, s, e] = 1
    for b in range(images):
        for s, e, own in chosen[b]:
            among = np.flatnonzero(taken[b, s]) if own is None else own
            gate = values[b, s, e] / (values[b, s, among].sum() if spec.gate == "normalized" else 1)
            out[b, s] += spec.gate_scale * gate * any_expert(params, e, inputs["x"][b, s])
            experts_BS[b, s] += 1
    if "shared" in params:
        shared, x = params["shared"], inputs["x"]
        if "w_gate_DF" in shared:
            up = silu(x @ shared["w_gate_DF"] + shared.get("b_gate_F", 0)) * (
                x @ shared["w_up_DF"] + shared.get("b_up_F", 0)
            )
            out += up @ shared["w_down_FD"] + shared.get("b_down_D", 0)
        else:
            out += mlp(shared, x)
    share = values / values.sum(-1, keepdims=True)
    balance = [experts * (a * share[b].mean(0)).sum() for b, a in enumerate(asked) if a is not None]
    found = {"balance": np.mean(balance) if balance else 0.0}
    found["z"] = np.mean(np.log(np.exp(logits).sum(-1)) ** 2)
    both, p = (np.einsum("bse,bsj->ej", a, a) for a in (taken, softmax(logits)))
    weight = np.zeros((experts, experts))
    off = max(both.sum() - np.trace(both), 1)  # where no token has two experts, nothing is divided
    for i, j in np.ndindex(weight.shape):
        weight[i, j] = experts * both[i, i] / np.trace(both) if i == j else (experts**2 - experts) * both[i, j] / off
    found["similarity"] = (weight * p).sum() / (images * tokens)
    if predicted is not None:
        found["predictor"] = np.mean(np.log(1 + np.exp(predicted)) - taken * predicted)
    dropped = np.mean([(many - len(one)) / max(1, many) for many, one in zip(wanted, chosen, strict=True)])
    least = None if thresholds[0] is None else np.mean(thresholds, axis=0)
    shares = np.mean(asked, axis=0) if spec.bias_rate else None
    return Layer(out, experts_BS, chosen, dropped, found, least, shares)


def sinusoid(value):
    """256 numbers of a time in thousandths, or of a side in pixels: cosines, then sines."""
    angles = value * 10000.0 ** (-np.arange(128) / 128)
    return np.concatenate([np.cos(angles), np.sin(angles)])


def positions(spec, rows, columns):
    """Sines and cosines of the column, then of the row, one token at a time."""
    by_area = spec.tokens_per_side / math.sqrt(rows * columns)
    stretch_y, stretch_x = (
        (by_area, by_area)
        if spec.position_fit == "area"
        else (spec.tokens_per_side / rows, spec.tokens_per_side / columns)
    )
    quarter = spec.width // 4
    rates = 10000.0 ** (-np.arange(quarter) / quarter)
    angles = [(x * stretch_x * rates, y * stretch_y * rates) for y in range(rows) for x in range(columns)]
    return np.array([[*np.sin(x), *np.cos(x), *np.sin(y), *np.cos(y)] for x, y in angles])


def patches(image_YXZ, patch):
    """Patches of one image, row by row, each as its rows of pixels one after the other."""
    rows, columns = (n // patch for n in image_YXZ.shape[:2])
    return np.array(
        [
            image_YXZ[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch].ravel()
            for row in range(rows)
            for column in range(columns)
        ]
    )


def modulation(params, time):
    """Vectors (B, A, D): mapped from the time embedding (B, D), or a table beside what is shared (B, A or 1, D)."""
    if "w_IAD" not in params:
        return time + params["b_AD"]
    return np.einsum("bi,iad->bad", silu(time), params["w_IAD"]) + params["b_AD"]


def block(params, tokens, time, text, mask, factor):
    """(tokens, router scores and experts per token where it is sparse)."""
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (
        vector[:, None] for vector in modulation(params["modulation"], time).swapaxes(0, 1)
    )
    everywhere = np.ones(tokens.shape[:2], bool)
    x = layer_norm(tokens) * (1 + scale_a) + shift_a
    tokens = tokens + gate_a * attention(params["attention"], x, x, everywhere)
    tokens = tokens + attention(params["cross_attention"], tokens, text, mask)
    x = layer_norm(tokens) * (1 + scale_f) + shift_f
    if "w_router_DE" not in params["ffn"]:
        return tokens + gate_f * mlp(params["ffn"], x), None
    slots = math.ceil(x.shape[1] * factor / params["ffn"]["w_router_DE"].shape[1])
    out, experts = moe(params["ffn"], x, x.shape[1], slots, "expert_choice")
    return tokens + gate_f * out, (scores(params["ffn"], x), experts)


def blocks_in_order(params, spec):
    """Parameters of every block, in the order they stand in the stages."""

    def of(tree, repeat):
        return {name: of(leaf, repeat) for name, leaf in tree.items()} if hasattr(tree, "items") else tree[repeat]

    return [
        of(stage["blocks"][i], repeat)
        for stage, (pattern, repeats, _) in zip(params["stages"].values(), spec.stages(), strict=True)
        for repeat in range(repeats)
        for i in range(len(pattern))
    ]


def dit(spec, params, inputs, factor=2.0, positions_SD=None):
    """The transformer of a DiTSpec with expert choice within each image.

    Returns: patches (B, S, P), and of every sparse block its scores (B, S, E) and experts per token (B, S).
    """
    x_BYXZ, t_B, text, mask = (np.asarray(a, np.float64) for a in inputs)
    params, mask = wide(params), mask.astype(bool)
    rows, columns = (side // spec.patch for side in x_BYXZ.shape[1:3])
    embedded = np.array([patches(image, spec.patch) for image in x_BYXZ]) @ params["patch_embed"]["w_PD"]
    tokens = embedded + params["patch_embed"]["b_D"]
    tokens = tokens + (positions(spec, rows, columns) if positions_SD is None else positions_SD)

    time = mlp(params["time_embed"]["mlp"], np.array([sinusoid(1000 * t) for t in t_B]), silu)
    if spec.size_embedding:
        height, width = 8 * x_BYXZ.shape[1], 8 * x_BYXZ.shape[2]
        sides = [mlp(params["size_embed"]["sides"], sinusoid(side), silu) for side in (height, width)]
        ratio = mlp(params["size_embed"]["ratio"], sinusoid(height / width), silu)
        time = time + np.concatenate([*sides, ratio])
    if spec.text_projection:
        text = mlp(params["text_projection"], text)
    single = spec.modulation == "adaln_single"
    shared = modulation(params["time_modulation"], time) if single else time

    routed = []
    in_order = blocks_in_order(params, spec)
    assert [("w_router_DE" in each["ffn"]) for each in in_order] == [
        bool(spec.sparse.num_experts) and i >= spec.sparse.first and (i - spec.sparse.first) % spec.sparse.every == 0
        for i in range(spec.num_blocks)
    ]
    for each in in_order:
        tokens, routing = block(each, tokens, shared, text, mask, factor)
        routed += [] if routing is None else [routing]
    shift, scale = modulation(params["out_modulation"], time[:, None] if single else time).swapaxes(0, 1)
    tokens = layer_norm(tokens) * (1 + scale[:, None]) + shift[:, None]
    return tokens @ params["w_out_DP"] + params["b_out_P"], routed
