"""Every configuration key with its default, meaning and unit.

A file in configs/ starts from `default()` and changes what differs. `smoke()` shrinks any config to what a CPU trains in
seconds. What values a key may have is checked in `checks.py`.
"""

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ec_dit.core.errors import UserError, did_you_mean


def default() -> ConfigDict:
    """The paper's recipe (batch 4096, 800 k steps, RMSProp, 256 px latents), without a model size."""
    c = ConfigDict()
    c.name = ""  # of the run, in logs and reports
    c.seed = 0  # of weights, data order, noise and dropping

    c.model = m = ConfigDict()
    m.width = 1152  # D
    m.num_blocks = 28
    m.num_heads = 18
    m.num_kv_heads = 6  # grouped key-value heads, in self- and cross-attention
    m.head_dim = 64
    m.ffn_factor = 4  # F / D
    m.patch = 2  # latent pixels per side of a token
    m.modulation = "adaln"  # adaln: each block its own map of time; adaln_single: one for all (PixArt-alpha)
    m.qk_norm = False  # RMSNorm on queries and keys
    m.bias = False  # biases in attention and feed-forward layers
    m.position_scale = 1.0  # divides positions (PixArt-alpha's interpolation scale); < 1 tells few patches apart
    m.position_fit = "area"  # of sizes other than data.size: area stretches both sides alike; sides each (PixArt-alpha)
    m.text_projection = False  # a two-layer perceptron on the text before cross-attention (PixArt-alpha)
    m.size_embedding = False  # the picture's sides and aspect ratio enter beside the time (PixArt-alpha at 1024 pixels)
    m.learned_sigma = False  # the output has a second half, a variance, that nothing uses (PixArt-alpha's weights)
    m.attention = "xla"  # kernel: xla, or cudnn on GPUs in bfloat16
    m.remat = "none"  # what the backward pass recomputes: none, dots (all but weight products), full
    m.dtype = "auto"  # of the computation: auto (bfloat16 on accelerators, float32 on CPU), bfloat16, float32

    c.moe = e = ConfigDict()
    e.routing = "dense"  # expert_choice, token_choice (GShard top-2), dense
    e.num_experts = 0
    e.first = 1  # index of the first sparse block
    e.every = 2  # a sparse block every so many
    e.capacity_factor = 2.0  # f_c: experts per token on average
    e.group_size = "1024"  # tokens routed together in training: a number, or 'image'
    e.combine = "scatter"  # how outputs return to tokens: scatter, one_hot
    e.gate = (
        "score"  # expert_choice: score (the paper's); normalized over the experts that took a token (upcycled models)
    )
    e.aux_weight = 0.01  # of the load-balancing loss (token_choice only)

    c.text = t = ConfigDict()
    t.encoder = "cached"  # cached: embeddings stored with the data; tower: a small text encoder trained jointly
    t.width = 1280  # M; OpenCLIP bigG's text tower, the nearest public encoder to the paper's
    t.length = 77  # T, tokens per caption
    t.path = (
        ""  # folders of the published encoders of cached embeddings, comma-separated; sampling reads prompts with them
    )
    t.lower = False  # prompts in lower case and without space around them (PixArt's)
    t.tower_blocks = 2
    t.tower_heads = 4

    c.data = d = ConfigDict()
    d.source = ""  # shapes, emoji, folder, ...; synthetic: random latents, to measure speed; '' = what data.path holds
    d.path = ""  # prepared data set (python -m ec_dit.prepare); made by itself for shapes and emoji where it is missing
    d.space = "latents"  # what the model denoises: pixels, or latents of an autoencoder
    d.size = 32  # rows and columns of what the model denoises: pixels, or latent pixels (image / 8)
    d.channels = 4  # Z: 3 for pixels, 4 or 16 for latents
    d.autoencoder = ""  # folder of the published autoencoder of the latents: what sampling draws pictures with
    d.normalize = "channel"  # latents: channel (mean 0, deviation 1, as measured over the data set), none
    d.posterior = "sample"  # latents: sample (drawn anew each time from what the autoencoder gives), mean
    d.crop = "center"  # pixels: center, random
    d.flip = True  # mirror images whose caption allows it; of latents, where the mirror image's are stored
    d.workers = 0  # loader processes; 0 loads in the trainer's own
    d.options = ConfigDict()  # of the source, where the trainer prepares the data itself

    c.flow = f = ConfigDict()
    f.path = (
        "rectified"  # rectified: straight lines from data to noise (the paper's); ddpm: 1000 levels of noise (PixArt)
    )
    f.prediction = "velocity"  # velocity (the paper's); data: the clean image, a velocity in the loss; ddpm: epsilon
    f.time_mean = 0.0  # rectified: t = sigmoid(u), u ~ N(mean, std); 0 = data, 1 = noise. ddpm draws levels evenly
    f.time_std = 1.0
    f.mask_ratio = 0.5  # share of image tokens dropped in training
    f.caption_dropout = 0.1  # share of captions replaced by the empty one, for classifier-free guidance

    c.optimizer = o = ConfigDict()
    o.name = "rmsprop"  # rmsprop (with momentum), adamw, muon (hidden matrices; the rest by NAdam)
    o.learning_rate = 1e-4
    o.warmup_steps = 20_000
    o.schedule = "constant"  # after warm-up: constant, cosine (to zero at train.steps)
    o.momentum = 0.9  # rmsprop and muon (its NAdam has 0.9); the first-moment decay of adamw
    o.decay = 0.999  # of the second moment (rmsprop, adamw, and the NAdam beside muon)
    o.eps = 1e-8
    o.weight_decay = 0.0  # decoupled: learning_rate x this, of every weight matrix
    o.adam_learning_rate = 1e-3  # muon only: of its NAdam, which takes everything that is no hidden matrix
    o.clip_norm = 1.0  # global gradient norm; 0 = no clipping
    o.ema_decay = 0.9999  # ramps up as min(decay, (1 + step) / (10 + step))

    c.train = r = ConfigDict()
    r.steps = 800_000
    r.batch_size = 4096  # images per step, over all devices
    r.accumulate = 1  # micro-batches per step
    r.init_from = ""  # workdir, of a run or of python -m ec_dit.convert, whose parameters a new run starts with

    c.mesh = g = ConfigDict()  # devices per axis; one of them -1: all that are left
    g.data = -1  # copies of the parameters
    g.fsdp = 1  # parts of each expert; of dense weights where expert = 1
    g.expert = 1  # parts of the experts, and of dense weights
    g.tensor = 1  # parts of heads and feed-forward width

    c.tpu_options = ConfigDict()  # of the TPU's compiler: what runs beside what
    c.topology = ""  # TPU slice this config is meant for, e.g. v5p:8x8x8

    c.checkpoint = k = ConfigDict()
    k.every = 1000  # steps between checkpoints; the last step is always saved
    k.keep = 3  # newest checkpoints kept
    k.asynchronous = True  # training goes on while a checkpoint is written

    c.log = w = ConfigDict()
    w.every = 50  # steps between progress lines and metrics
    w.validate_every = 5000  # steps between validation losses; 0 = never
    w.validate_images = 4096  # of each validation split
    w.sample_every = 10_000  # steps between sample grids; 0 = never
    w.trace_steps = 5  # steps of a profile, taken whenever a process of the run is sent SIGUSR1
    w.prompts = ()  # of the sample grids; () = captions of the validation split

    c.sample = s = ConfigDict()
    s.steps = 50
    s.sampler = "heun"  # rectified: euler, heun; both paths: ddim (on straight lines the same as euler), dpmpp_2m
    s.spacing = "linspace"  # which of ddpm's levels sampling visits: linspace, leading, trailing
    s.guidance = 3.0  # classifier-free guidance scale; 1 = off
    s.guidance_interval = (0.0, 1.0)  # times t at which guidance acts
    s.time_shift = 1.0  # > 1 spends more steps near noise (SD3, eq. 23)
    s.group_size = "pair"  # pair: conditional and unconditional tokens of one image; image: each by itself; or a number
    s.capacity_factor = 0.0  # 0 = as in training
    s.batch_size = 64  # images sampled at once; fixed, padded, so that it cannot change an image

    c.eval = v = ConfigDict()
    v.suites = ()  # run when training ends: shapes
    v.images_per_task = 40
    return c


# What may change between the runs of one workdir: nothing here alters what a step computes.
RESUMABLE = (
    "mesh",
    "checkpoint",
    "log",
    "sample",
    "eval",
    "topology",
    "data.workers",
    "data.path",
    "data.autoencoder",
    "text.path",
    "train.init_from",  # read before the first step alone
    "train.steps",
    "tpu_options",
    "model.attention",
)


def load(path: Path, argument: str = "") -> ConfigDict:
    """What `get_config(argument)` of a config file returns.

    Raises:
        UserError: if the file does not load, or defines no `get_config(arg)` that returns one.
    """
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no config file: it is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(argument)
    except UserError:
        raise
    except Exception as error:  # whatever a file of the user's may raise
        raise UserError(f"{path} is no config file that loads: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path} is no config file: get_config(arg) returns {type(config).__name__}, not a ConfigDict.")
    return config


def get(config: ConfigDict, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of every leaf."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value}
    return flat


def to_json(config: ConfigDict) -> str:
    """All keys, sorted, as JSON."""
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2, sort_keys=True)


def from_json(text: str) -> ConfigDict:
    """The inverse of `to_json`; keys that a newer version added take their defaults.

    Raises:
        UserError: if the text is no such JSON.
    """
    config = default()
    try:
        config.update(ConfigDict(json.loads(text)))
    except (ValueError, TypeError) as error:
        raise UserError(f"the saved config is damaged: {error}") from error
    return config


def difference(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Lines 'key: old -> new' for every key that must not change within one workdir but did."""
    a, b = (flatten(ConfigDict(json.loads(to_json(c)))) for c in (old, new))
    free = RESUMABLE if new.optimizer.schedule == "constant" else tuple(k for k in RESUMABLE if k != "train.steps")
    return [
        f"{key}: {a.get(key, '(none)')} -> {b.get(key, '(none)')}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and not any(key == f or key.startswith(f + ".") for f in free)
    ]


def check_overrides(config: ConfigDict, arguments: Iterable[str]) -> None:
    """Refuses `--config.key=value` arguments whose key does not exist, before absl meets them.

    Raises:
        UserError: naming the nearest valid key.
    """
    valid = flatten(config)
    for argument in arguments:
        key = argument.lstrip("-").partition("=")[0].removeprefix("config.")
        if not argument.startswith(("--config.", "-config.")) or key in valid:
            continue
        section = key.rpartition(".")[0]
        siblings = [name.removeprefix(f"{section}.") for name in valid if name.rpartition(".")[0] == section]
        also = f" Keys of {section}: {', '.join(siblings)}." if section and siblings else ""
        hint = did_you_mean(f"--config.{key}", [f"--config.{name}" for name in valid], cutoff=0.0)
        raise UserError(f"unknown key --config.{key}{hint}.{also}")


def smoke(config: ConfigDict) -> ConfigDict:
    """A few CPU steps of the same routing and structure: sparse pattern, key-value groups, modulation, optimizer.

    Sizes shrink, and the data become the embedded shapes in pixels with a jointly trained text tower, so that the run also
    samples. Batch and group shrink together: 8 masked images to a group, as in the paper.
    """
    heads_per_kv = config.model.num_heads // config.model.num_kv_heads
    config.name += "_smoke"
    config.model.update(
        width=32 * heads_per_kv, num_blocks=4, num_heads=2 * heads_per_kv, num_kv_heads=2, head_dim=16, patch=4
    )
    if config.moe.routing != "dense":
        config.moe.num_experts = min(8, config.moe.num_experts)
        config.moe.group_size = (
            "256"  # 8 images x 64 tokens x mask ratio 0.5, as in the paper; 4 images without masking
        )
    config.text.update(encoder="tower", width=64, length=24, tower_blocks=1, tower_heads=2)
    config.data.update(source="shapes", path="data/shapes_smoke", space="pixels", size=32, channels=3, workers=0)
    config.data.options = ConfigDict({"image_size": 48, "train": 256, "validation": 64, "novel": 16})
    config.optimizer.warmup_steps = 5
    config.train.update(steps=10, batch_size=16, accumulate=1)
    config.mesh.update(data=-1, fsdp=1, expert=1, tensor=1)
    config.checkpoint.every = 5
    config.log.update(every=1, validate_every=10, validate_images=16, sample_every=10)
    config.sample.update(steps=4, batch_size=8)
    config.eval.suites = ()
    return config
