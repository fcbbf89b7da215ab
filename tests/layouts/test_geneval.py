"""GenEval's prompt file: what its lines say, and a message with the number of the line for whatever is wrong with one."""

import json

import pytest

from ec_dit.core.errors import UserError
from ec_dit.layouts import geneval
from ec_dit.layouts.geneval import Exclude, Include

CAT = {"class": "cat", "count": 1}
# One of each task, as GenEval has them.
LINES = [
    json.dumps({"tag": tag, "include": include, "prompt": prompt} | more)
    for tag, include, prompt, more in [
        ("single_object", [{"class": "tv remote", "count": 1}], "a photo of a tv remote", {}),
        ("two_object", [CAT, {"class": "dog", "count": 1}], "a photo of a cat and a dog", {}),
        ("counting", [{"class": "bus", "count": 3}], "three buses", {"exclude": [{"class": "bus", "count": 4}]}),
        ("colors", [{"class": "orange", "count": 1, "color": "orange"}], "a photo of an orange orange", {}),
        ("position", [CAT, {"class": "cow", "count": 1, "position": ["above", 0]}], "a photo of a cow above a cat", {}),
        ("color_attr", [{"class": "cup", "count": 1, "color": "pink"}, CAT], "a photo of a pink cup and a cat", {}),
    ]
]


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def task(**changes):
    """A correct line, but for the changes; None takes a key away."""
    entries = [CAT, {"class": "dog", "count": 1}]
    return {
        k: v for k, v in ({"tag": "two_object", "prompt": "x", "include": entries} | changes).items() if v is not None
    }


def dog(**changes):
    """`task` with another second entry."""
    entry = {"class": "dog", "count": 1} | changes
    return task(include=[CAT, {k: v for k, v in entry.items() if v is not None}])


def test_lines_say_what_pictures_must_show(tmp_path):
    tasks = geneval.read(write(tmp_path / "tasks.jsonl", *LINES), classes=geneval.CLASSES)
    assert [found.line for found in tasks] == LINES
    assert tuple(found.tag for found in tasks) == geneval.TAGS
    assert tasks[0].prompt == "a photo of a tv remote" and tasks[0].include == (Include("tv remote", 1),)
    assert tasks[1].include == (Include("cat", 1), Include("dog", 1)) and tasks[1].exclude == ()
    assert (tasks[2].include, tasks[2].exclude) == ((Include("bus", 3),), (Exclude("bus", 4),))
    assert tasks[3].include == (Include("orange", 1, colour="orange"),)
    assert tasks[4].include == (Include("cat", 1), Include("cow", 1, position=("above", 0)))
    assert tasks[5].include == (Include("cup", 1, colour="pink"), Include("cat", 1))


def test_the_words_of_geneval():
    assert (len(geneval.CLASSES), len(set(geneval.CLASSES)), len(geneval.COLOURS)) == (80, 80, 10)
    numbers = {"person": 0, "stop sign": 11, "skis": 30, "orange": 49, "couch": 57, "tv": 62, "laptop": 63}
    numbers |= {"computer mouse": 64, "tv remote": 65, "computer keyboard": 66, "cell phone": 67, "toothbrush": 79}
    assert {name: geneval.CLASSES.index(name) for name in numbers} == numbers


def test_empty_lines_ends_of_lines_and_marks_of_byte_order_are_no_content(tmp_path):
    (tmp_path / "tasks.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{LINES[0]}\r\n\n  \n{LINES[1]}\n".encode())
    assert [found.line for found in geneval.read(str(tmp_path / "tasks.jsonl"))] == LINES[:2]


def test_other_classes_and_colours_may_be_allowed(tmp_path):
    path = write(tmp_path / "tasks.jsonl", dog(**{"class": "circle", "color": "teal"}))
    (found,) = geneval.read(path, colours=("teal", "mauve"))
    assert found.include[1] == Include("circle", 1, "teal")
    assert geneval.read(path, classes=("cat", "circle"), colours=("teal",)) == [found]
    with pytest.raises(UserError, match=r"there is no class 'circle'; they are cat, dog"):
        geneval.read(path, classes=("cat", "dog"), colours=("teal",))
    with pytest.raises(UserError, match=r"there is no color 'teal'; they are red, orange,"):
        geneval.read(path)


WRONG = {
    "no json": ("{", "it is no JSON"),
    "no object": ("[]", "it holds a list, not an object"),
    "no tag": (task(tag=None), "it has no 'tag'"),
    "no prompt": (task(prompt=None), "it has no 'prompt'"),
    "no include": (task(include=None), "it has no 'include'"),
    "another key": (task(exclud=[]), r"it has a 'exclud' \(did you mean exclude\?\); its keys are tag, prompt"),
    "a text as include": (task(include="cat"), "'include' of it is a text, not a list"),
    "a number as prompt": (task(prompt=3), "'prompt' of it is 3, not a text"),
    "an empty prompt": (task(prompt=" "), "its prompt is empty"),
    "nothing asked": (task(include=[]), "it asks for nothing"),
    "unknown tag": (task(tag="colours"), r"there is no tag 'colours' \(did you mean colors\?\)"),
    "entry of another kind": (task(include=["cat"]), "include 0 is no object"),
    "no class": (dog(**{"class": None}), "include 1 has no 'class'"),
    "no count": (dog(count=None), "include 1 has no 'count'"),
    "another key of an entry": (dog(colour="red"), r"include 1 has a 'colour' \(did you mean color\?\)"),
    "unknown class": (dog(**{"class": "dig"}), r"there is no class 'dig' \(did you mean dog\?\)"),
    "COCO's own name": (dog(**{"class": "mouse"}), r"there is no class 'mouse'"),
    "unknown colour": (dog(color="crimson"), "there is no color 'crimson'"),
    "null as colour": (task(include=[CAT | {"color": None}]), "'color' of include 0 is null, not a text"),
    "unknown relation": (
        dog(position=["beside", 0]),
        "there is no relation 'beside'; they are left of, right of, above",
    ),
    "no relation": (dog(position=[0]), "'position' of include 1 is a list, not a list"),
    "count of nought": (dog(count=0), "the count of include 1 is 0, not 1 or more"),
    "count of truth": (dog(count=True), "'count' of include 1 is True, not a whole number"),
    "count of a half": (dog(count=1.5), "'count' of include 1 is 1.5, not a whole number"),
    "position at itself": (
        dog(position=["above", 1]),
        "the position of include 1 points at 1, which is no earlier entry",
    ),
    "position at a later one": (dog(position=["above", 5]), "points at 5, which"),
    "position from the end": (dog(position=["above", -1]), "points at -1, which"),
    "exclude of nought": (task(exclude=[{"class": "cat", "count": 0}]), "the count of exclude 0 is 0"),
    "exclude of an unknown class": (task(exclude=[{"class": "dig", "count": 1}]), "there is no class 'dig'"),
    "a colour excluded": (task(exclude=[{"class": "cat", "count": 1, "color": "red"}]), "exclude 0 has a 'color'"),
    "a line again": (json.dumps(json.loads(LINES[1]), sort_keys=True), "is line 2 again; leave one of them out"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_line_is_named_with_its_number(tmp_path, name):
    line, message = WRONG[name]
    path = write(tmp_path / "tasks.jsonl", *LINES[:2], "", line, "{")
    with pytest.raises(UserError, match=rf"^{path}, line 4, (is damaged: )?.*{message}"):
        geneval.read(path, classes=geneval.CLASSES)


def test_what_is_no_text_is_named(tmp_path):
    (tmp_path / "tasks.jsonl").write_bytes(LINES[0].encode() + b"\n\xff\n")
    with pytest.raises(UserError, match=r"tasks.jsonl, line 2, is damaged: byte 0 of 1 is no text"):
        geneval.read(tmp_path / "tasks.jsonl")


def test_a_file_without_tasks_or_none_at_all_is_refused(tmp_path):
    for content in ("", "\n \n"):
        with pytest.raises(UserError, match=r"tasks.jsonl holds no tasks"):
            geneval.read(write(tmp_path / "tasks.jsonl", content))
    with pytest.raises(UserError, match=r"there is no file .*absent.jsonl; give the path of"):
        geneval.read(tmp_path / "absent.jsonl")
