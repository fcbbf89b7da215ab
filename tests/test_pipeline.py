"""A whole published pipeline, tiny and random: prompts in, pictures out, against diffusers' own."""

import json

import numpy as np
import pytest

from ec_dit import convert, sample
from ec_dit.sampling.generator import image_noise
from tests import helpers
from tests.encoders.text_folders import write_t5_tokenizer
from tests.pixart_folders import SIZES

pytestmark = [pytest.mark.slow, pytest.mark.extra("conformance"), pytest.mark.xdist_group("pipeline")]

PROMPTS = ["A Red circle", "two blue cubes on a table"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """(diffusers' pipeline, its folder)."""
    import torch
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    folder = tmp_path_factory.mktemp("pipeline")
    write_t5_tokenizer(folder / "spiece")
    torch.manual_seed(0)
    text_encoder = T5EncoderModel(
        T5Config(vocab_size=480, d_model=10, d_kv=6, d_ff=24, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu")
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
    )
    transformer = PixArtTransformer2DModel(**SIZES)
    with torch.no_grad():
        for model in (text_encoder, vae, transformer):
            for weight in model.parameters():
                weight.add_(0.02 * torch.randn_like(weight))
    made = PixArtAlphaPipeline(
        tokenizer=T5Tokenizer.from_pretrained(folder / "spiece"),
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear"),
    )
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(folder / "saved")
    (folder / "saved" / "tokenizer" / "spiece.model").write_bytes((folder / "spiece" / "spiece.model").read_bytes())
    return made, folder / "saved"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pictures_of_a_converted_pipeline_are_those_of_diffusers(pipeline, tmp_path, capsys):
    import torch

    theirs, folder = pipeline
    words = ["--from=pixart", f"--path={folder}", f"--out={tmp_path / 'run'}"]
    assert convert.main(["convert", *words]) == 0, capsys.readouterr().err
    told = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (told["text"]["length"], told["text"]["path"]) == (120, str(folder / "text_encoder"))
    words = [f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--num=1", "--steps=4", "--batch_size=2"]
    assert sample.main(["sample", *words, *(f"--prompt={prompt}" for prompt in PROMPTS)]) == 0, capsys.readouterr().err

    noise = np.stack([image_noise(0, prompt, 0, (8, 8, 4)).transpose(2, 0, 1) for prompt in PROMPTS])
    expected = theirs(
        PROMPTS,
        num_inference_steps=4,
        guidance_scale=4.5,
        height=64,
        width=64,
        latents=torch.from_numpy(noise),
        use_resolution_binning=False,
        clean_caption=False,
        output_type="np",
    ).images
    helpers.assert_drawn(tmp_path / "out", expected)


def test_what_is_missing_is_asked_for(pipeline, tmp_path, capsys):
    _, folder = pipeline
    (tmp_path / "alone").symlink_to(folder / "transformer")  # without the pipeline round it
    words = ["--from=pixart", f"--path={tmp_path / 'alone'}", f"--out={tmp_path / 'run'}"]
    assert convert.main(["convert", *words]) == 0
    words = [
        "sample",
        f"--workdir={tmp_path / 'run'}",
        f"--out={tmp_path / 'out'}",
        "--prompt=x",
        "--num=1",
        "--steps=2",
    ]
    text, vae = f"--text_encoder={folder / 'text_encoder'}", f"--autoencoder={folder / 'vae'}"
    for given, message in (
        ([text], "name its folder with --autoencoder"),
        ([vae], "separated by commas, with --text_encoder."),
        ([vae, f"--text_encoder={folder / 'vae'}"], "vae"),
        ([text, f"--autoencoder={folder / 'text_encoder'}"], "text_encoder"),
    ):
        assert sample.main([*words, *given]) == 2
        assert message in capsys.readouterr().err
    assert sample.main([*words, text, vae]) == 0


def test_another_noise_is_refused(pipeline, tmp_path, capsys):
    _, folder = pipeline
    for part in ("model_index.json", "transformer"):
        (tmp_path / part).symlink_to(folder / part)
    (tmp_path / "scheduler").mkdir()
    found = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(found | {"beta_schedule": "scaled_linear"}))
    words = ["convert", "--from=pixart", f"--path={tmp_path}"]
    assert convert.main([*words, f"--out={tmp_path / 'run'}"]) == 2
    assert f"{path}: beta_schedule is 'scaled_linear'; supported: 'linear'" in capsys.readouterr().err
    path.write_text(json.dumps(found | {"_class_name": "LCMScheduler"}))
    assert convert.main([*words, "--text_length=5", f"--out={tmp_path / 'run'}"]) == 2
    assert "_class_name is 'LCMScheduler'" in capsys.readouterr().err
    path.unlink()
    assert convert.main([*words, f"--out={tmp_path / 'run'}"]) == 0
