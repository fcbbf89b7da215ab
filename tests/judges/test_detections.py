"""GenEval's rules: cases by hand, and thousands of random pictures against the rules spelled out as loops over numbers."""

import collections
import math

import numpy as np
import pytest

from ec_dit.judges.detections import Detection, Verdict, check, kept, relations, score
from ec_dit.layouts.geneval import COLOURS, RELATIONS, TAGS, Exclude, Include, Task

IMAGE = np.zeros((4, 4, 3), np.uint8)


def make(tag="two_object", include=(), exclude=(), prompt="a prompt"):
    return Task(tag, prompt, tuple(include), tuple(exclude), line="{}")


def at(x, y, size=10.0, score=1.0):
    return Detection((x - size / 2, y - size / 2, x + size / 2, y + size / 2), score)


def painted(colours):
    """Names the colours of a table: detection -> colour."""
    return lambda image, detections, class_name: [colours[id(detection)] for detection in detections]


def never(image, detections, class_name):
    raise AssertionError("no colour was asked for")


def judge(task, found, colours=never):
    return check(task, found, IMAGE, colours).correct


# What counts as found.


def test_scores_must_be_above_the_threshold_of_the_task():
    scores = [
        0.29,
        0.3,
        np.nextafter(np.float32(0.3), np.float32(1)),
        0.9,
        np.nextafter(np.float32(0.9), np.float32(1)),
    ]
    candidates = {"cat": [at(0, 0, score=float(value)) for value in scores], "dog": [at(0, 0, score=0.1)], "cow": []}
    for tag in TAGS:
        expected = scores[4:] if tag == "counting" else scores[:1:-1]
        found = kept(candidates, tag)
        assert list(found) == ["cat"]
        assert [one.score for one in found["cat"]] == [float(value) for value in expected]


def test_a_score_of_float32_at_the_threshold_does_not_count():
    """As a float64 it is larger than 0.3."""
    value = float(np.float32(0.3))
    assert value > 0.3
    assert kept({"cat": [at(0, 0, score=value)]}, "colors") == {}


def test_the_best_sixteen_of_a_class_count_and_of_equals_the_later():
    many = [at(i, 0, score=0.4 + 0.01 * i) for i in range(20)]
    assert kept({"cat": many}, "colors")["cat"] == many[::-1][:16]
    equal = [at(i, 0, score=0.5) for i in range(20)]
    assert kept({"cat": equal}, "colors")["cat"] == equal[::-1][:16]


# Each rule, kept and broken.

CAT, DOG = Include("cat", 1), Include("dog", 1)


def test_classes_must_be_there():
    task = make(include=[CAT, DOG])
    assert judge(task, {"cat": [at(0, 0)], "dog": [at(5, 5)], "cow": [at(9, 9)]})
    assert not judge(task, {"cat": [at(0, 0)]})
    assert check(task, {"cat": [at(0, 0)]}, IMAGE, never).reasons == ("dog: found 0 of 1",)


def test_counts_are_at_least_what_is_asked_and_below_what_is_excluded():
    task = make("counting", [Include("cat", 2)], [Exclude("cat", 3)])
    cats = [at(i, 0) for i in range(4)]
    assert [judge(task, {"cat": cats[:number]}) for number in range(5)] == [False, False, True, False, False]
    assert judge(make("counting", [Include("cat", 2)]), {"cat": cats})


def test_what_is_excluded_counts_though_nothing_is_there_of_what_is_asked():
    task = make(include=[CAT, DOG], exclude=[Exclude("cow", 1)])
    verdict = check(task, {"cow": [at(0, 0), at(9, 9)], "dog": [at(0, 0)]}, IMAGE, never)
    assert verdict == Verdict(False, ("cat: found 0 of 1", "cow: found 2, 0 at most"))


def test_the_best_alone_have_a_colour():
    best, other = at(0, 0), at(50, 0)
    task = make("colors", [Include("cat", 1, "red")])
    assert judge(task, {"cat": [best, other]}, painted({id(best): "red", id(other): "blue"}))
    assert not judge(task, {"cat": [best, other]}, painted({id(best): "blue", id(other): "red"}))
    both = make("colors", [Include("cat", 2, "red")])
    assert judge(both, {"cat": [best, other]}, painted({id(best): "red", id(other): "red"}))
    found = check(both, {"cat": [best, other]}, IMAGE, painted({id(best): "red", id(other): "blue"}))
    assert found.reasons == ("cat: red, blue, not red",)


def test_two_entries_of_a_class_look_at_the_same_object():
    red, blue = at(0, 0), at(50, 0)
    task = make("color_attr", [Include("cat", 1, "red"), Include("cat", 1, "blue")])
    assert not judge(task, {"cat": [red, blue]}, painted({id(red): "red", id(blue): "blue"}))


def test_every_object_stands_so_to_every_object_of_the_target():
    task = make("position", [Include("cat", 2), Include("dog", 2, position=("left of", 0))])
    cats, dogs = [at(100, 0), at(200, 0)], [at(0, 0), at(40, 0)]
    assert judge(task, {"cat": cats, "dog": dogs})
    assert not judge(task, {"cat": cats, "dog": [dogs[0], at(150, 0)]})
    assert not judge(task, {"cat": [cats[0], at(20, 0)], "dog": dogs})
    assert judge(task, {"cat": cats, "dog": [*dogs, at(300, 0)]})  # a third is not looked at


def test_to_a_target_that_failed_nothing_stands_anyhow():
    task = make("position", [Include("cat", 1, "red"), Include("dog", 1, position=("left of", 0))])
    cat, dog = at(100, 0), at(0, 0)
    assert judge(task, {"cat": [cat], "dog": [dog]}, painted({id(cat): "red"}))
    found = check(task, {"cat": [cat], "dog": [dog]}, IMAGE, painted({id(cat): "blue"}))
    assert found.reasons == ("cat: blue, not red", "dog: nothing that it could be left of")


def test_a_position_is_looked_at_only_where_the_colour_is_right():
    task = make("position", [CAT, Include("dog", 1, "red", ("left of", 0)), Include("cow", 1, position=("above", 1))])
    cat, dog, cow = at(0, 50), at(100, 50), at(100, 0)
    found = check(task, {"cat": [cat], "dog": [dog], "cow": [cow]}, IMAGE, painted({id(dog): "blue"}))
    assert found.reasons == ("dog: blue, not red", "cow: nothing that it could be above")
    found = check(task, {"cat": [cat], "dog": [dog], "cow": [cow]}, IMAGE, painted({id(dog): "red"}))
    assert found.reasons == ("dog: right of, not left of", "cow: nothing that it could be above")


# Boxes of 10 x 10: their sizes take 2 pixels off the distance along each axis.
@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ((-20, 0), {"left of"}),
        ((20, 0), {"right of"}),
        ((0, -20), {"above"}),
        ((0, 20), {"below"}),
        ((-20, 20), {"left of", "below"}),  # 18 of 28.3 along each
        ((20, -12), {"right of"}),  # 10 of 23.3 along y
        ((0, 0), set()),
        ((2, -2), set()),
        ((2.0005, 0), set()),
        ((3, 0), set()),  # 1 of 3
        ((4, 0), set()),  # 2 of 4: half is not enough
        ((4.1, 0), {"right of"}),
        ((30, 1.9), {"right of"}),
    ],
)
def test_relations_of_two_boxes(offset, expected):
    assert relations(at(100 + offset[0], 100 + offset[1]), at(100, 100)) == expected


def test_less_than_a_thousandth_of_a_pixel_is_no_distance():
    point = at(1, 1, size=0)
    assert relations(at(1.0005, 1, size=0), point) == set()
    assert relations(at(1.002, 1, size=0), point) == {"right of"}


def test_a_box_of_no_numbers_has_no_relation():
    assert relations(at(math.nan, 0), at(100, 100)) == relations(at(100, 100), at(0, math.nan)) == set()


def test_sizes_count_along_their_own_axis():
    wide = Detection((0, 0, 100, 10), 1.0)
    assert relations(wide, Detection((80, 0, 180, 10), 1.0)) == {"left of"}  # 80 apart, less 20
    assert relations(wide, Detection((20, 0, 120, 10), 1.0)) == set()  # 20 apart, less 20
    assert relations(wide, Detection((0, 20, 100, 30), 1.0)) == {"above"}  # 20 apart, less 2


def test_scores_of_a_few_pictures():
    cat, dog, two = make("colors", prompt="a cat"), make("colors", prompt="a dog"), make("counting", prompt="two cats")
    right, wrong = Verdict(True, ()), Verdict(False, ("for a reason",))
    tasks = [cat, cat, cat, dog, dog, dog, two, two]
    found = score(tasks, [right, wrong, wrong, wrong, wrong, wrong, right, wrong])
    assert list(found.tasks.items()) == [("colors", 1 / 6), ("counting", 1 / 2)]
    assert found.overall == pytest.approx((1 / 6 + 1 / 2) / 2)
    assert (found.images, found.prompts) == (2 / 8, pytest.approx(2 / 3))
    with pytest.raises(ValueError, match="no pictures"):
        score([], [])


# The same, spelled out.


def plainly_related(a, b):
    """The relations of two boxes, from corners, one number after the other."""
    middle = [((a[i] + a[i + 2]) / 2 - (b[i] + b[i + 2]) / 2) for i in (0, 1)]
    left_over = []
    for i in (0, 1):
        spare = abs(middle[i]) - 0.1 * (abs(a[i + 2] - a[i]) + abs(b[i + 2] - b[i]))
        left_over.append(math.copysign(max(spare, 0.0), middle[i]))
    if abs(left_over[0]) < 1e-3 and abs(left_over[1]) < 1e-3:
        return set(), "near"
    far = math.sqrt(middle[0] ** 2 + middle[1] ** 2)
    names = set()
    for value, low, high in ((left_over[0] / far, "left of", "right of"), (left_over[1] / far, "above", "below")):
        if value < -0.5:
            names.add(low)
        elif value > 0.5:
            names.add(high)
    return names, f"{len(names)} relations"


def plainly_kept(detections, threshold, seen):
    """The best 16 above the threshold, by taking the best away again and again."""
    left, taken = list(detections), []
    while left and len(taken) < 16:
        best = 0
        for place in range(len(left)):
            if np.float32(left[place].score) >= np.float32(left[best].score):  # of equals, the later
                best = place
        if np.float32(left[best].score) <= threshold:
            seen["below the threshold"] += 1
            break
        taken.append(left.pop(best))
    seen["seventeenth left out"] += any(one.score > threshold for one in left)
    return taken


def plainly_coloured(wanted, mine, colour_of, seen):
    hits = 0
    for one in mine:
        hits += colour_of[id(one)] == wanted.colour
    right = hits == len(mine)
    seen[f"colour {'right' if right else 'wrong'}"] += 1
    seen["a right colour among wrong ones"] += 0 < hits < len(mine)
    seen["wrong colour and so no position"] += not right and wanted.position is not None
    return right


def plainly_placed(wanted, mine, targets, seen):
    if targets is None:
        seen["target failed"] += 1
        return False
    hits = 0
    for one in mine:
        for other in targets:
            names, way = plainly_related(one.box, other.box)
            hits += wanted.position[0] in names
            seen[way] += 1
    right = hits == len(mine) * len(targets)
    seen[f"position right, {wanted.position[0]}" if right else "position wrong"] += 1
    seen["position holds for some"] += 0 < hits < len(mine) * len(targets)
    return right


def plainly_judged(task, candidates, colour_of, seen):
    """(whether a picture is right, number of reasons), counting in `seen` which ways it went."""
    threshold = np.float32(0.9) if task.tag == "counting" else np.float32(0.3)
    objects = {name: plainly_kept(detections, threshold, seen) for name, detections in candidates.items()}
    reasons, fine = 0, []
    for wanted in task.include:
        mine = objects.get(wanted.class_name, [])
        good = len(mine) >= wanted.count
        seen["too few"] += not good
        seen["more than asked"] += len(mine) > wanted.count
        mine = mine[: wanted.count]
        if good and wanted.colour is not None:
            good = plainly_coloured(wanted, mine, colour_of, seen)
        if good and wanted.position is not None:
            good = plainly_placed(wanted, mine, fine[wanted.position[1]], seen)
        reasons += not good
        fine.append(mine if good else None)
    failed = reasons > 0
    for unwanted in task.exclude:
        too_many = len(objects.get(unwanted.class_name, [])) >= unwanted.count
        reasons += too_many
        seen["excluded there, after a failure" if failed else "excluded there"] += too_many
        seen["excluded not there"] += not too_many
    seen["right" if reasons == 0 else "wrong"] += 1
    return reasons == 0, reasons


def random_task(rng, names):
    include = []
    for index in range(rng.integers(1, 4)):
        position = None
        if index and rng.random() < 0.7:
            position = (RELATIONS[rng.integers(4)], int(rng.integers(index)))
        colour = COLOURS[rng.integers(2)] if rng.random() < 0.3 else None
        include.append(Include(names[rng.integers(3)], int(rng.integers(1, 5) // 2) or 1, colour, position))
    exclude = [Exclude(names[rng.integers(3)], int(rng.integers(1, 18))) for _ in range(rng.integers(2))]
    return make(TAGS[rng.integers(6)], include, exclude)


SCORES = (0.1, 0.3, float(np.float32(0.3)), 0.31, 0.6, 0.9, float(np.float32(0.9)), *[0.95, 0.97, 0.99] * 5)
NUMBERS = (0, *[1] * 8, *[2] * 8, 3, 3, 3, 22)


def random_candidates(rng, names):
    """Corners on a coarse grid, so that boxes touch and coincide; scores at, below and above thresholds, many the same."""
    candidates = {}
    for name in names:
        low = rng.integers(0, 30, (NUMBERS[rng.integers(len(NUMBERS))], 2)) * 5.0
        high = low + rng.integers(1, 6, low.shape) * 10.0
        candidates[name] = [
            Detection(tuple(corners), SCORES[which])
            for corners, which in zip(
                np.hstack([low, high]).tolist(), rng.integers(len(SCORES), size=len(low)), strict=True
            )
        ]
    return candidates


WAYS = (
    "seventeenth left out; below the threshold; too few; more than asked; colour right; colour wrong; "
    "a right colour among wrong ones; wrong colour and so no position; target failed; near; 0 relations; 1 relations; "
    "2 relations; position right, left of; position right, right of; position right, above; position right, below; "
    "position wrong; position holds for some; excluded there; excluded there, after a failure; excluded not there; right; wrong"
).split("; ")


def test_random_pictures_are_judged_as_the_rules_spelled_out():
    rng = np.random.default_rng(0)
    seen = collections.Counter()
    names = ("cat", "dog", "cow")
    for _ in range(3000):
        task, candidates = random_task(rng, names), random_candidates(rng, names)
        every = [one for many in candidates.values() for one in many]
        colours = rng.integers(5, size=len(every)) // 2  # 0 and 1 twice as often as 2
        colour_of = {id(one): COLOURS[colour] for one, colour in zip(every, colours, strict=True)}
        expected = plainly_judged(task, candidates, colour_of, seen)
        verdict = check(task, kept(candidates, task.tag), IMAGE, painted(colour_of))
        assert (verdict.correct, len(verdict.reasons)) == expected, (task, candidates)
    assert sorted(seen) == sorted(WAYS)
    assert min(seen.values()) >= 20, seen.most_common()
