"""Whole pipelines of other models than PixArt, tiny and random: converted, they draw what diffusers' own draw, and go back."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from ec_dit import convert, sample
from ec_dit.config import specs
from ec_dit.core import settings
from ec_dit.data.batch import Text
from ec_dit.runs.workdir import Workdir
from ec_dit.sampling import generator
from ec_dit.sampling.generator import image_noise
from tests import helpers, published_folders
from tests.encoders import test_qwen3, test_qwen_vae
from tests.encoders.text_folders import write_clip, write_t5

pytestmark = [pytest.mark.slow, pytest.mark.extra("conformance"), pytest.mark.xdist_group("published")]

PROMPTS = ["A Red circle", "two blue cubes on a table, and a very long rest that is cut somewhere"]
CLIP, T5, WIDTH = 20, 30, 48  # tokens; numbers of a token
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    """(diffusers' pipeline, its folder)."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

    root = tmp_path_factory.mktemp("sd3")
    projected = {"architectures": ["CLIPTextModelWithProjection"]}
    parts = {
        "": write_clip(root / "a", seed=1, **projected),
        "_2": write_clip(root / "b", seed=2, pad="!", hidden_act="gelu", hidden_size=24, **projected),
        "_3": write_t5(root / "c", d_model=WIDTH),
    }
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        shift_factor=0.3,
        scaling_factor=1.5,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    sizes = {"joint_attention_dim": WIDTH, "pooled_projection_dim": 24, **published_folders.SD35}
    made = StableDiffusion3Pipeline(
        transformer=published_folders.save("sd3", root / "transformer", **sizes),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.eval(),
        text_encoder=CLIPTextModelWithProjection.from_pretrained(parts[""]).eval(),
        tokenizer=CLIPTokenizer.from_pretrained(parts[""], model_max_length=CLIP),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(parts["_2"]).eval(),
        tokenizer_2=CLIPTokenizer.from_pretrained(parts["_2"], model_max_length=CLIP),
        text_encoder_3=T5EncoderModel.from_pretrained(parts["_3"]).eval(),
        tokenizer_3=T5Tokenizer.from_pretrained(parts["_3"]),
    )
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(root / "saved")
    shutil.copy(root / "c" / "spiece.model", root / "saved" / "tokenizer_3")
    return made, root / "saved"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pictures_of_sd3_from_prompts(sd3, tmp_path, capsys):
    """With both of its CLIPs and T5, padding that is read, its scheduler's times, and an autoencoder with a shift."""
    import torch

    theirs, folder = sd3
    words = ["--from=sd3", f"--path={folder}", f"--out={tmp_path / 'run'}", f"--text_length={CLIP + T5}"]
    assert convert.main(["convert", *words]) == 0, capsys.readouterr().err
    told = json.loads((tmp_path / "run" / "config.json").read_text())
    assert told["text"]["path"].split(",") == [str(folder / f"text_encoder{end}") for end in ("", "_2", "_3")]
    assert (told["text"]["padding"], told["text"]["pooled_width"], told["sample"]["time_shift"]) == ("read", 24, 3.0)
    words = [f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--num=1", "--steps=4", "--batch_size=2"]
    assert sample.main(["sample", *words, *(f"--prompt={prompt}" for prompt in PROMPTS)]) == 0, capsys.readouterr().err

    noise = np.stack([image_noise(0, prompt, 0, (16, 16, 4)).transpose(2, 0, 1) for prompt in PROMPTS])
    expected = theirs(
        PROMPTS,
        num_inference_steps=4,
        guidance_scale=7.0,
        height=128,
        width=128,
        latents=torch.from_numpy(noise),
        max_sequence_length=T5,
        output_type="np",
    ).images
    helpers.assert_drawn(tmp_path / "out", expected)


@pytest.fixture(scope="module")
def nucleus(tmp_path_factory):
    """(diffusers' transformer, its folder, the workdir it became): a config that says, for us, what the layout does not."""
    root = tmp_path_factory.mktemp("nucleus")
    theirs = published_folders.save("nucleus", root / "transformer")
    path = root / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ec_dit": {"data": {"size": 16}}}))
    words = ["--from=nucleus", f"--path={root / 'transformer'}", f"--out={root / 'run'}", "--text_length=7"]
    assert convert.main(["convert", *words]) == 0
    return theirs, root / "transformer", root / "run"


def inputs(width, images=2, shape=(16, 16)):
    """(noise, text, null text)."""
    rng = np.random.default_rng(0)
    noise_BYXZ = rng.standard_normal((images, *shape, 4), np.float32)
    mask_BT = np.arange(7) < np.array([[6], [3]])
    text = Text(rng.standard_normal((images, 7, width), np.float32), mask_BT)
    return noise_BYXZ, text, Text(rng.standard_normal((7, width), np.float32), np.arange(7) < 2)


@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_sampling_equals_nucleus_pipeline(nucleus, shape):
    """Guidance that keeps the length of tokens, images and their unconditional copies routed apart, a shift by image size."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, NucleusMoEImagePipeline

    from ec_dit.recipes import schedulers

    theirs, _, run_folder = nucleus
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_image_seq_len=32, max_image_seq_len=128)
    times = schedulers.flow_match(
        {"_class_name": "FlowMatchEulerDiscreteScheduler", **scheduler.config}, "here", 64, sigmas_given=True
    )
    assert times["time_shift"] == pytest.approx(np.exp(0.5 + 0.65 * 32 / 96))  # of the config's 64 tokens
    workdir = Workdir(str(run_folder))
    config = workdir.config()
    assert (config.sample.guidance, config.sample.guidance_norm, config.sample.group_size) == (4.0, "token", "image")
    c = settings.changed(config, settings.prefixed("sample", {"steps": 5, **times}))
    system, params, _ = workdir.load(c)
    noise_BYXZ, text, null = inputs(24, shape=shape)
    made = generator.sample(system.graphdef, specs.sample_settings(c, shape), params, noise_BYXZ, text, null)

    pipeline = NucleusMoEImagePipeline(
        transformer=theirs, scheduler=scheduler, vae=None, text_encoder=None, processor=None
    )
    pipeline.set_progress_bar_config(disable=True)
    packed = pipeline._pack_latents(torch.from_numpy(noise_BYXZ.transpose(0, 3, 1, 2).copy()), 2, 4, *shape, 2)
    expected = pipeline(
        num_inference_steps=5,
        guidance_scale=4.0,
        height=8 * shape[0],
        width=8 * shape[1],
        latents=packed,
        prompt_embeds=torch.from_numpy(text.tokens),
        prompt_embeds_mask=torch.from_numpy(text.mask_BT),
        negative_prompt_embeds=torch.from_numpy(np.broadcast_to(null.tokens, text.tokens.shape).copy()),
        negative_prompt_embeds_mask=torch.from_numpy(np.broadcast_to(null.mask_BT, text.mask_BT.shape).copy()),
        output_type="latent",
    ).images
    expected = pipeline._unpack_latents(expected, *shape, 2, 1)[:, :, 0].permute(0, 2, 3, 1).numpy()
    spread = expected.std()  # a random network drives latents far from 1
    np.testing.assert_allclose(made / spread, expected / spread, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pictures_of_nucleus_from_prompts(nucleus, tmp_path, capsys):
    """Its chat round the prompt, states eight layers from the end of Qwen3-VL, and Qwen-Image's autoencoder."""
    import torch
    from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, NucleusMoEImagePipeline
    from diffusers.pipelines.nucleusmoe_image.pipeline_nucleusmoe_image import DEFAULT_SYSTEM_PROMPT
    from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    root, length = tmp_path / "pipeline", 400
    torch.manual_seed(0)
    seen = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 24}
    text = test_qwen3.SIZES | {"hidden_size": 24, "num_hidden_layers": 9}
    made = Qwen3VLConfig(text_config=text, vision_config=seen | {"deepstack_visual_indexes": [0]})
    encoder = Qwen3VLForConditionalGeneration(made).eval()
    vae = AutoencoderKLQwenImage(**test_qwen_vae.CONFIG).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.5)
    for module in (encoder, vae):
        for weight in module.parameters():
            weight.data.add_(0.1 * torch.randn_like(weight))
    encoder.save_pretrained(root / "text_encoder")
    test_qwen3.write_tokenizer(root / "processor")
    vae.save_pretrained(root / "vae")
    scheduler.save_pretrained(root / "scheduler")
    shutil.copytree(nucleus[1], root / "transformer")
    (root / "model_index.json").write_text(json.dumps({"_class_name": "NucleusMoEImagePipeline"}))

    words = ["--from=nucleus", f"--path={root}", f"--out={tmp_path / 'run'}", f"--text_length={length}"]
    assert convert.main(["convert", *words]) == 0, capsys.readouterr().err
    words = [f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--num=1", "--steps=4", "--batch_size=2"]
    assert sample.main(["sample", *words, *(f"--prompt={prompt}" for prompt in PROMPTS)]) == 0, capsys.readouterr().err

    def embed(prompts):
        start = f"<|im_start|>system\n{DEFAULT_SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n"
        chats = [f"{start}{prompt}<|im_end|>\n<|im_start|>assistant\n" for prompt in prompts]
        how = {"pad_token": "<|endoftext|>", "padding_side": "right"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(root / "processor" / "tokenizer.json"), **how)
        given = tokenizer(chats, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        assert given.attention_mask.sum(1).max() < length
        with torch.no_grad():
            out = encoder(given.input_ids, attention_mask=given.attention_mask, output_hidden_states=True)
        return out.hidden_states[-8], given.attention_mask.bool()

    theirs = NucleusMoEImagePipeline(
        transformer=nucleus[0], scheduler=scheduler, vae=vae, text_encoder=None, processor=None
    )
    theirs.set_progress_bar_config(disable=True)
    noise = np.stack([image_noise(0, prompt, 0, (16, 16, 4)).transpose(2, 0, 1) for prompt in PROMPTS])
    embeds, mask = embed(PROMPTS)
    null_embeds, null_mask = embed(["", ""])
    expected = theirs(
        num_inference_steps=4,
        height=128,
        width=128,
        latents=theirs._pack_latents(torch.from_numpy(noise), 2, 4, 16, 16, 2),
        prompt_embeds=embeds,
        prompt_embeds_mask=mask,
        negative_prompt_embeds=null_embeds,
        negative_prompt_embeds_mask=null_mask,
        output_type="np",
    ).images
    helpers.assert_drawn(tmp_path / "out", expected)


def test_models_go_back_bit_for_bit_and_load_in_diffusers(nucleus, sd3, tmp_path, capsys):
    import diffusers

    for kind, folder in (("nucleus", nucleus[1]), ("sd3", sd3[1] / "transformer")):
        run, back = tmp_path / f"{kind}_run", tmp_path / f"{kind}_back"
        words = [f"--from={kind}", f"--path={folder}", "--text_length=7", "--mesh=1,2,2,2"]
        assert convert.main(["convert", *words, f"--out={run}"]) == 0, capsys.readouterr().err
        words = ["--from=workdir", f"--path={run}", "--to=diffusers", "--mesh=1,2,2,2"]
        assert convert.main(["convert", *words, f"--out={back}"]) == 0, capsys.readouterr().err
        before, after = load_file(folder / WEIGHTS), load_file(back / WEIGHTS)
        assert before.keys() == after.keys()
        different = {name for name in before if not np.array_equal(before[name], after[name])}
        attn = "transformer_blocks.2.attn"
        unused = {
            "pos_embed.pos_embed",
            f"{attn}.add_q_proj.weight",
            f"{attn}.add_q_proj.bias",
            f"{attn}.norm_added_q.weight",
        }
        if kind == "nucleus":
            unused = {f"transformer_blocks.{block}.attn.norm_added_q.weight" for block in range(6)}
        assert different <= unused
        name = json.loads((back / "config.json").read_text())["_class_name"]
        getattr(diffusers, name).from_pretrained(back)


def test_what_a_layout_does_not_say_comes_back(sd3, tmp_path, capsys):
    """Another way to read captions, other tokens, another sampling than the pipeline's."""
    words = ["--from=sd3", f"--path={sd3[1] / 'transformer'}", "--text_length=7", f"--out={tmp_path / 'run'}"]
    assert convert.main(["convert", *words]) == 0
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["text"]["padding"], config["sample"]["steps"], config["flow"]["time_mean"] = "masked", 11, 0.5
    path.write_text(json.dumps(config))
    (tmp_path / "run" / "digests.json").unlink()  # changed on purpose
    words = ["--from=workdir", f"--path={tmp_path / 'run'}", "--to=diffusers", f"--out={tmp_path / 'back'}"]
    assert convert.main(["convert", *words]) == 0, capsys.readouterr().err
    assert convert.main(["convert", "--from=sd3", f"--path={tmp_path / 'back'}", f"--out={tmp_path / 'again'}"]) == 0
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    config["text"]["path"] = again["text"]["path"] = ""  # of the pipeline round it, which the export has not
    assert {part: again[part] for part in ("text", "sample", "flow")} == {
        part: config[part] for part in ("text", "sample", "flow")
    }


def test_another_pipeline_or_other_times_are_refused(sd3, nucleus, tmp_path, capsys):
    folder = sd3[1]
    shutil.copytree(folder, tmp_path / "sd3")
    scheduler = tmp_path / "sd3" / "scheduler" / "scheduler_config.json"
    found = json.loads(scheduler.read_text())
    positions = load_file(folder / "transformer" / WEIGHTS)

    def message(kind, path):
        words = [f"--from={kind}", f"--path={path}", f"--out={tmp_path / 'out'}"]
        assert convert.main(["convert", *words]) == 2
        return capsys.readouterr().err

    assert "_class_name is 'StableDiffusion3Pipeline'; supported: 'NucleusMoEImagePipeline'" in message(
        "nucleus", folder
    )
    for key, value, words in (
        ("use_karras_sigmas", True, "use_karras_sigmas is True; supported: False"),
        ("shift_terminal", 0.02, "shift_terminal is 0.02; supported: None"),
        ("_class_name", "DDIMScheduler", "_class_name is 'DDIMScheduler'; supported: 'FlowMatch"),
    ):
        scheduler.write_text(json.dumps(found | {key: value}))
        assert words in message("sd3", tmp_path / "sd3")
    scheduler.write_text(json.dumps(found))
    from safetensors.numpy import save_file

    positions["pos_embed.pos_embed"] = positions["pos_embed.pos_embed"] * 0.9
    save_file(positions, tmp_path / "sd3" / "transformer" / WEIGHTS)
    assert "pos_embed.pos_embed holds other positions than the sines and cosines" in message("sd3", tmp_path / "sd3")


def test_sd3_with_experts_starts_as_it_is(sd3, tmp_path, capsys):
    """Blocks with attention of their own, plain ones and the last: each expert is a copy of its block's layer of the image."""
    words = [
        "--from=sd3",
        f"--path={sd3[1] / 'transformer'}",
        "--text_length=7",
        "--upcycle",
        "--experts=4",
        "--every=1",
    ]
    assert convert.main(["convert", *words, f"--out={tmp_path / 'run'}"]) == 0, capsys.readouterr().err
    told = json.loads((tmp_path / "run" / "conversion.json").read_text())["upcycled"]["first_outputs"]
    assert told["every expert takes every token"]["relative"] < 1e-6
    words = ["--from=workdir", f"--path={tmp_path / 'run'}", "--to=diffusers", f"--out={tmp_path / 'back'}"]
    assert convert.main(["convert", *words]) == 2
    assert "cannot hold this model: moe.routing is expert_choice, not dense" in capsys.readouterr().err
