"""Networks that answer questions about pictures, run by transformers: BLIP, ViLT, and instruction-tuned vision-language models.

Each picture is prepared with its question by itself, and those that come out in the same shapes run together. Nothing is padded,
since BLIP's decoder attends to padding, and so an answer does not depend on what else is asked, but for rounding.

Image processors are transformers' own for Pillow, whether torchvision is installed or not, so that answers compare.
"""

import abc
import contextlib
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image
from safetensors import SafetensorError

from ec_dit.core import hub
from ec_dit.core.errors import UserError

_ORDER = "Answer with yes or no."
_NEW_TOKENS = 8  # yes or no, and what may stand before it
_AHEAD = 4  # batches that are prepared at a time, from which those of the same shapes are taken
_SUPPORTED = (
    "BlipForQuestionAnswering, ViltForQuestionAnswering, and models with a chat template that transformers' "
    "AutoModelForImageTextToText loads, such as Qwen2VLForConditionalGeneration and LlavaForConditionalGeneration"
)


class Answerer(Protocol):
    """What answers questions about pictures.

    Attributes:
        name: of the network, which a score should be told with.
    """

    name: str

    def __call__(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        """Answers a question about each picture, uint8 (Y, X, 3): in small letters, 'yes' and 'no' among other texts."""
        ...


class _Network(abc.ABC):
    """A model of transformers with its processor.

    Args:
        folder: that both come from.
        batch: most questions that run together.

    Raises:
        UserError: transformers cannot load the model, or weights are missing.
    """

    model_class: ClassVar[str]

    def __init__(self, folder: Path, processor: Any, batch: int):
        self._torch, transformers = _libraries()
        self.name, self._processor, self._batch = folder.name, processor, batch
        cuda = self._torch.cuda.is_available()
        with _told(folder):
            self._model, loaded = getattr(transformers, self.model_class).from_pretrained(
                folder,
                dtype="auto" if cuda else self._torch.float32,
                use_safetensors=True,  # a pickle may run any program
                local_files_only=True,
                output_loading_info=True,
            )
        if missing := sorted(loaded["missing_keys"]):
            raise UserError(f"{folder} lacks weights: {hub.flag_names(missing)}. {hub.AGAIN}")
        self._model = self._model.eval().to("cuda" if cuda else "cpu")

    def __call__(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        """Answers; see `Answerer`."""
        asked = list(zip(images, questions, strict=True))
        window = _AHEAD * self._batch
        return [answer for i in range(0, len(asked), window) for answer in self._answer_all(asked[i : i + window])]

    def _answer_all(self, asked: Sequence[tuple[np.ndarray, str]]) -> list[str]:
        inputs = [self._prepare(Image.fromarray(image), question) for image, question in asked]
        alike: dict[tuple[Any, ...], list[int]] = {}
        for i, tensors in enumerate(inputs):
            shapes = tuple((name, tuple(tensors[name].shape)) for name in sorted(tensors))
            alike.setdefault(shapes, []).append(i)
        answers = [""] * len(asked)
        for places in alike.values():
            for start in range(0, len(places), self._batch):
                part = places[start : start + self._batch]
                for i, answer in zip(part, self._run([inputs[i] for i in part]), strict=True):
                    answers[i] = answer
        return answers

    def _run(self, inputs: Sequence[Mapping[str, Any]]) -> list[str]:
        torch = self._torch
        joined = {name: torch.cat([tensors[name] for tensors in inputs]) for name in inputs[0]}
        joined = {
            name: tensor.to(self._model.device, self._model.dtype if tensor.is_floating_point() else None)
            for name, tensor in joined.items()
        }
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # ViLT draws the order of patches, on the host
            return self._answer(joined)

    def _prepare(self, image: Image.Image, question: str) -> Mapping[str, Any]:
        """Makes the tensors of one question, with a first axis along which those of others may follow."""
        limit = self._model.config.get_text_config().max_position_embeddings
        inputs: Mapping[str, Any] = self._processor(
            images=image, text=question, return_tensors="pt", truncation=True, max_length=limit
        )
        return inputs

    @abc.abstractmethod
    def _answer(self, inputs: Mapping[str, Any]) -> list[str]:
        """Answers a batch of questions."""

    def _generate(self, inputs: Mapping[str, Any]) -> Any:
        """Continues texts greedily, whatever generation_config.json recommends."""
        return self._model.generate(
            **inputs, max_new_tokens=_NEW_TOKENS, do_sample=False, num_beams=1, repetition_penalty=1.0
        )

    def _decode(self, tokens: Any) -> list[str]:
        texts = self._processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip().lower() for text in texts]


class Blip(_Network):
    """BLIP, which writes its answer."""

    model_class = "BlipForQuestionAnswering"

    def _answer(self, inputs: Mapping[str, Any]) -> list[str]:
        return self._decode(self._generate(inputs)[:, 1:])  # after the token that begins every answer


class Vilt(_Network):
    """ViLT, which chooses among the answers that it was trained on."""

    model_class = "ViltForQuestionAnswering"

    def __init__(self, folder: Path, processor: Any, batch: int):
        super().__init__(folder, processor, batch)
        self._labels = {i: label.strip().lower() for i, label in self._model.config.id2label.items()}
        if "yes" not in self._labels.values():
            raise UserError(f"{folder}: none of its {len(self._labels)} answers is yes; give a ViLT trained on VQA.")

    def _answer(self, inputs: Mapping[str, Any]) -> list[str]:
        return [self._labels[best] for best in self._model(**inputs).logits.argmax(-1).tolist()]


class Instructed(_Network):
    """An instruction-tuned vision-language model, which is asked for yes or no; the first word that it says is taken."""

    model_class = "AutoModelForImageTextToText"

    def _prepare(self, image: Image.Image, question: str) -> Mapping[str, Any]:
        content = [{"type": "image", "image": image}, {"type": "text", "text": f"{question} {_ORDER}"}]
        inputs: Mapping[str, Any] = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        return inputs

    def _answer(self, inputs: Mapping[str, Any]) -> list[str]:
        tokens = self._generate(inputs)[:, inputs["input_ids"].shape[1] :]
        words = [re.search(r"\w+", text) for text in self._decode(tokens)]
        return [word[0] if word else "" for word in words]


_KINDS: dict[str, type[_Network]] = {kind.model_class: kind for kind in (Blip, Vilt)}


def load(path: str | Path, batch: int = 16) -> Answerer:
    """Loads the network of a folder as hubs publish them, on a GPU if torch sees one, where it keeps the dtype of its weights.

    Args:
        batch: most questions that run together.

    Raises:
        UserError: without torch and transformers; the folder or a file of it is missing or damaged, or its network is of
            another kind.
    """
    folder = hub.folder_of(hub.local(path))
    config = hub.config(folder)
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    _, transformers = _libraries()
    known = importlib.import_module("transformers.models.auto.modeling_auto").MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    refused = UserError(f"{folder} holds {architecture}, which answers no questions here. Supported: {_SUPPORTED}.")
    kind = _KINDS.get(str(architecture))
    if kind is None and architecture not in known.values():
        raise refused
    with _told(folder):
        processor = _processor(folder, transformers)
    if kind is None and getattr(processor, "chat_template", None) is None:
        raise refused
    return (kind or Instructed)(folder, processor, batch)


def _processor(folder: Path, transformers: Any) -> Any:
    """The processor of a folder without its part for videos, which would need torchvision."""
    auto = importlib.import_module("transformers.models.auto.processing_auto")
    kind: Any = auto.PROCESSOR_MAPPING[type(transformers.AutoConfig.from_pretrained(folder, local_files_only=True))]

    class Still(kind):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [part for part in super().get_attributes() if part != "video_processor"]

    return Still.from_pretrained(folder, backend="pil", local_files_only=True)


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """A context in which what transformers raises for files that it cannot use is a UserError."""
    try:
        yield
    except (OSError, ValueError, TypeError, LookupError, ImportError, RuntimeError, SafetensorError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        advice = "Install what is missing" if isinstance(error, ImportError) else "Download the whole folder again"
        raise UserError(f"{folder}: transformers cannot load it: {reason} {advice}.") from error


def _libraries() -> tuple[Any, Any]:
    """The modules (torch, transformers), which are imported where a network is asked for."""
    try:
        return importlib.import_module("torch"), importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            f"networks that answer questions need torch and transformers ({error}); run: pip install 'ec-dit[geneval]'"
        ) from error
