from ec_dit.preparation import pace as pace_lib
from ec_dit.preparation.pace import Pace
from tests import sets


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(pace_lib.time, "monotonic", lambda: self.now)


def test_first_steps_of_a_kind_are_left_out(monkeypatch):
    clock = Clock(monkeypatch)
    pace = Pace()
    for kind, seconds in (("wide", 300), ("wide", 10), ("tall", 200), ("wide", 10), ("tall", 20)):
        with pace.step(kind, 32):
            clock.now += seconds
    clock.now += 60  # decoding
    # 540 - 64 of first steps, in 600 - 500 seconds: 4.76 a second
    assert pace.line(540) == "4.8 images/s in this process: 58.4 hours for a million"


def test_little_says_nothing(monkeypatch):
    clock = Clock(monkeypatch)
    pace = Pace()
    clock.now += 14.5
    assert pace.line(13) is None  # "0.9 images/s: 324 hours for a million"
    assert pace.line(0) is None
    assert pace.line(600) == "41.4 images/s in this process: 6.7 hours for a million"
    clock.now += 45.5
    assert pace.line(60) == "1.0 images/s in this process: 277.8 hours for a million"


def test_a_preparation_leaves_compilation_out(tmp_path, monkeypatch):
    """Encoders whose first step of a shape takes an hour, every other a second; 0.5 s a text."""
    clock, seen = Clock(monkeypatch), set()

    class Slow(sets.BlockEncoders):
        def images(self, image_BYXZ):
            clock.now += 1 if image_BYXZ.shape in seen else 3600
            seen.add(image_BYXZ.shape)
            return super().images(image_BYXZ)

        def texts(self, captions):
            clock.now += 0.5
            return super().texts(captions)

    said = []
    source = sets.MixedSource(sets.MixedOptions(train=(200, 40, 0), validation=(0, 0, 0)))
    sets.write(source, tmp_path / "set", encoding=sets.plan(Slow(), flip=False), num_shards=1, say=said.append)
    # 240 pictures of 2 shapes in 60 batches of 4, of each the first left out: 232 in 58 s, and 59 x 0.5 s of texts.
    assert said == ["2.7 images/s in this process: 104.8 hours for a million"]
