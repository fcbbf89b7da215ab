"""The tabs of the page, by Gradio: draw and compare, curves, data."""

import html
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr

from ec_dit.core.errors import UserError
from ec_dit.runs.workdir import Workdir
from ec_dit.studio import artist, viewer
from ec_dit.studio.album import Album
from ec_dit.studio.artist import Artist, Request

CSS = resources.files("ec_dit.studio").joinpath("page.css").read_text("utf-8")
# Frames say how high they are; only those of this page are heard.
HEAD = """<script>
addEventListener("message", (event) => {
  if (typeof (event.data || {}).viewer !== "number") return;
  for (const frame of document.querySelectorAll("iframe.inner"))
    if (frame.contentWindow === event.source) frame.style.height = Math.min(Math.max(event.data.viewer, 200), 20000) + 16 + "px";
});
</script>"""
NONE = "none"
_LOOK = 0.2  # seconds between looks at how far a drawing is


def build(painter: Artist, folder: Path, say: Callable[[str], None]) -> gr.Blocks:
    """Lays out the page.

    Args:
        folder: for pages that are downloaded.
        say: prints a line for whoever started the page.
    """
    names = list(painter.workdirs)
    with gr.Blocks(title="EC-DiT", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as page:
        with gr.Tab("Draw"):
            _draw_tab(painter, names, folder, say)
        with gr.Tab("Curves") as curves:
            _curves_tab(painter.workdirs, curves, say)
        with gr.Tab("Data") as data:
            _data_tab(painter.workdirs, data, say)
    return page


def _draw_tab(painter: Artist, names: list[str], folder: Path, say: Callable[[str], None]) -> None:
    own = painter.settings(names[0])
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            prompt = gr.Textbox(
                label="Prompt", lines=2, max_length=artist.MOST_LETTERS, elem_id="prompt", autofocus=True
            )
            run = gr.Dropdown(names, value=names[0], label="Run", elem_id="run")
            other = gr.Dropdown(
                [NONE, *names],
                value=names[1] if len(names) > 1 else NONE,
                label="Beside it, on the same noise",
                visible=len(names) > 1,
                elem_id="other",
            )
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, elem_id="seed")
            steps = gr.Slider(1, artist.MOST_STEPS, own.steps, step=1, label="Steps", elem_id="steps")
            guidance = gr.Slider(
                0, artist.MOST_GUIDANCE, own.guidance, step=0.05, label="Guidance (1 = off)", elem_id="guidance"
            )
            with gr.Accordion("More", open=False):
                num = gr.Slider(1, artist.MOST_PICTURES, 1, step=1, label="Pictures", elem_id="num")
                capacity = gr.Radio(
                    ["fixed", "matched"],
                    value=own.capacity,
                    label="Capacity of experts: fixed, or matched to training",
                )
                factor = gr.Number(
                    own.capacity_factor,
                    label="Experts a token, f_c (0 = as in training)",
                    minimum=0,
                    elem_id="factor",
                )
                group = gr.Dropdown(
                    sorted({"pair", "image", own.group_size}),
                    value=own.group_size,
                    label="Tokens routed together",
                    allow_custom_value=True,
                )
            with gr.Row():
                go = gr.Button("Draw", variant="primary", elem_id="draw")
                stop = gr.Button("Stop", elem_id="stop")
            save = gr.DownloadButton("Save as one page", interactive=False, elem_id="save")
        with gr.Column(scale=3, min_width=300):
            shown = gr.HTML(_words("Write a prompt and press Draw."), elem_id="shown")

    pool = ThreadPoolExecutor(1, "artist")

    def draw(
        text: str,
        first: str,
        second: str,
        seed_: float | None,
        steps_: float,
        guidance_: float,
        num_: float,
        capacity_: str,
        factor_: float | None,
        group_: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio learns of it
    ) -> Iterator[Any]:
        chosen = [first] + [second] * (second not in (NONE, first))
        sampling: dict[str, object] = {"steps": int(steps_), "guidance": float(guidance_)}
        asked = {"capacity": capacity_, "capacity_factor": float(factor_ or 0), "group_size": str(group_)}
        known = painter.settings(first)  # of experts only what was changed: another rule's run beside it keeps its own
        sampling |= {key: value for key, value in asked.items() if value != getattr(known, key)}
        request = Request(chosen, (text or "").strip(), int(num_), int(seed_ or 0), sampling)
        place, lock = (0, 0), threading.Lock()

        def reach(done: int, total: int) -> None:
            nonlocal place
            with lock:
                place = max(place, (done, total))

        future = pool.submit(painter.draw, request, reach)
        try:
            while not future.done():
                done, total = place
                progress(
                    (done, total) if total else 0.0,
                    desc="drawing" if done else "loading and compiling",
                    unit="evaluations",
                )
                yield gr.skip(), gr.skip()
                time.sleep(_LOOK)
            panels = future.result()
        finally:
            request.stopped.set()
            future.cancel()
        page = viewer.page(panels, f"“{text.strip()}”")
        path = folder / f"routing-{time.time_ns()}.html"
        path.write_text(page, encoding="utf-8")
        yield frame(page, "Pictures and routes", scripts=True), gr.DownloadButton(value=str(path), interactive=True)

    inputs = [prompt, run, other, seed, steps, guidance, num, capacity, factor, group]
    asked = gr.on(
        [go.click, prompt.submit],
        _kept_up_generator(draw, say),
        inputs,
        [shown, save],
        concurrency_limit=1,
        show_progress_on=shown,
        api_visibility="private",
    )
    stop.click(None, cancels=[asked], api_visibility="private")

    def own_settings(name: str) -> list[Any]:
        found = painter.settings(name)
        return [found.steps, found.guidance, found.capacity, found.capacity_factor, found.group_size]

    run.change(_kept_up(own_settings, say), run, [steps, guidance, capacity, factor, group], api_visibility="private")


def _curves_tab(workdirs: Mapping[str, str], tab: gr.Tab, say: Callable[[str], None]) -> None:
    names = list(workdirs)
    with gr.Row():
        chosen = gr.CheckboxGroup(names, value=names, label="Runs", elem_id="curves-of")
        again = gr.Button("Read again", elem_id="again", scale=0)
    shown = gr.HTML(_words("Reading the runs' figures."), elem_id="curves")

    def report(wanted: list[str]) -> str:
        from ec_dit.reporting import page, story  # matplotlib starts when somebody looks

        if not wanted:
            raise UserError("Choose a run.")
        text = page.page(story.read([workdirs[name] for name in names if name in wanted]))
        return frame(text, "Curves", scripts=False)

    told = _kept_up(report, say)  # one at a time, as matplotlib keeps its settings for the whole process
    for event in (tab.select, again.click, chosen.change):
        event(told, chosen, shown, concurrency_limit=1, concurrency_id="curves", api_visibility="private")


def _data_tab(workdirs: Mapping[str, str], tab: gr.Tab, say: Callable[[str], None]) -> None:
    albums = {name: Album(Workdir(path).dataset) for name, path in workdirs.items()}
    names = list(albums)
    with gr.Row():
        run = gr.Dropdown(names, value=names[0], label="Data of", elem_id="data-of")
        split = gr.Dropdown([], label="Split", elem_id="split")
        words = gr.Textbox(label="Captions with", max_length=200, elem_id="words")
    with gr.Row():
        first, further = gr.Button("From the start", elem_id="first"), gr.Button("Further", elem_id="further")
    where = gr.Textbox(label="Shown", interactive=False, elem_id="where")
    shown = gr.HTML(elem_id="album")
    with gr.Accordion("How it was prepared, and what was left out", open=False):
        facts = gr.HTML(elem_id="facts")
    after = gr.State(0)

    def opened(name: str, text: str) -> list[Any]:
        splits = albums[name].splits()
        return [gr.Dropdown(splits, value=splits[0]), albums[name].facts(), *turned(name, splits[0], text, 0)]

    def turned(name: str, which: str, text: str, start: int | None) -> list[Any]:
        leaf = albums[name].leaf(which, start or 0, text or "")
        return [leaf.html, leaf.words, leaf.after, gr.Button(interactive=leaf.after is not None)]

    turn = [shown, where, after, further]
    for event in (tab.select, run.change):
        event(_kept_up(opened, say), [run, words], [split, facts, *turn], api_visibility="private")
    further.click(_kept_up(turned, say), [run, split, words, after], turn, api_visibility="private")
    zero = gr.State(0)
    for event in (first.click, words.submit, split.input):
        event(_kept_up(turned, say), [run, split, words, zero], turn, api_visibility="private")


def frame(page: str, title: str, *, scripts: bool) -> str:
    """Puts a whole page into this one, where it can reach nothing of it."""
    allowed = "allow-scripts" if scripts else ""
    return f'<iframe class="inner" title="{title}" sandbox="{allowed}" srcdoc="{html.escape(page)}"></iframe>'


def _words(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _kept_up(function: Callable[..., Any], say: Callable[[str], None]) -> Callable[..., Any]:
    """Makes of an error a message for who asked; the page goes on."""

    def call(*given: Any) -> Any:
        try:
            return function(*given)
        except Exception as error:  # noqa: BLE001 - whatever it is, others go on
            raise _told(error, say) from None

    return call


def _kept_up_generator(function: Callable[..., Iterator[Any]], say: Callable[[str], None]) -> Callable[..., Any]:
    def call(*given: Any, progress: gr.Progress = gr.Progress()) -> Iterator[Any]:  # noqa: B008
        try:
            yield from function(*given, progress)
        except Exception as error:  # noqa: BLE001
            raise _told(error, say) from None

    return call


def _told(error: Exception, say: Callable[[str], None]) -> gr.Error:
    if isinstance(error, UserError):
        text = re.sub(r"--config\.(sample\.)?", "", str(error))
    else:
        say("a request failed; the page goes on:")
        traceback.print_exception(error, file=sys.stderr)
        text = f"This request failed ({type(error).__name__}); the terminal of the page says more."
    return gr.Error(html.escape(text), duration=None, print_exception=False)
