"""Our own models as safetensors: every tensor goes by our name, the blocks one by one, in the order in which they run."""

from collections.abc import Iterable

from ec_dit.core.name_map import SAME, Entry, Table
from ec_dit.models.spec import DiTSpec, TowerSpec

STEM = "model"


def entries(names: Iterable[str], spec: DiTSpec, tower: TowerSpec | None) -> Table:
    """Where the parameters `names` of a TextToImage stand: dit.blocks.3.ffn.w_up_EDF and the like."""
    stacks = {}
    first = 0
    for stage, (pattern, repeats) in enumerate(spec.stages()):
        for place in range(len(pattern)):
            numbers = [first + place + len(pattern) * repeat for repeat in range(repeats)]
            stacks[f"dit/stages/{stage}/blocks/{place}/"] = ("dit.blocks", numbers)
        first += len(pattern) * repeats
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
