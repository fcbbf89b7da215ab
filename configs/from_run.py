"""The config of a workdir, for another run that starts with its parameters: of a run, or of what `ec_dit.convert` wrote.

    python -m ec_dit.main --config=configs/from_run.py:runs/pixart_8e --workdir=runs/tuned --config.optimizer.learning_rate=2e-5

The structure is the source's; keys that are given behind it change the rest. Optimizer and steps begin anew.
"""

from ml_collections import ConfigDict

from ec_dit import presets


def get_config(arg: str = "") -> ConfigDict:
    """The run; arg is the workdir whose parameters it starts with."""
    return presets.from_run(arg)
