"""The studio without a browser: numbers of expressions, settings, copies, what is refused.

Gradio, which takes two seconds, is imported by the tests that need it.
"""

import json
import math
import shlex
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny
import torch
from diffusers import DDPMPipeline, DDPMScheduler, PNDMScheduler, UNet2DModel
from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from diffsteer import Guidance, Recipe, SteerScheduler, open_generator, parse
from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import read
from diffsteer.studio import jobs, snippets
from diffsteer.studio.cost import Speed
from diffsteer.studio.engine import Engine
from diffsteer.studio.expression import numbers, with_numbers
from diffsteer.studio.history import History, restored
from diffsteer.studio.jobs import References, evaluated, job, tuned
from diffsteer.studio.render import Cancelled, Preview, Sampled, decoded, sampled
from diffsteer.studio.runs import Runs, guarded
from diffsteer.studio.schedule import draw
from diffsteer.studio.serve import LARGEST, PNG, Guard, require_safe
from diffsteer.studio.settings import CONTROLS, Settings, values_of
from diffsteer.studio.view import files_of, strip_sheet

SUM = "CFG(6).rescaled(0.7).within(0.28, 5.4) + 0.5 * SAG(0.75)"
RECIPE = Recipe(
    "critters",
    "a purple three-eyed critter with antennae, on a black background",
    guidance="CFG(3)",
    steps=2,
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (
            SUM,
            "CFG scale, rescaled phi, within lo, within hi, SAG factor, SAG scale",
        ),
        ("CFG(ramp(1, 7))", "ramp start, ramp stop"),
        ("APG(7, norm=15, momentum=-0.5)", "APG scale, APG norm, APG momentum"),
        ("CFG(2) + CFG(3)", "CFG scale, CFG scale #2"),
        ('SLG(2.8, "7, 8").over(1, 8)', "SLG scale, over start, over stop"),
        ("", ""),
    ],
)
def test_numbers_are_those_of_the_text_in_its_order(text: str, names: str) -> None:
    given = numbers(text)
    assert ", ".join(n.name for n in given) == names
    assert all(n.lo <= n.value <= n.hi and n.step > 0 for n in given)
    assert with_numbers(text, [n.value for n in given]).replace(" ", "") == text.replace(" ", "")


def test_ranges_follow_the_fields() -> None:
    given = {n.name: n for n in numbers(SUM + ".over(1, 8)")}
    assert (given["rescaled phi"].lo, given["rescaled phi"].hi) == (0, 1)
    assert given["over start"].step == 1
    assert numbers("APG(7, momentum=-0.5)")[1].lo < -0.5


def test_a_moved_slider_changes_its_number_alone() -> None:
    from diffsteer.studio.controls import moved

    text = moved(SUM, 6, 0.7, 0.28, 4, 0.5, 0.75, 0, 0)
    assert text == SUM.replace("5.4", "4")
    assert parse(text, Guidance) == parse(SUM.replace("5.4", "4"), Guidance)
    with pytest.raises(InputError, match="in \\[0, 1\\]"):
        with_numbers("CFG(6).rescaled(0.7)", [None, 2])


def values(**changes: object) -> tuple[object, ...]:
    table = {name: getattr(RECIPE, name, "") for name in CONTROLS}
    return tuple({**table, "seeds": "3", **changes}.values())


def test_settings_go_to_a_recipe_and_back() -> None:
    settings = Settings.of(values(guidance=" CFG(3)\n + PAG(1) ", sampler="UniPC()", zero_snr=True))
    assert settings.recipe.guidance == "CFG(3) + PAG(1)" and settings.recipe.zero_snr
    assert Settings.of(tuple(settings.values())) == settings


ODD = (1.5, math.nan, math.inf, -math.inf)


def test_grid_varies_two_numbers() -> None:
    cells = Settings.of(values()).grid("CFG scale", [1, 2.5], "steps", [4, 8])
    assert [[(c.recipe.guidance, c.recipe.steps) for c in row] for row in cells] == [
        [("CFG(1)", 4), ("CFG(2.5)", 4)],
        [("CFG(1)", 8), ("CFG(2.5)", 8)],
    ]
    for x, columns, y, rows, reason in (
        ("steps", [1.0], "steps", [1.0], "both axes"),
        ("PAG scale", [1.0], "", None, "has no PAG scale"),
        *((axis, [v], "", None, "whole number") for axis in ("steps", "seed") for v in ODD),
        *(("CFG scale", [v], "", None, "finite") for v in ODD[1:]),
        ("seed", list(range(65)), "", None, "at most 64"),
        ("seed", [], "", None, "give the values of an axis"),
    ):
        with pytest.raises(InputError, match=reason):
            Settings.of(values()).grid(x, columns, y, rows)
    assert [c.seeds for c in Settings.of(values()).grid("seed", [4, 5])[0]] == [(4,), (5,)]
    assert values_of("1, 2.5;4,") == [1, 2.5, 4]
    with pytest.raises(InputError, match="'1, a' are no numbers"):
        values_of("1, a")
    with pytest.raises(InputError, match="17 seeds: take at most 16"):
        Settings.of(values(seeds="0-16"))


def test_command_is_read_back_as_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffsteer.cli import sample_options
    from diffsteer.cli.main import main

    recipe = Recipe(
        "critters", "it's", guidance="CFG(3)", sampler="UniPC()", zero_snr=True, steps=4
    )
    words = shlex.split(snippets.command(recipe, [3, 4]))
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(
        sample_options, "sample", lambda made, *_, **__: given.append(Recipe(**made))
    )
    given: list[Recipe] = []
    main()
    assert given == [recipe] and words[-6:-4] == ["--seeds", "3-4"]


def workflow(scheduler: object = None, latent: tuple[int, ...] = (4, 8, 8), **more: object) -> dict:
    recipe = Recipe("org/m", "a cat", guidance=SUM, steps=9, **more)
    return json.loads(
        snippets.comfyui(
            recipe, [7], scheduler or SteerScheduler(prediction_type="v_prediction"), latent
        )
    )


def test_workflow_of_comfyui_holds_the_recipe() -> None:
    more = {"sampler": "UniPC()", "spacing": "karras", "zero_snr": True, "width": 96}
    nodes = workflow(refiner="NLG(3)", strength=0.5, **more)
    inputs = {name: node["inputs"] for name, node in nodes.items()}
    assert inputs["model"]["ckpt_name"] == "m.safetensors"
    assert inputs["zero"]["model"] == ["model", 0] and inputs["refined"]["model"] == ["zero", 0]
    assert inputs["guider"]["model"] == inputs["sigmas"]["model"] == ["refined", 0]
    assert inputs["refined"]["refiner"] == "NLG(3)" and inputs["refined"]["strength"] == 0.5
    assert inputs["guider"]["guidance"] == SUM and inputs["noise"]["noise_seed"] == 7
    assert inputs["sampler"]["sampler_name"] == "uni_pc" and inputs["prompt"]["text"] == "a cat"
    assert (inputs["sigmas"]["steps"], inputs["sigmas"]["spacing"]) == (9, "karras")
    assert (inputs["latent"]["width"], inputs["latent"]["height"]) == (96, 64)
    assert workflow()["guider"]["inputs"]["model"] == ["model", 0]
    assert workflow(guide="b.safetensors")["guide"]["inputs"]["ckpt_name"] == "b.safetensors"


def test_what_comfyui_has_no_nodes_for_is_refused() -> None:
    with pytest.raises(InputError, match="no sampler like PNDMScheduler"):
        workflow(PNDMScheduler())
    with pytest.raises(InputError, match="for other models"):
        workflow(latent=(16, 8, 8))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    out = tmp_path_factory.mktemp("history")
    return Engine(("critters",), ("critters-refiner",), History(out), "cpu")


def test_run_is_the_generators_image_and_its_code_makes_it_again(engine: Engine) -> None:
    updates = list(engine.images(RECIPE, [3], threading.Event()))
    (done,) = (update for update in updates if isinstance(update, Sampled))
    assert len(updates[-1]) == 2  # the strip has both steps
    with open_generator(RECIPE, "cpu") as generate:
        assert torch.equal(generate([3])[0], done.pixels)
    code = snippets.python(RECIPE, [3]).replace("image.save(", "images.append(image) or str(")
    made: dict[str, list[Image.Image]] = {"images": []}
    exec(code, made)
    assert made["images"][0].tobytes() == done.image.tobytes()
    path, caption = engine.history.entries()[0]
    assert restored(Path(path), engine.trusted) == (RECIPE, 3)
    assert caption == "CFG(3), 2 steps, seed 3"
    assert sum(done.nfe.values()) == engine.cost(RECIPE).nfe == 4
    assert engine.cost(RECIPE).seconds == pytest.approx(done.seconds)


@pytest.mark.parametrize(
    ("model", "refiner"), [("critters", "critters-refiner"), ("critters-eps", "NLG(2)")]
)
def test_cost_is_what_is_evaluated(model: str, refiner: str, tmp_path: Path) -> None:
    engine = Engine((model,), (refiner,), History(tmp_path), "cpu")
    more = {"sampler": "UniPC()", "refiner": refiner, "guidance": "CFG(3).over(0, 1)"}
    recipe = Recipe(model, RECIPE.prompt, steps=3, **more)
    done = [u for u in engine.images(recipe, [0], threading.Event()) if isinstance(u, Sampled)]
    assert engine.cost(recipe).nfe == sum(done[0].nfe.values()) > 4


def test_a_guide_that_was_named_is_asked(tmp_path: Path) -> None:
    engine = Engine(("critters",), (), History(tmp_path), "cpu", guides=("critters-guide",))
    assert "Auto" in {entry.name for entry in engine.model("critters").menu}
    asked = Settings.of(values(guide="critters-guide", guidance="Auto(2)")).recipe
    assert asked.guide == "critters-guide" and engine.cost(asked).nfe == 4
    assert Settings.of(values(guide="critters-guide")).recipe.guide == ""
    assert "critters-guide" in engine.trusted


def test_cancel_ends_before_the_next_layer(engine: Engine) -> None:
    event = threading.Event()
    with engine.opened(RECIPE) as generator:
        before = generator([0])
        calls = []
        blocks = generator.pipe.unet.down_blocks
        handle = blocks[0].register_forward_hook(lambda *_: calls.append(event.set()))
        with pytest.raises(Cancelled):
            sampled(generator, 0, event, lambda _: None)
        handle.remove()
        assert len(calls) == 1 and generator.nfe()["rows"] == 2  # within the first step
        assert torch.equal(generator([0]), before)  # and all is as it was


def test_a_failing_run_ends_in_one_line_and_the_next_one_works(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs(engine)
    (*_, last) = guarded(runs.generate("tab", values(guidance="CGF(3)")))
    assert "did you mean" in last.status and "failed" in last.status
    (*_, last) = guarded(runs.generate("tab", values()))
    assert last.strip is not None
    (last,) = guarded(map({}.__getitem__, ["x"]))  # a fault of ours
    assert "KeyError: &#x27;x&#x27;" in last.status and "Traceback" in capsys.readouterr().err


def test_tabs_cancel_their_own_run(engine: Engine) -> None:
    runs = Runs(engine)
    first, second = runs.begin("a"), runs.begin("b")
    runs.cancel("a")
    assert first.is_set() and not second.is_set()


def test_catalogue_of_the_model_is_accepted_by_it(engine: Engine) -> None:
    menu = engine.model("critters").menu
    assert len(menu) > 25 and menu[1].text == "CFG(3)"
    for entry in menu:
        recipe = Recipe("critters", RECIPE.prompt, guidance=entry.text, steps=2)
        assert engine.cost(recipe).nfe >= 2
        assert entry.name in entry.label


def test_history_takes_nothing_that_names_other_files(engine: Engine, tmp_path: Path) -> None:
    for name, text in (("model.pt", "x"), ("a.ckpt", "x"), ("a.json", "{}"), ("no.png", "x")):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError):
            restored(tmp_path / name, engine.trusted)
    assert History(tmp_path).entries() == [(str(tmp_path / "no.png"), "")]
    assert History(tmp_path / "none").entries() == []
    from diffsteer.generate.sample_metadata import save

    for changes in ({"model": "/etc"}, {"refiner": "../r"}, {"image": "/etc/passwd"}):
        table = {"recipe": {**RECIPE.to_dict(), **changes}, "seed": 0}
        save(tmp_path / "evil.png", torch.zeros(3, 4, 4, dtype=torch.uint8), table)
        with pytest.raises(InputError, match="was not started with"):
            restored(tmp_path / "evil.png", engine.trusted)
    with pytest.raises(InputError, match="not started with"):
        engine.model("/etc")


def test_an_image_that_the_page_cannot_repeat_is_refused() -> None:
    for changes in ({"guide": "critters-guide", "guidance": "Auto(2)"}, {"spacing": "trailing"}):
        Settings(replace(RECIPE, **changes), (0,)).require_complete()
    for changes in ({"dtype": "bfloat16"}, {"settings": ("eta=1",)}):
        with pytest.raises(InputError, match=f"made with {next(iter(changes))}, which"):
            Settings(replace(RECIPE, **changes), (0,)).require_complete()


@pytest.fixture(scope="module")
def guarded_client() -> Iterator[TestClient]:
    async def answer(request: object) -> PlainTextResponse:
        return PlainTextResponse("ok")

    routes = [
        Route("/gradio_api/upload", answer, methods=["POST"]),
        Route("/{path:path}", answer, methods=["GET", "POST"]),
    ]
    app = Starlette(routes=routes, middleware=[Middleware(Guard, local=True)])
    with TestClient(app, base_url="http://127.0.0.1:7860") as client:  # which starts and ends it
        yield client


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, 200),
        ("/", {"origin": "http://127.0.0.1:7860"}, 200),
        ("/", {"origin": "http://evil.example"}, 403),
        ("/", {"origin": "http://127.0.0.1:9999"}, 403),
        ("/", {"origin": "null"}, 403),
        ("/", {"host": "evil.example:7860"}, 403),
        ("/gradio_api/queue/data", {"sec-fetch-site": "cross-site"}, 403),
        ("/gradio_api/file=http://evil.example/x", {}, 403),
        ("/gradio_api/proxy=http://evil.example", {}, 403),
        ("/gradio_api/run", {"content-length": str(LARGEST + 1)}, 413),
    ],
)
def test_foreign_requests_are_refused(
    guarded_client: TestClient, path: str, headers: dict[str, str], status: int
) -> None:
    assert guarded_client.get(path, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [
        ("a.png", PNG + b"rest", 200),
        ("a.pt", b"PK\x03\x04", 415),
        ("a.ckpt", b"\x80\x02", 415),
        ("a.pkl", PNG, 415),
        ("a.png", b"\x80\x02}q", 415),
        ("../a.png", PNG, 415),
        ("a.html", b"<script>", 415),
        ("a.png", PNG + bytes(LARGEST), 413),
    ],
)
def test_uploads_are_png_files_of_bounded_size(
    guarded_client: TestClient, name: str, content: bytes, status: int
) -> None:
    files = {"files": (name, content)}
    sent: httpx.Response = guarded_client.post("/gradio_api/upload", files=files)
    assert sent.status_code == status


@pytest.mark.parametrize(
    ("pieces", "status"),
    [([b"no file"], 415), ([bytes(2**24)] * 3, 413)],
    ids=["no file", "of a length that is not said"],
)
def test_uploads_of_other_forms_are_refused(
    guarded_client: TestClient, pieces: list[bytes], status: int
) -> None:
    sent = guarded_client.post("/gradio_api/upload", content=iter(pieces))
    assert sent.status_code == status


def test_previews_of_what_only_a_pipeline_decodes_are_left_out(engine: Engine) -> None:
    pixels, nothing = DDPMPipeline(UNet2DModel, DDPMScheduler()), Preview(1, 999.0, None)
    x0 = torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
    image = decoded(pixels, x0)
    assert image is not None and image.getpixel((0, 0)) == (0, 128, 255)
    for other in (x0[0], x0[:, :2], x0 * math.nan):
        assert decoded(pixels, other) is None
    with engine.opened(RECIPE) as generator:
        assert decoded(generator.pipe, torch.zeros(1, 4, 8, 8)) is not None
        assert decoded(generator.pipe, x0) is None
    assert strip_sheet([nothing], RECIPE, 0) is None


def test_schedule_is_drawn_and_told(engine: Engine, tmp_path: Path) -> None:
    model = engine.model("critters")
    text = draw(RECIPE, model, tmp_path / "own.png")
    assert "pure noise, as the network was trained to" in text and "brightness" in text
    with Image.open(tmp_path / "own.png") as image:
        assert image.width > 800
    leading = Recipe("critters", "a", sampler="DDIM()", spacing="leading", steps=10)
    assert "not visited" in draw(leading, model, tmp_path / "leading.png")


def test_jobs_name_the_recipe_the_reference_and_nothing_outside(tmp_path: Path) -> None:
    references = References(tmp_path / "jobs", (tmp_path / "real",))
    assert references.names("critters") == ["data of critters", str(tmp_path / "real")]
    with pytest.raises(InputError, match="choose a reference"):
        references.path("critters", "/etc")
    folder, captions = references.path("critters", "data of critters")
    assert folder == tmp_path / "jobs" / "data" / "critters" and len(captions) == 200
    assert references.path("critters", str(tmp_path / "real")) == (tmp_path / "real", ())
    assert len(list(folder.glob("*.png"))) == 200
    settings = Settings.of(values())
    words = evaluated(settings, folder, captions, 20, tmp_path)
    assert words[:4] == ["evaluate", str(tmp_path / "evaluate.json"), "--reference", str(folder)]
    assert read(tmp_path / "evaluate.json").prompts == captions
    words = tuned(settings, folder, captions, "CFG(w), w=1..4", 1, 20, tmp_path)
    assert words[words.index("--seeds") + 1] == "100000-100019"
    negative = Settings.of(values(negative="a dog", sampler="UniPC()", zero_snr=True))
    words = tuned(negative, folder, captions, "CFG(w), w=1..4", 1, 20, tmp_path)
    assert {"--negative", "a dog", "--sampler", "UniPC()", "--zero-snr"} <= set(words)
    assert not {"--guidance", "--prompt", "--steps"} & set(words)
    from diffsteer.studio.measures import space_of

    assert space_of("CFG(3)") == "CFG(w), w=1.5..6, steps=8..24"


def test_tabs_that_look_at_the_settings(engine: Engine) -> None:
    """The model's schedule and verdict, and the settings that are kept to compare with."""
    from diffsteer.studio.page import Page

    page = Page(engine)
    names = {}
    for each in page.build().fns.values():
        names |= {getattr(each.fn, "__name__", ""): each.fn}
    words, path = names["drawn"](*values())
    assert "Sampling starts from pure noise" in words
    with Image.open(path) as image:
        assert image.width > 800
    verdict, report = names["asked"]("critters")
    assert "critters predicts v_prediction, terminal SNR zero. No problem found." in verdict
    assert report.startswith("critters: folder, SD 1")
    assert names["pin"](*values())[0] == RECIPE
    assert "A: CFG(3), 2 steps" in names["pin"](*values())[1]
    kept, failed = names["pin"](*values(guidance="CGF(3)"))
    assert kept is None and "did you mean" in failed
    for failed, *_ in (
        names["drawn"](*values(guidance="CGF(3)")),
        names["asked"]("critterz"),
        names["dropped"](__file__),
    ):
        assert 'role="alert"' in failed


def test_what_is_offered_is_that_of_the_chosen_model(tmp_path: Path) -> None:
    """Guidances, words and references, whichever model the studio was started with first."""
    from diffsteer.studio.page import Page

    plain = str(tiny.saved(tmp_path))
    engine = Engine(("critters", plain), (), History(tmp_path / "h"), "cpu", (tmp_path / "real",))
    page = Page(engine)
    blocks = page.build()
    controls, chosen = page.controls, page.controls.fields["model"]
    changes = [f for f in blocks.fns.values() if (chosen._id, "change") in f.targets]

    def updates(model: str, other: str) -> dict[int, dict[str, Any]]:
        found = {}
        for each in (f for f in changes if len(f.inputs) == 2):
            given = each.fn(model, other)
            given = given if isinstance(given, list) else [given]
            found |= zip([one._id for one in each.outputs], given, strict=True)
        return found

    assert list(controls.words) == ["critters"]
    box, menu = controls.words["critters"].box, controls.menu
    (reference,) = (b for b in blocks.blocks.values() if getattr(b, "elem_id", "") == "reference")
    real = str(tmp_path / "real")
    for model, text, words, names in (
        (plain, "CFG(3)", False, [real]),
        ("critters", "CFG(3)", True, ["data of critters", real]),
    ):
        now = updates(model, text)
        assert now[box._id]["visible"] is words
        assert now[reference._id]["choices"] == names
        assert now[reference._id]["value"] == names[0]
        wanted = [(entry.label, entry.text) for entry in engine.model(model).menu]
        assert now[menu._id]["choices"] == wanted
        assert now[menu._id]["value"] in (None, text)
    assert updates(plain, real)[reference._id]["value"] == real  # what was chosen stays
    words = controls.words["critters"]
    prompt = words.composed(*(menu.value for menu in words.menus))
    assert prompt == engine.model("critters").defaults.prompt


def test_a_job_yields_its_lines_its_error_and_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PATIENCE", 999.0)  # in which it is not killed
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a script
    assert list(job(["--version"], tmp_path, threading.Event()))[0].startswith("diffsteer ")
    with pytest.raises(InputError, match="did you mean"):
        list(job(["smaple"], tmp_path, threading.Event()))
    event = threading.Event()
    event.set()
    with pytest.raises(Cancelled):
        list(job(["studio", "--no-browser"], tmp_path, event))
    signal.signal(signal.SIGINT, handler)


def test_a_public_bind_needs_a_password() -> None:
    with pytest.raises(InputError, match="--password"):
        require_safe("0.0.0.0", "")
    require_safe("0.0.0.0", "secret")
    require_safe("127.0.0.1", "")


def test_speed_is_the_median_of_what_was_measured() -> None:
    speed = Speed()
    assert speed.seconds("m", 3) is None
    for seconds in (8.0, 2.0, 2.2):
        speed.note("m", seconds, 2)
    assert speed.seconds("m", 10) == pytest.approx(11)


def test_images_are_written_once_for_the_browser(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    first, second = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "red")
    (path, _), other = files_of([(first, "seed 0"), second])
    inode = Path(path).stat().st_ino
    assert files_of(first) == path != other and Path(path).stat().st_ino == inode
    with Image.open(other) as image:
        assert image.tobytes() == second.tobytes()
    assert files_of(None) is None


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"model_index.json": '{"_class_name": "WanPipeline"}'}, "makes video"),
        ({"model_index.json": '{"_class_name": "StableAudioPipeline"}'}, "makes audio"),
    ],
)
def test_models_without_images_are_refused_before_they_load(
    tmp_path: Path, files: dict[str, str], reason: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    name = str(tmp_path)
    with pytest.raises(InputError, match=reason):
        Engine((name,), (), History(tmp_path / "out"), "cpu").model(name)
