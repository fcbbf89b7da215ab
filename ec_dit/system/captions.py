"""Captions as a model takes them: by its own tokenizer, or by the published encoders that its data were made with."""

from collections.abc import Sequence

from ec_dit.core.errors import UserError
from ec_dit.data.batch import Text
from ec_dit.data.captions import CaptionSpec, caption_facts
from ec_dit.encoders import frozen
from ec_dit.encoders.text import TextEncoders
from ec_dit.system.model import System


class Captions:
    """Reads captions for a system; with published encoders it loads them when it is made.

    Raises:
        UserError: the config names no encoders, or they are not what the model was made for.
    """

    def __init__(self, system: System):
        self._system = system
        self._encoders = load_encoders(system) if system.tokenizer is None else None

    def __call__(self, captions: Sequence[str]) -> Text:
        """Gives captions as the model takes them."""
        t = self._system.config.text
        if self._encoders is not None:
            text = Text(*self._encoders.encode(captions))
            return text if t.pooled else text._replace(pooled_BM=None)
        assert self._system.tokenizer is not None
        return Text(*self._system.tokenizer.encode(captions, t.length))

    def cuts(self, caption: str) -> bool:
        """Tells whether the model does not read a caption to its end."""
        if self._encoders is not None:
            return self._encoders.cut([caption]) > 0
        assert self._system.tokenizer is not None
        return self._system.tokenizer.length(caption) > self._system.config.text.length


def load_encoders(system: System) -> TextEncoders:
    """Loads the published encoders of cached embeddings.

    Raises:
        UserError: if the config names none, or they are not what the model was made for.
    """
    t = system.config.text
    made = system.encoding.facts["text"] if system.encoding else {}
    paths = frozen.folders(t.path) if t.path else made.get("paths")
    if not paths:
        raise UserError(
            "this model reads the embeddings of a published text encoder, and prompts need it: name its folder, or folders "
            "separated by commas, with --config.text.path."
        )
    if system.encoding and (wrong := frozen.text_difference(system.encoding.facts, paths)):
        raise UserError(f"the captions that this model was trained on were {wrong} (--config.text.path).")
    frozen.check_noted(system.noted, texts=paths)
    spec = CaptionSpec(**{name: made[name] for name in caption_facts(t)}) if made else t
    encoders = TextEncoders.load(paths, t.length, system.mesh, system.dtype, spec)
    if (encoders.width, encoders.length) != (t.width, t.length):
        raise UserError(
            f"{', '.join(paths)} gives {encoders.length} embeddings of {encoders.width} numbers, but this model was made for "
            f"{t.length} of {t.width} (config keys text.length, text.width)."
        )
    if t.pooled not in (0, encoders.pooled_width):
        raise UserError(
            f"{', '.join(paths)} gives pooled vectors of {encoders.pooled_width} numbers, but this model was made for "
            f"{t.pooled} (config key text.pooled_width)."
        )
    return encoders
