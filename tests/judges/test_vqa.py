"""Networks that answer questions: tiny random ones of each kind, against transformers' own modules called one step at a time."""

import json
import shutil
import sys

import numpy as np
import pytest

from ec_dit.core.errors import UserError
from ec_dit.judges import vqa
from tests.judges.answerers import CHAT, bert_tokenizer, blip, llava, qwen, save, vilt

QUESTIONS = [
    *(
        "is there a cat?",
        "is there a dog?",
        "is the cube red?",
        "is there a red cube on the table, left of a dog?",
        "two cats?",
    ),
    *("no.", "is there a disc, a cube?", "is there a cat?", "is there a table?"),
]


def images():
    rng = np.random.default_rng(0)
    shapes = [(32, 32), (32, 32), (48, 32), (32, 48)]
    return [rng.integers(0, 256, (*shapes[i % 4], 3), np.uint8) for i in range(len(QUESTIONS))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Makes each folder once; the networks are too small for the threads of torch to help each other."""
    import torch

    made, threads = {}, torch.get_num_threads()

    def folder(make):
        if make not in made:
            made[make] = save(tmp_path_factory.mktemp("networks") / make.__name__, make)
        return made[make]

    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)


def greedy(step, start, stop):
    """The best tokens one after another, `step` giving the logits of a whole text."""
    tokens = list(start)
    while len(tokens) < len(start) + vqa._NEW_TOKENS:
        tokens.append(int(step(tokens).argmax()))
        if tokens[-1] == stop:
            break
    return tokens[len(start) :]


def blip_by_hand(model, image, question, folder):
    import torch
    import transformers

    ids = bert_tokenizer(folder)(question, return_tensors="pt").input_ids
    pixels = transformers.BlipImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt").pixel_values
    seen = model.vision_model(pixels).last_hidden_state
    asked = model.text_encoder(ids, encoder_hidden_states=seen)[0]
    tokens = greedy(
        lambda text: model.text_decoder(torch.tensor([text]), encoder_hidden_states=asked).logits[0, -1], [5], 3
    )
    return transformers.BertTokenizer.from_pretrained(folder).decode(tokens, skip_special_tokens=True).strip().lower()


def vilt_by_hand(model, image, question, folder):
    import torch
    import transformers

    text = bert_tokenizer(folder)(question, return_tensors="pt")
    ids = (
        torch.cat([text.input_ids[:, :13], torch.tensor([[3]])], 1) if text.input_ids.shape[1] > 14 else text.input_ids
    )
    pixels = transformers.ViltImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt").pixel_values
    return ["yes", "no", "two", "red"][int(model(input_ids=ids, pixel_values=pixels).logits[0].argmax())]


def qwen_by_hand(model, image, question, folder):
    import torch
    import transformers

    found = transformers.Qwen2VLImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt")
    ids = torch.tensor([prompt([5, *[4] * (found.image_grid_thw[0].prod() // 4), 6], question)])
    return first_word(generate(model, ids, mm_token_type_ids=(ids == 4).int(), **found))


def llava_by_hand(model, image, question, folder):
    import torch
    import transformers

    pixels = transformers.CLIPImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt").pixel_values
    return first_word(generate(model, torch.tensor([prompt([4] * 16, question)]), pixel_values=pixels))


def generate(model, ids, **inputs):
    """What follows a text, greedily, with no setting of the folder."""
    import transformers

    model.generation_config = transformers.GenerationConfig(eos_token_id=3, pad_token_id=1)
    return model.generate(input_ids=ids, **inputs, max_new_tokens=vqa._NEW_TOKENS)[0, ids.shape[1] :].tolist()


def prompt(seen, question):
    """Tokens of what a user says of a picture, and of the answer's beginning."""
    said = f"{question} Answer with yes or no.".replace("?", " ?").replace(".", " .").replace(",", " ,").split()
    ids = [CHAT.index(word) if word in CHAT else 0 for word in said]
    return [2, CHAT.index("user"), *seen, *ids, 3, 2, CHAT.index("assistant")]


def first_word(tokens):
    said = [CHAT[token] for token in tokens if token > 7]
    return next((word.lower() for word in said if word not in ("?", ".", ",")), "")


BY_HAND = {blip: blip_by_hand, vilt: vilt_by_hand, qwen: qwen_by_hand, llava: llava_by_hand}
every_kind = pytest.mark.parametrize("make", BY_HAND, ids=lambda make: make.__name__)


@pytest.mark.extra("conformance")
@pytest.mark.slow
@every_kind
def test_answers_equal_steps_by_hand(make, folders):
    import torch
    import transformers

    folder = folders(make)
    answerer = vqa.load(folder, batch=2)  # so that there are several batches, and pictures enough to prepare twice
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = [BY_HAND[make](model, *pair, folder) for pair in zip(images(), QUESTIONS, strict=True)]
    answers = answerer(images(), QUESTIONS)
    assert answers == expected
    assert answerer.name == make.__name__
    assert len(set(answers)) > 2, "the networks say the same of everything, and the test little"
    alone = [answerer([image], [question])[0] for image, question in zip(images(), QUESTIONS, strict=True)]
    assert alone == answers
    torch.manual_seed(12345)
    state = torch.get_rng_state()
    assert answerer(images()[::-1], QUESTIONS[::-1]) == answers[::-1]
    assert torch.equal(torch.get_rng_state(), state)
    assert answerer([], []) == []


@pytest.mark.extra("conformance")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (
            vilt,
            lambda folder: (folder / "model.safetensors").unlink(),
            "transformers cannot load it: .*model.safetensors",
        ),
        (vilt, lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "cannot load it"),
        (vilt, lambda folder: cut(folder / "model.safetensors"), "transformers cannot load it"),
        (vilt, lambda folder: leave_out(folder, "classifier.3.bias"), r"lacks weights: classifier\.3\.bias"),
        (vilt, lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
        (
            vilt,
            lambda folder: configure(folder, architectures=["ViltForMaskedLM"]),
            "holds ViltForMaskedLM, .* Supported: Blip",
        ),
        (vilt, lambda folder: configure(folder, architectures=[]), "holds None, which answers no questions"),
        (vilt, lambda folder: configure(folder, architectures="Vilt"), "holds None, which answers no questions"),
        (
            vilt,
            lambda folder: configure(folder, model_type="of tomorrow"),
            "transformers cannot load it: .*of tomorrow",
        ),
        (
            vilt,
            lambda folder: configure(folder, id2label={str(i): f"LABEL_{i}" for i in range(4)}),
            "none of its 4 answers is yes",
        ),
        (vilt, lambda folder: (folder / "processor_config.json").write_text("{"), "transformers cannot load it"),
        (
            qwen,
            lambda folder: (folder / "chat_template.jinja").unlink(),
            "holds Qwen2VLForConditionalGeneration, which answers no",
        ),
    ],
)
def test_folders_that_do_not_do_are_told(make, change, message, folders, tmp_path):
    shutil.copytree(folders(make), tmp_path / "network")
    change(tmp_path / "network")
    with pytest.raises(UserError, match=message):
        vqa.load(tmp_path / "network")


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def leave_out(folder, name):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(UserError, match=r"there is no file or folder .*absent"):
        vqa.load(tmp_path / "absent")


def test_missing_libraries_are_told(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"architectures": ["BlipForQuestionAnswering"]}')
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"need torch and transformers .* pip install 'ec-dit\[geneval\]'"):
        vqa.load(tmp_path)
