"""What diffusers' schedulers say of the noise that a pipeline was trained with, and of how it is sampled from."""

import math
from collections.abc import Mapping
from typing import Any

from ec_dit.core.hub import fields, supported
from ec_dit.flow import ddpm

# Schedulers whose weights predict the noise of every level; not LCM's, which are distilled for a few steps.
_DDPM = tuple(
    f"{name}Scheduler"
    for name in (
        "DPMSolverMultistep DPMSolverSinglestep DDIM DDPM PNDM EulerDiscrete EulerAncestralDiscrete HeunDiscrete UniPCMultistep"
    ).split()
)


def check_ddpm(found: Mapping[str, Any], where: str) -> None:
    """Refuses levels of noise that are not PixArt's.

    Raises:
        UserError: naming the file and the key.
    """
    betas = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "trained_betas": None}
    kind = {"prediction_type": "epsilon", "num_train_timesteps": ddpm.LEVELS, "rescale_betas_zero_snr": (False, None)}
    fields(found, where, _class_name=str)
    supported(found, where, _class_name=_DDPM, **betas, **kind)


def flow_match(found: Mapping[str, Any], where: str, tokens: int, *, sigmas_given: bool) -> dict[str, float]:
    """Gives sample.time_shift, time_shift_rise and final_time of a flow-matching scheduler.

    A dynamic shift of type 'linear' stays as it is for `tokens`; no pipeline of ours has one.

    Args:
        tokens: of an image of the config's size.
        sigmas_given: whether the pipeline lays the times itself, in even steps; otherwise the scheduler does, down to the least
            time of a thousand, which it has shifted once before.

    Raises:
        UserError: naming the file and the key, for times of another kind.
    """
    fields(found, where, _class_name=str)
    off = dict.fromkeys(
        ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "stochastic_sampling"),
        (False, None),
    )
    supported(found, where, _class_name="FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000, **off)
    supported(found, where, shift_terminal=None, time_shift_type=("exponential", "linear"))
    told = fields(
        found,
        where,
        shift=1.0,
        use_dynamic_shifting=False,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
        time_shift_type="exponential",
    )
    least, shift, rise = 1 / 1000, float(told["shift"]), 0.0
    if told["use_dynamic_shifting"]:
        slope = (told["max_shift"] - told["base_shift"]) / (told["max_image_seq_len"] - told["base_image_seq_len"])
        mu = told["base_shift"] + slope * (tokens - told["base_image_seq_len"])
        shift, rise = (math.exp(mu), slope) if told["time_shift_type"] == "exponential" else (mu, 0.0)
    else:
        least = shift * least / (1 + (shift - 1) * least)
    return {"time_shift": shift, "time_shift_rise": rise, "final_time": 0.0 if sigmas_given else least}
