"""python -m ec_dit.app: the page in a real Chromium, against routes computed here; the static page; the album; wrong inputs."""

import base64
import contextlib
import gc
import io
import re
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
import weakref

import numpy as np
import pytest
from PIL import Image

import ec_dit
from ec_dit import app, prepare
from ec_dit.core.errors import UserError
from ec_dit.data import dataset
from tests import runs, sets

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.extra("app"), pytest.mark.xdist_group("unbroken")]
browser_needed = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
NASTY = "a <script>window.broken = 1</script><img src=x onerror='window.broken = 1'> circle & \"more\""
PROMPT, SEED, STEPS = "a red circle", 7, 4
MESH = {f"mesh.{axis}": size for axis, size in zip(("data", "fsdp", "expert", "tensor"), (-1, 1, 1, 1), strict=True)}


def trained(tmp_path_factory, name, *changes):
    """A run of two steps, on the data of the run that other tests have."""
    place, *_ = runs.unbroken(tmp_path_factory)
    target = tmp_path_factory.mktemp(name) / name
    runs.finish(runs.start(place, target, *changes, "--config.train.steps=2"))
    return target


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with two sparse blocks."""
    return trained(tmp_path_factory, "deep", "--config.model.num_blocks=4")


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return trained(tmp_path_factory, "dense", "--config.moe.routing=dense", "--config.moe.num_experts=0")


@pytest.fixture(scope="module")
def empty(tmp_path_factory, workdir):
    """A copy of the run that has lost its checkpoints."""
    target = tmp_path_factory.mktemp("empty") / "lost"
    shutil.copytree(workdir, target, ignore=shutil.ignore_patterns("checkpoints"))
    return target


@pytest.fixture(scope="module")
def routes(workdir):
    """What `import ec_dit` says of the picture that the page draws."""
    run = ec_dit.load(str(workdir), changes=MESH, say=lambda line: None)
    return run.routing(PROMPT, seed=SEED, steps=STEPS, batch_size=1)


@pytest.fixture(scope="module")
def address(workdir, dense, empty, tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folders = f"--workdir={workdir},{dense},{empty}"
    own = tmp_path_factory.mktemp("scratch")
    variables = {"TMPDIR": str(own)}
    process = runs.call(workdir.parent, "app", folders, f"--port={port}", prefix=("env",), variables=variables)
    lines = []
    with process:
        reader = threading.Thread(target=lambda: lines.extend(process.stdout))
        reader.start()
        end = time.monotonic() + 120
        while not any("http://" in line for line in lines):
            assert process.poll() is None and time.monotonic() < end, "".join(lines)
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        assert process.wait(30) == 0
        reader.join()
        assert not list(own.glob("ec_dit_app_*"))


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(chromium, address, **options):
    """A page of a user of its own, ready; it asks nobody else for anything, and no script of it fails."""
    context = chromium.new_context(accept_downloads=True, **options)
    page = context.new_page()
    page.set_default_timeout(120_000)
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    page.get_by_label("Prompt").wait_for()
    yield page
    assert not wrong
    assert {url for url in asked if not url.startswith((address, "data:", "blob:", "about:"))} == set()
    context.close()


def fill(page, prompt=PROMPT, other="none", seed=SEED, steps=STEPS):
    page.get_by_label("Prompt").fill(prompt)
    choose(page, "Beside it, on the same noise", other)
    page.get_by_label("Seed").fill(str(seed))
    page.get_by_label("number input for Steps").fill(str(steps))
    page.get_by_label("number input for Steps").press("Tab")


def choose(page, label, value):
    box = page.get_by_label(label)
    box.click()
    page.get_by_role("option", name=value, exact=True).click()


def draw(page, **asked):
    fill(page, **asked)
    page.get_by_role("button", name="Draw", exact=True).click()
    return shown(page, asked.get("prompt", PROMPT))


def shown(page, prompt=PROMPT):
    inner = page.frame_locator("#shown iframe.inner")
    inner.locator("h1", has_text=prompt[:20]).wait_for()
    inner.locator("article").first.wait_for()
    return inner


def slide(inner, name, place):
    inner.locator(f"#{name}").evaluate(
        "(slider, place) => { slider.value = place; slider.dispatchEvent(new Event('input')); }", place
    )


def figures(routes, block, evaluation):
    """The line under a picture, from the arrays."""
    count_YX = routes.taken_LUYXE[block, evaluation].sum(-1)
    mean, none = (np.floor(100 * each + 0.5) for each in (count_YX.mean(), np.mean(count_YX == 0)))  # halves up
    return (
        f"block {routes.block_L[block]}, t = {routes.time_U[evaluation]:.3f}: {mean / 100:.2f} experts a token, "
        f"at most {count_YX.max()}; none on {none:.0f} % of the tokens"
    )


def check_overlay(inner, routes, article=0):
    """Both sliders through all their places; then tokens under the pointer and by the keyboard."""
    own = inner.locator("article").nth(article)
    blocks, evaluations, rows, columns, _ = routes.taken_LUYXE.shape
    assert blocks == 2
    line, token, canvas = own.locator(".figures"), own.locator(".token"), own.locator("canvas")
    for block in range(blocks):
        slide(inner, "block", block)
        for evaluation in range(evaluations):
            slide(inner, "time", evaluation)
            assert line.inner_text() == figures(routes, block, evaluation)
    box = canvas.bounding_box()
    for y, x in ((0, 0), (rows - 1, columns - 1), (rows // 2, 0)):
        canvas.hover(position={"x": box["width"] * (x + 0.5) / columns, "y": box["height"] * (y + 0.5) / rows})
        took = np.flatnonzero(routes.taken_LUYXE[-1, -1, y, x])
        words = (
            "no expert" if not took.size else f"{took.size} expert{'s' * (took.size != 1)}: {', '.join(map(str, took))}"
        )
        assert token.inner_text() == f"row {y + 1}, column {x + 1}: {words}"
    canvas.focus()
    canvas.press("ArrowRight")
    assert token.inner_text().startswith(f"row {rows // 2 + 1}, column {min(2, columns)}: ")


@browser_needed
def test_a_picture_its_overlay_and_the_saved_page(chromium, address, routes, tmp_path):
    with opened(chromium, address) as page:
        inner = draw(page)
        assert inner.locator("article").count() == 1
        check_overlay(inner, routes)
        with page.expect_download() as held:
            page.get_by_role("button", name="Save as one page").click()
        held.value.save_as(tmp_path / "saved.html")
        heights = []
        for width in (1000, 1280, 1000, 1280):  # the frame is as high as what is in it, again and again
            page.set_viewport_size({"width": width, "height": 800})
            page.wait_for_timeout(300)
            heights.append(page.locator("#shown iframe").bounding_box()["height"])
        assert heights[:2] == heights[2:]
        page.reload()
        page.get_by_label("Prompt").wait_for()
        assert page.locator("#shown iframe").count() == 0
        shown_again = draw(page)
        assert shown_again.locator("article").count() == 1
    alone = chromium.new_context(offline=True).new_page()
    alone.goto((tmp_path / "saved.html").as_uri())
    check_overlay(alone, routes)
    assert alone.locator("img").get_attribute("alt") == f"Picture drawn for: {PROMPT}"
    alone.context.close()


@browser_needed
def test_the_second_picture_has_its_own_overlay(chromium, address, workdir):
    with opened(chromium, address) as page:
        page.get_by_role("button", name="More").click()
        page.get_by_label("number input for Pictures").fill("2")
        page.get_by_label("number input for Pictures").press("Tab")
        inner = draw(page)
        inner.locator("article").nth(1).wait_for()
        run = ec_dit.load(str(workdir), changes=MESH, say=lambda line: None)
        check_overlay(inner, run.routing(PROMPT, index=1, seed=SEED, steps=STEPS, batch_size=1), article=1)


@browser_needed
def test_runs_of_other_steps_are_shown_at_the_nearest_time_and_turn(chromium, tmp_path):
    from ec_dit.studio import viewer

    rng = np.random.default_rng(0)

    def panel(times):
        taken_LUYXE = rng.random((2, len(times), 4, 4, 8)) < 0.3
        image_YXZ = np.zeros((8, 8, 3), np.uint8)
        return ec_dit.Routes(image_YXZ, np.array([1, 3]), np.array(times), taken_LUYXE * 1.0, taken_LUYXE)

    long, short = panel([1, 0.8, 0.8, 0.5, 0.5, 0.2, 0.2]), panel([1, 0.7, 0.7, 0.25])
    panels = [viewer.Panel(name, "a", {}, each.image_YXZ, each) for name, each in (("long", long), ("short", short))]
    (tmp_path / "two.html").write_text(viewer.page(panels, "two"))
    page = chromium.new_context(offline=True).new_page()
    page.goto((tmp_path / "two.html").as_uri())
    for place, beside in enumerate((0, 1, 2, 1, 2, 3, 3)):  # by hand: 1; .7 twice for .8 and for .5; .25 for .2
        slide(page, "time", place)
        lines = page.locator(".figures").all_inner_texts()
        assert lines == [figures(long, 0, place), figures(short, 0, beside)]
    page.context.close()


@browser_needed
def test_two_runs_on_the_same_noise_one_of_them_dense(chromium, address, dense):
    with opened(chromium, address) as page:
        inner = draw(page, other="dense")
        assert inner.locator("article h2").all_inner_texts() == ["deep", "dense"]
        assert "dense model" in inner.locator("article").nth(1).inner_text()
        data = inner.locator("article img").nth(1).get_attribute("src")
    run = ec_dit.load(str(dense), changes=MESH, say=lambda line: None)
    expected = run.draw(PROMPT, seed=SEED, steps=STEPS, batch_size=1)[0]
    found = pixels(data)
    assert np.abs(found.astype(int) - expected).max() <= 1  # a program of its own; a rounding apart


def pixels(address):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))


@browser_needed
def test_what_is_wrong_is_said_and_the_page_goes_on(chromium, address):
    with opened(chromium, address) as page:
        errors = page.get_by_test_id("toast-body")

        def told(words):
            errors.filter(has_text=words).first.wait_for()

        fill(page, prompt=" ")
        page.get_by_role("button", name="Draw", exact=True).click()
        told("Nothing to draw")
        choose(page, "Run", "lost")
        fill(page)
        page.get_by_role("button", name="Draw", exact=True).click()
        told("checkpoint")
        choose(page, "Run", "deep")
        page.get_by_role("button", name="More").click()
        page.get_by_label("Tokens routed together").fill("<b>seven</b>")
        page.get_by_label("Tokens routed together").press("Enter")
        page.get_by_role("button", name="Draw", exact=True).click()
        told("<b>seven</b>")
        page.get_by_label("Tokens routed together").fill("pair")
        page.get_by_label("Tokens routed together").press("Enter")
        assert draw(page).locator("article").count() == 1


@browser_needed
def test_a_prompt_is_text_and_nothing_else(chromium, address):
    with opened(chromium, address) as page:
        inner = draw(page, prompt=NASTY)
        assert inner.locator(".prompt").inner_text() == NASTY
        assert inner.locator("article img").count() == 1
        frame = page.locator("#shown iframe.inner").element_handle().content_frame()
        assert frame.evaluate("window.broken") is None and page.evaluate("window.broken") is None
        reached = frame.evaluate(
            "(() => { try { return parent.document.title } catch (error) { return 'kept out' } })()"
        )
        assert reached == "kept out"


@browser_needed
def test_two_users_at_once(chromium, address):
    with opened(chromium, address) as one, opened(chromium, address) as two:
        fill(one, prompt="two blue squares")
        fill(two, prompt="a green star")
        for page in (one, two):
            page.get_by_role("button", name="Draw", exact=True).click()
        assert shown(one, "two blue squares").locator(".prompt").inner_text() == "two blue squares"
        assert shown(two, "a green star").locator(".prompt").inner_text() == "a green star"


@browser_needed
@pytest.mark.parametrize("width", [390, 1440])
def test_curves_and_data_and_nothing_is_wider_than_the_screen(chromium, address, width):
    with opened(chromium, address, viewport={"width": width, "height": 844}, color_scheme="dark") as page:
        page.get_by_role("tab", name="Data").click()
        page.locator(".album li").first.wait_for()
        first = page.locator(".album li").first.inner_text()
        assert page.locator(".album img").count() == 24
        page.get_by_role("button", name="Further").click()
        page.wait_for_function("first => document.querySelector('.album li').innerText !== first", arg=first)
        page.get_by_label("Captions with").fill("circle")
        page.get_by_label("Captions with").press("Enter")
        page.wait_for_function("document.querySelector('#where textarea, #where input').value.includes('circle')")
        captions = page.locator(".album li p:first-of-type").all_inner_texts()
        assert captions and all("circle" in caption for caption in captions)
        page.get_by_role("button", name="How it was prepared").click()
        page.locator("#facts").get_by_text("Nothing was left out.").wait_for()
        if width == 390:
            page.get_by_role("tab", name="Curves").click()
            for name in ("dense", "lost"):
                page.get_by_label(name).uncheck()
            page.frame_locator("#curves iframe").locator("h1", has_text=re.compile("^deep$")).wait_for()
        page.get_by_role("tab", name="Draw").click()
        draw(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def answer(url, **headers):
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30).status  # noqa: S310
    except urllib.error.HTTPError as error:
        return error.code


def test_files_names_and_uploads_of_others_are_refused(address, workdir):
    assert answer(address) == 200
    for path in ("/etc/passwd", workdir / "config.json", workdir.parent / "tiny.py"):
        assert answer(f"{address}/gradio_api/file={path}") in (403, 404)
    for path in ("upload", "process_recording", "component_server", "deep_link?session_hash=1", "call/draw"):
        assert answer(f"{address}/gradio_api/{path}") == 403
    assert answer(address, Origin="http://attacker.example") == 403
    assert answer(address, Origin=address) == 200
    assert answer(address, Host="attacker.example") == 400
    with urllib.request.urlopen(address, timeout=30) as page:  # noqa: S310
        assert "default-src 'self'" in page.headers["Content-Security-Policy"]


def test_the_export_is_the_same_page(workdir, routes, tmp_path):
    out = tmp_path / "new" / "circle.html"
    arguments = [f"--workdir={workdir}", f"--export={out}", f"--prompt={PROMPT}", f"--seed={SEED}"]
    assert app.main(["app", *arguments]) == 0
    text = out.read_text()
    assert f'"prompt": "{PROMPT}"' in text and "http" not in re.sub(r"http-equiv", "", text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir=DIR is needed"),
        (["--workdir={workdir},{workdir}/"], "is given twice"),
        (["--workdir={workdir}/nothing"], "is no workdir of a run"),
        (["--workdir={workdir}", "--export={workdir}"], "must end in .html"),
        (["--workdir={workdir}", "--export={workdir}.html"], "Nothing to draw"),
        (["--workdir={workdir}", "--port=0"], "port"),
        (["--workdir={workdir}", "--host=192.0.2.1"], "--host=192.0.2.1"),
    ],
)
def test_wrong_inputs(workdir, capsys, arguments, message):
    assert app.main(["app", *(each.format(workdir=workdir) for each in arguments)]) != 0
    told = capsys.readouterr()
    assert message in told.out + told.err


def test_a_port_that_is_taken_is_said(workdir, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert app.main(["app", f"--workdir={workdir}", f"--port={taken.getsockname()[1]}"]) != 0
    assert "Give another --port" in capsys.readouterr().err


def test_what_is_refused():
    from ec_dit.studio.serving import address, refusal

    here = {"host": "a:1", "origin": "http://a:1", "content-length": "9"}
    assert refusal("POST", "/gradio_api/queue/join", here) is None
    assert refusal("POST", "/gradio_api/queue/join", here | {"content-length": "65537"})[0] == 413
    assert refusal("POST", "/gradio_api/queue/join", {"host": "a:1"})[0] == 411
    assert refusal("GET", "/", {"host": "a:1", "origin": "http://b:1"})[0] == 403
    assert refusal("GET", "/gradio_api/queue/join/../upload", {})[0] == 403
    assert address("::1", 80) == "http://[::1]:80" and address("localhost", 80) == "http://localhost:80"


def test_requests_have_bounds():
    from ec_dit.studio.artist import Request

    Request(["a"], "fine", 1, 0, {"steps": 20, "guidance": 3.0}).check()
    for request in (
        Request(["a"], "x" * 1001),
        Request(["a"], "\ud800"),
        Request(["a"], "fine", num=5),
        Request(["a"], "fine", seed=-1),
        Request(["a"], "fine", sampling={"steps": 251}),
        Request(["a"], "fine", sampling={"guidance": float("nan")}),
    ):
        with pytest.raises(UserError):
            request.check()


def test_progress_counts_every_evaluation_and_a_stop_is_heard(workdir, monkeypatch):
    from ec_dit.studio import artist as artists
    from ec_dit.studio.artist import Artist, Request, StoppedError

    artist = Artist({"one": str(workdir)}, say=lambda line: None)
    heard = []
    artist.draw(Request(["one"], PROMPT, 2, SEED, {"steps": 3}), lambda done, total: heard.append((done, total)))
    total = heard[0][1]
    assert sorted(done for done, _ in heard) == list(range(1, total + 1)) and total % 2 == 0
    gone = weakref.ref(next(iter(artist._programs["one"].values())))
    monkeypatch.setattr(artists, "_PROGRAMS", 1)
    artist.draw(Request(["one"], PROMPT, 1, SEED, {"steps": 2}))
    gc.collect()
    assert gone() is None  # what made room is not kept by anything
    monkeypatch.setattr(artists, "_MOST_BYTES", 1000)
    with pytest.raises(UserError, match="one: The routes of"):
        artist.draw(Request(["one"], PROMPT, 1, SEED, {"steps": 4}))
    request = Request(["one"], PROMPT, 2, SEED, {"steps": 3})
    request.stopped.set()
    with pytest.raises(StoppedError):
        artist.draw(request)
    with pytest.raises(UserError, match="There is no run two"):
        artist.draw(Request(["two"], PROMPT))


def test_an_error_of_one_request_is_told_without_its_details(capsys):
    from ec_dit.studio import tabs

    said = []

    def broken():
        raise ValueError("secret <b>")

    with pytest.raises(Exception, match="ValueError") as caught:
        tabs._kept_up(broken, said.append)()
    assert "secret" not in str(caught.value)
    assert said and "secret" in capsys.readouterr().err


def test_the_album_escapes_captions_and_says_why_things_were_left_out(tmp_path):
    from ec_dit.studio.album import Album

    source = tmp_path / "folder"
    source.mkdir()
    for number in range(30):
        (source / f"{number:03}.png").write_bytes(sets.png(np.full((16, 16, 3), 8 * number, np.uint8)))
        (source / f"{number:03}.txt").write_text(NASTY if number % 2 else "plain")
    (source / "999.png").write_bytes(b"no picture")
    (source / "999.txt").write_text("<b>torn</b>")
    out = tmp_path / "data"
    assert prepare.main(["prepare", "--source=folder", f"--path={source}", f"--out={out}", "--image_size=16"]) == 0
    album = Album(lambda: dataset.open(out))
    split = album.splits()[0]
    leaf = album.leaf(split)
    assert "<script" not in leaf.html and "onerror='" not in leaf.html and "&lt;script&gt;" in leaf.html
    assert leaf.html.count("<img") == 24 and leaf.after == 24
    rest = album.leaf(split, leaf.after)
    assert rest.after is None
    plain = album.leaf(split, 0, "PLAIN")
    assert "script" not in plain.html and plain.html.count("<li>") >= 10
    facts = album.facts()
    assert "999" in facts and "Left out" in facts
