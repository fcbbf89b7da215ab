"""The axis legend: what each letter of an array's suffix means, everywhere in ec_dit.

`tokens_BSD` is a batch of image tokens of the model's width. einsum strings use the same letters. Inside the model an axis is
this device's part of it, where the mesh splits it. `tests/test_architecture.py` holds every suffix to this table.
"""

AXES: dict[str, str] = {
    "B": "batch: images (and their captions)",
    "Y": "rows of latents, images and convolutions",
    "X": "columns, likewise",
    "Z": "channels of latents and images",
    "S": "image tokens of one sequence, or of one routing group",
    "P": "numbers in one patch: patch * patch * channels",
    "T": "text tokens",
    "M": "text width",
    "D": "model width",
    "I": "model width going in, beside D coming out",
    "H": "attention heads",
    "N": "key-value heads",
    "K": "head dim",
    "F": "feed-forward width",
    "G": "routing groups",
    "E": "experts",
    "J": "experts that a token asks for, the best first (token choice); a second axis of experts",
    "R": "requests of a routing group, in the order they are served (token choice); pairs of tokens and experts, the best first",
    "C": "capacity: tokens one expert takes from one group",
    "L": "stacked blocks",
    "W": "devices that share the experts: the one that a slot's token lies on",
    "U": "evaluations of the network on the way from noise to data, in their order",
    "A": "modulation vectors of a block (shift, scale, gate, twice)",
    "V": "vocabulary",
    "Q": "noise levels, from data to noise",
}
