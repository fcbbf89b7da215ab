"""The data of a run: opened, compared with what its config says of them, and brought into batches."""

import contextlib
import json
from collections.abc import Callable

from ec_dit.config import RunConfig, checks
from ec_dit.config.data import SYNTHETIC
from ec_dit.core import processes, settings
from ec_dit.core.differences import differences
from ec_dit.core.errors import UserError
from ec_dit.data import dataset as datasets
from ec_dit.data.captions import caption_facts
from ec_dit.data.dataset import Dataset
from ec_dit.data.loader import Loader
from ec_dit.data.rows import CACHE_BYTES, EncodedRows, PictureRows, Rows
from ec_dit.data.synthetic import SyntheticLoader
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.encoders import frozen
from ec_dit.preparation import registry, writing
from ec_dit.preparation.ownership import TakenError
from ec_dit.system.model import System

_CAPTIONS_CHECKED = 500


def open_data(config: RunConfig, say: Callable[[str], None]) -> Dataset | None:
    """The prepared data set; None for synthetic data. Embedded sources are prepared on first use, by one run at a time.

    Raises:
        UserError: if there is none and it cannot be made here.
    """
    checks.check_data_is_named(config)
    source, path = config.data.source, config.data.path
    if source == SYNTHETIC:
        return None
    if source in registry.DRAWN:
        with processes.first_goes_ahead("the data set"):  # the others find it, or prepare it on a disk of their own
            if not datasets.is_there(path):
                _prepare(config, say)
    data = datasets.open(path)
    processes.check_same(data.fingerprint, f"the data set at {path}")
    _check_kind(config, data)
    noted = {"source": data.report.source} | dict(data.report.options)
    wanted = ({"source": source} if source else {}) | dict(config.data.options)
    if source in registry.DRAWN:
        wanted.pop("path", None)  # of what was drawn; it is not read again, and may lie elsewhere now
    plain = json.loads(json.dumps(wanted))  # tuples become lists, as they are in the report
    wrong = [f"{each.name} {each.old} instead of {each.new}" for each in differences(noted, noted | plain)]
    if wrong:
        raise UserError(
            f"the data set at {path} has {', '.join(wrong)}: give another --config.data.path, or remove it."
        )
    return data


def _prepare(config: RunConfig, say: Callable[[str], None]) -> None:
    """Makes the data set of a source that draws its pictures."""
    name, path = config.data.source, config.data.path
    say(f"preparing {name} in {path}")
    source = registry.make_source(name, dict(config.data.options))
    first = processes.is_first()
    # One after the other. Where another run made something else meanwhile, the comparison with the config says so.
    with processes.alone(), contextlib.suppress(TakenError):
        report = writing.write(source, path, progress=first, say=say)  # waits for who makes it already
        say(report.table())


def _check_kind(config: RunConfig, data: Dataset) -> None:
    """Pictures or latents, tokens or embeddings: the data set must hold what the model takes."""
    pictures, space, text = data.encoding is None, config.data.space, config.text.encoder
    if pictures != (space == "pixels"):
        kind, mend = ("pictures", "with") if pictures else ("latents and embeddings", "without")
        raise UserError(
            f"{data.path} holds {kind}, but --config.data.space={space}: prepare it {mend} --vae and --text_encoder, "
            "or give another --config.data.path."
        )
    if pictures != (text == "tower"):
        wanted = "pictures: tower" if pictures else "latents and embeddings: cached"
        raise UserError(f"--config.text.encoder={text}, but {data.path} holds {wanted} is needed.")
    if not pictures:
        _check_encoding(config, data)


def _check_encoding(config: RunConfig, data: Dataset) -> None:
    """Compares what a data set was made with with what the config says of it.

    Raises:
        UserError: naming every difference.
    """
    assert data.encoding is not None
    facts = data.encoding.facts
    side = facts["pictures"]["resolution"] // facts["autoencoder"]["factor"]
    found = {
        "data.size": (side, f"pictures of {facts['pictures']['resolution']} pixels"),
        "data.channels": (facts["autoencoder"]["channels"], "latents"),
        "text.length": (facts["text"]["length"], "tokens of a caption"),
        "text.width": (facts["text"]["width"], "embeddings"),
        **{f"text.{name}": (facts["text"][name], "captions") for name in caption_facts(config.text)},
    }
    if config.text.pooled:
        found["text.pooled_width"] = (facts["text"]["pooled"], "pooled vectors of captions")
    wrong = [
        f"{what}: {key} {made} in the data, {settings.get(config, key)} in the config"
        for key, (made, what) in found.items()
        if made != settings.get(config, key)
    ]
    grid, patch = config.model.position_grid, config.model.patch
    if config.model.position_fit == "crop" and (side := max(map(max, data.shapes()), default=0)) > grid * patch:
        wrong.append(f"latents of {side} a side: model.position_grid {grid} has room for {grid * patch}")
    if path := config.data.autoencoder:
        wrong += filter(None, [frozen.autoencoder_difference(facts, path)])
    if config.text.path:
        wrong += filter(None, [frozen.text_difference(facts, frozen.folders(config.text.path))])
    if wrong:
        lines = "\n  ".join(wrong)
        raise UserError(
            f"the data set at {data.path} is not what this config trains on:\n  {lines}\n"
            "Change the config, or prepare the data again."
        )


def warn_of_cut_captions(data: Dataset, tokenizer: Tokenizer, length: int, say: Callable[[str], None]) -> None:
    """Says how many of the captions do not fit, if any do not."""
    records = data["train"]
    lengths = [tokenizer.length(records[i].caption) for i in range(min(_CAPTIONS_CHECKED, len(records)))]
    cut = sum(n > length for n in lengths) / len(lengths)
    if cut:
        say(
            f"warning: {100 * cut:.1f} % of the captions are cut at --config.text.length={length} tokens; "
            f"the longest of {len(lengths)} has {max(lengths)}"
        )


def make_loader(system: System, data: Dataset | None) -> Loader | SyntheticLoader:
    """This process's share of the training batches."""
    config = system.config
    d, t = config.data, config.text
    if data is None:
        return SyntheticLoader(
            (d.size, d.size, d.channels),
            t.length,
            t.width,
            t.pooled,
            batch_size=config.train.batch_size,
            seed=config.seed,
            share=system.share,
            pairs=config.objective.kind.needs_pairs,
        )
    return Loader(
        make_rows(system, data, "train", augment=True),
        batch_size=config.train.batch_size,
        seed=config.seed,
        workers=d.workers,
        share=system.share,
    )


def make_rows(system: System, data: Dataset, split: str, *, augment: bool) -> Rows:
    """The records of a split as the model takes them; those that are not augmented are cropped in the middle."""
    d = system.config.data
    if data.encoding is not None:
        mean_Z, std_Z = system.latent_scale
        return EncodedRows(
            data[split],
            mean_Z=mean_Z,
            std_Z=std_Z,
            posterior=d.posterior,
            flip=augment and d.flip,
            pooled=system.config.text.pooled > 0,
        )
    assert system.tokenizer is not None
    return PictureRows(
        data[split],
        system.tokenizer,
        image_size=d.size,
        text_length=system.config.text.length,
        crop=d.crop if augment else "center",
        flip=augment and d.flip,
        cache_bytes=CACHE_BYTES // max(1, d.workers) if augment else 0,
    )
