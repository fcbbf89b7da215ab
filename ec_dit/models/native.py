"""Our own models as safetensors: every tensor goes by our name, the blocks one by one, in the order in which they run."""

from collections.abc import Iterable

from ec_dit.core.name_map import SAME, Entry, Table
from ec_dit.models.spec import DiTSpec
from ec_dit.models.stages import block_numbers
from ec_dit.models.text_spec import TowerSpec

STEM = "model"


def entries(names: Iterable[str], spec: DiTSpec, tower: TowerSpec | None) -> Table:
    """Where the parameters `names` of a TextToImage stand: dit.blocks.3.ffn.w_up_EDF and the like."""
    blocks = block_numbers(spec.stages())
    stacks = {f"dit/{start}": ("dit.blocks", numbers) for start, numbers in blocks.items()}
    if tower is not None:
        stacks["tower/stack/blocks/"] = ("tower.blocks", list(range(tower.num_blocks)))

    found = {}
    for name in names:
        start = next((start for start in stacks if name.startswith(start)), "")
        rest = name.removeprefix(start).replace("/", ".")
        if start:
            theirs, numbers = stacks[start]
            found[name] = Entry(tuple(f"{theirs}.{number}.{rest}" for number in numbers), SAME, stacked=True)
        else:
            found[name] = Entry((rest,), SAME, stacked=False)
    return found
