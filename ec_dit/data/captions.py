"""What is made of a caption before, and while, text encoders read it; the same in preparing, training and sampling."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ec_dit.core.settings import SIZE, key, only

Join = Literal["sd3", "flux"]
Padding = Literal["masked", "read"]
CAPTION = "{caption}"  # in a template
_CACHED = only("text.encoder", "cached")


def _template(value: str) -> str | None:
    good = not value or value.count(CAPTION) == 1
    return None if good else f"give a text with {CAPTION} in it, once"


@dataclass(frozen=True)
class CaptionSpec:
    """Keys of the `text` section that say how published encoders read captions."""

    lower: bool = key(
        False, "prompts in lower case and without space around them (PixArt's)", use=_CACHED, params="meaning"
    )
    join: Join = key(
        "sd3",
        "of several encoders: sd3, CLIPs side by side and T5 behind them; flux, T5's tokens and CLIP's pooled vector",
        use=_CACHED,
        params="meaning",
    )
    padding: Padding = key(
        "masked",
        "what fills up a short caption: masked, nobody reads it; read, as encoders make it (SD3)",
        use=_CACHED,
        params="meaning",
    )
    template: str = key(
        "",
        f"what encoders read in place of a caption, with {CAPTION} where it stands (a decoder's chat)",
        check=_template,
        use=_CACHED,
        params="meaning",
    )
    layer: int = key(
        0,
        "of a decoder, whose states are taken: those of so many layers before the last, without its norm; 0: the last states",
        at_least=0,
        at_most=SIZE,
        use=_CACHED,
        params="meaning",
    )

    def prompt(self, caption: str) -> str:
        """Gives what encoders read of a caption."""
        caption = caption.lower().strip() if self.lower else caption
        return self.template.replace(CAPTION, caption) if self.template else caption


PLAIN = CaptionSpec()


def caption_facts(spec: CaptionSpec) -> dict[str, Any]:
    """Gives a spec, or one that is more, as JSON."""
    return {name: value for name, value in asdict(spec).items() if name in CaptionSpec.__dataclass_fields__}
