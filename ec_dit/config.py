"""Every configuration key with its default, meaning and unit.

A file in configs/ starts from `default()` and changes what differs; a command line changes more (`overrides.py`). What values a
key may have is checked in `checks.py`.
"""

import json
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from ec_dit.core import json_file
from ec_dit.core.errors import did_you_mean, shortened

_ADVICE = "Bring it back as it was; the settings of a run also stand in its checkpoints."


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


# What may change between the runs of one workdir: nothing here alters what a step computes, but for rounding.
RESUMABLE = (
    "name",
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
    "model.remat",
    "moe.combine",
)

_MEMORY = (
    "with fewer devices, or less memory, give model.remat=full instead, and more of them to mesh.fsdp or mesh.expert than "
    "to mesh.data"
)
# Why what looks as if it could change may not.
_BECAUSE = {
    "train.accumulate": f"each micro-batch draws noise and forms routing groups of its own; {_MEMORY}",
    "moe.group_size": f"it decides which tokens compete for an expert; {_MEMORY}",
    "train.batch_size": f"it decides which images make a step; {_MEMORY}",
}

FREE = ("data.options", "tpu_options")  # sections of which a config may hold any keys


@dataclass(frozen=True)
class Use:
    """What keys are for: they do nothing unless the value of another key is one of some, or none of some.

    Attributes:
        keys: separated by spaces.
        other: the key that decides.
        values: its values with which they do something; without, where `excluded`.
    """

    keys: str
    other: str
    values: tuple[Any, ...]
    excluded: bool = False

    def applies(self, config: ConfigDict) -> bool:
        """Whether the keys do something."""
        return (get(config, self.other) in self.values) != self.excluded


_USES = (
    Use("moe.capacity_factor moe.group_size moe.combine moe.first moe.every", "moe.routing", ("dense",), excluded=True),
    Use("sample.capacity_factor sample.group_size", "moe.routing", ("dense",), excluded=True),
    Use("moe.gate", "moe.routing", ("expert_choice",)),
    Use("moe.aux_weight", "moe.routing", ("token_choice",)),
    Use("text.tower_blocks text.tower_heads", "text.encoder", ("tower",)),
    Use("text.path text.lower", "text.encoder", ("cached",)),
    Use("data.autoencoder data.normalize data.posterior", "data.space", ("latents",)),
    Use("data.crop", "data.space", ("pixels",)),
    Use("data.path data.workers data.flip", "data.source", ("synthetic",), excluded=True),
    Use("flow.time_mean flow.time_std", "flow.path", ("rectified",)),
    Use("sample.spacing", "flow.path", ("ddpm",)),
    Use("optimizer.adam_learning_rate", "optimizer.name", ("muon",)),
)


def unused(config: ConfigDict) -> dict[str, Use]:
    """Keys that do nothing beside the other values of a config, with what they are for."""
    return {key: use for use in _USES if not use.applies(config) for key in use.keys.split()}


def get(config: ConfigDict, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def put(config: ConfigDict, key: str, value: Any) -> None:
    """Sets a dotted key."""
    section, _, name = key.rpartition(".")
    (get(config, section) if section else config)[name] = value


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of every leaf."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value}
    return flat


def to_json(config: ConfigDict) -> str:
    """All keys, sorted, as JSON."""
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2, sort_keys=True)


def from_json(text: str | bytes, source: str = "the saved config", advice: str = _ADVICE) -> ConfigDict:
    """The inverse of `to_json`; keys that a newer version added take their defaults.

    Args:
        source: the file that it stood in, for messages.
        advice: what to do about a damaged one.

    Raises:
        DamageError: if the text is no such JSON; names the key.
    """
    config = default()
    saved = json_file.parse(text if isinstance(text, bytes) else text.encode(), source, advice)
    with json_file.whole(source, advice):
        _fill(config, saved, "")
    return config


def _fill(section: ConfigDict, saved: Any, prefix: str) -> None:
    """Sets the keys of a section from decoded JSON; ValueError where it holds anything else."""
    for name, value in saved.items():
        key = prefix + name
        if key in FREE:
            if not isinstance(value, dict) or any(isinstance(item, dict) for item in value.values()):
                raise ValueError(f"{key} is {shown(value)}, but must be a section of keys")
            section[name] = ConfigDict(value)
        elif name not in section:
            raise ValueError(f"there is no key {key} in this version{did_you_mean(key, flatten(default()))}")
        elif not isinstance(section[name], ConfigDict):
            section[name] = fit(key, value, section[name])
        elif isinstance(value, dict):
            _fill(section[name], value, f"{key}.")
        else:
            raise ValueError(f"{key} is {shown(value)}, but must be a section of keys")


TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list"}


def fit(key: str, value: Any, like: Any) -> Any:
    """A key's value as its default has it: whole numbers become floats where that is one, and lists tuples.

    Raises:
        ValueError: naming the key, if it is of another kind.
    """
    wrong = ValueError(f"{key} is {shown(value)}, but must be {TYPES[type(like)]}")
    if isinstance(value, bool) != isinstance(like, bool):
        raise wrong
    if isinstance(like, float) and isinstance(value, int):
        try:
            return float(value)
        except OverflowError:
            raise wrong from None
    if isinstance(like, tuple) and isinstance(value, list):
        return tuple(value)
    if not isinstance(value, type(like)):
        raise wrong
    return value


def shown(value: Any) -> str:
    """A wrong value for a message."""
    return shortened(repr(value))


def difference(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Lines 'key: old -> new' for every key that must not change within one workdir but did, if it does anything in either."""
    a, b = (flatten(ConfigDict(json.loads(to_json(c)))) for c in (old, new))
    free = RESUMABLE if new.optimizer.schedule == "constant" else tuple(k for k in RESUMABLE if k != "train.steps")
    idle = unused(old).keys() & unused(new).keys()
    return [
        f"{key}: {a.get(key, '(none)')} -> {b.get(key, '(none)')}" + (f" ({_BECAUSE[key]})" if key in _BECAUSE else "")
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and key not in idle and not any(key == f or key.startswith(f + ".") for f in free)
    ]
