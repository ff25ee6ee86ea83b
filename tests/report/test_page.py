"""What the page says, that hostile strings stay text, and its files."""

from __future__ import annotations

import base64
import csv
import html.parser
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from report_cells import ABOUT, make_cell, spoil, store, store_all

from metarl.evaluation import results
from metarl.evaluation.mp4 import Mp4Writer
from metarl.evaluation.results import Video
from metarl.report import evaluation_tables, figures, write_report
from metarl.report.inputs import read_inputs
from metarl.report.markup import alike, details, join, number, slug, tag
from metarl.report.posters import poster
from metarl.report.scores import gather
from metarl.report.tables import DataTable, render
from metarl.report.videos import find_clips, show_clips

SQUARE = Path(__file__).parents[1] / "data" / "square.mp4"
SCRIPT = "<script>alert(1)</script>"
QUOTES = '" onmouseover="alert(2)" x="'
FORMULA = "=HYPERLINK(1)"


class Elements(html.parser.HTMLParser):
    """Collects elements with their attributes, and the text outside of them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]


def report(*folders: Path, **options) -> tuple[str, Elements]:
    page, _ = write_report(list(folders), **options)
    text = page.read_text()
    return text, Elements(text)


# --- Escaping ---------------------------------------------------------------------


def test_text_is_escaped_wherever_it_is_put():
    assert tag("p", "a<b & 'c'") == "<p>a&lt;b &amp; &#x27;c&#x27;</p>"
    assert tag("p", title='"x"', hidden=True, id=None) == (
        '<p title="&quot;x&quot;" hidden></p>'
    )
    assert tag("p", tag("b", "<")) == "<p><b>&lt;</b></p>"
    assert join(["<", tag("br")], ", ") == "&lt;, <br>"
    assert "<i>" not in details("<i>", "<i>")
    assert "<i>" not in render(DataTable("<i>", ("<i>",), (("<i>",),)))


def test_hostile_names_are_text_on_the_page_and_no_formula_in_csv(tmp_path):
    for i, name in enumerate((SCRIPT, QUOTES, FORMULA)):
        for seed in (1, 2):
            cell = make_cell(name, "Pong-v5", seed)
            store(tmp_path, cell, float(seed + i), about={**ABOUT, "commit": SCRIPT})
    text, elements = report(tmp_path)
    assert SCRIPT not in text
    assert SCRIPT in "".join(elements.text)
    (script,) = elements.named("script")
    assert script == {}
    handlers = [k for _, found in elements.found for k in found if k.startswith("on")]
    assert handlers == []
    files = sorted((tmp_path / figures.FOLDER).iterdir())
    assert {path.suffix for path in files} == {".csv", ".png"}
    # A name that is a path would leave the folder.
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", path.name) for path in files)
    for path in files:
        if path.suffix == ".csv":
            cells = [c for row in csv.reader(path.open(newline="")) for c in row]
            assert not any(cell.startswith(("=", "@", "+")) for cell in cells)
            assert f"'{FORMULA}" in cells


def test_numbers_that_are_read_together_have_as_many_decimals():
    assert alike([1.006, 0.9958, 1.0301]) == ["1.01", "1.00", "1.03"]
    assert alike([0.0, -0.0033, 0.0051]) == ["0.000", "−0.003", "0.005"]
    assert alike([-0.0001, 0.2]) == ["0.000", "0.200"]
    assert alike([1234.5, 999.4]) == ["1,234", "999"]
    assert alike([0.0, 0.0]) == ["0.00", "0.00"]
    assert alike([1e308, -5e307, 0.0]) == ["1.00e308", "−5.00e307", "0"]
    assert alike([float("inf"), 2.0]) == ["–", "2"]
    assert alike([0.00012, 0.0]) == ["0.000120", "0.000000"]


def test_a_name_of_mathematics_is_drawn_as_it_is(tmp_path):
    store_all(tmp_path, {("$\\frac{x$", "Pong-v5"): [1.0, 2.0]})
    report(tmp_path)


def test_the_page_loads_nothing(tmp_path):
    store_all(tmp_path, {("actor_critic", "Pong-v5"): [1.0, 2.0]})
    _, elements = report(tmp_path)
    for name, attributes in elements.found:
        source = attributes.get("src") or attributes.get("href") or "#"
        assert source.startswith(("data:", "#")), name
    (policy,) = [
        m["content"]
        for m in elements.named("meta")
        if m.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; ")


# --- Contents ---------------------------------------------------------------------


def test_the_sections_in_their_order(tmp_path):
    for game, seen in (("Pong-v5", ("Pong-v5",)), ("Boxing-v5", ("Pong-v5",))):
        for seed in (1, 2):
            cell = make_cell("mine", game, seed, sha256="a" * 64, games_seen=seen)
            store(tmp_path, cell, 10.0 + seed)
            store(tmp_path, make_cell("actor_critic", game, seed), 4.0 + seed)
    text, elements = report(tmp_path)
    assert [s["id"] for s in elements.named("section")] == [
        "headline",
        "games",
        "scores",
        "not-run",
        "settings",
        "origin",
        "methods",
    ]
    assert text.index("Held-out games") < text.index("meta-trained on (seen)")
    names = {p.stem for p in (tmp_path / figures.FOLDER).glob("*.png")}
    kinds = ("iqm", "improvement", "efficiency", "profile")
    assert names == {
        *(
            f"{kind}_{status}-human"
            for kind in kinds
            for status in ("held_out", "seen")
        ),
        "game_Boxing-v5",
        "game_Pong-v5",
    }
    assert "seeds that are in these results, no combination is missing." in text
    methods = text[text.index('id="methods"') :]
    assert "Intervals treat both as exact, also where they were measured" in methods
    # 8 cells of 36 s.
    assert "machine time</dt><dd>4m48s</dd>" in text
    for value in ("0123456789ab", "0.10.2", "cpu"):
        assert value in text


def test_cautions_name_what_is_amiss(tmp_path):
    store(tmp_path, make_cell("actor_critic", "Pong-v5", 1), 1.0, episodes=7)
    other = make_cell("mine", "Pong-v5", 2)
    about = {**ABOUT, "commit": "fedcba", "diverged_at_env_steps": 500}
    store(tmp_path, other, None, about=about)
    text, _ = report(tmp_path)
    cautions = text[text.index("Before you read") : text.index("</aside>")]
    for sentence in (
        "2 of 2 pairs of rule and game have a single seed",
        "Cells come from 2 commits.",
        "Not run, of the rules, games and seeds that are in these results: 2 cells.",
        "Scored on fewer than 100 episodes: 2 cells.",
        "Losses became infinite or NaN in 1 cell: mine on Pong-v5, seed 2.",
    ):
        assert sentence in cautions
    assert "no episode finished" in text


def test_a_grid_that_is_half_done_has_no_interval_yet(tmp_path):
    finals = {"Pong-v5": [1.0, 2.0], "Boxing-v5": [40.0, 60.0]}
    store_all(tmp_path, {("actor_critic", game): x for game, x in finals.items()})
    finals = {"Pong-v5": [10.0], "Boxing-v5": [90.0, 99.0]}
    store_all(tmp_path, {("mine", game): x for game, x in finals.items()})
    text, _ = report(tmp_path)
    assert "1 of 4 pairs of rule and game has a single seed" in text
    assert "It has no interval, since it has a single seed on some game" in text
    with (tmp_path / figures.FOLDER / "iqm_held_out-human.csv").open() as file:
        ends = {row["rule"]: bool(row["low"]) for row in csv.DictReader(file)}
    assert ends == {"mine": False, "actor_critic": True}
    for kind in ("improvement", "profile", "efficiency"):
        path = tmp_path / figures.FOLDER / f"{kind}_held_out-human.csv"
        rows = list(csv.DictReader(path.open()))
        assert any(row["rule"] == "mine" for row in rows)
        assert not any(row["low"] for row in rows if row["rule"] == "mine")


def test_rules_that_played_other_games_by_one_name_are_told(tmp_path):
    sticky = "environment.atari.sticky_actions=0.25"
    colour = "environment.atari.grayscale=false"  # what is seen, not what is played
    for game, given in (("Pong-v5", sticky), ("Boxing-v5", colour)):
        store(tmp_path, make_cell("actor_critic", game, 1), 1.0)
        store(tmp_path, make_cell("mine", game, 1, given), 1.0)
    # Options of Atari that a rule brings are with its other games too, for nothing.
    for rule in ("random", "mine"):
        store(tmp_path, make_cell(rule, "Catch-v0", 1), 0.0)
    path = results.cell_path(tmp_path, make_cell("random", "Catch-v0", 1))
    tree = json.loads(path.read_text())
    tree["settings"]["environment"]["atari"]["sticky_actions"] = 0.25
    path.write_text(json.dumps(tree))
    text, _ = report(tmp_path)
    said = "rules: Pong-v5 (sticky_actions = 0.25 and 0.0)."
    assert text.count("Not the same game to all rules") == text.count(said) == 1


def test_where_no_episode_finished_there_is_a_page_all_the_same(tmp_path):
    store(tmp_path, make_cell("random", "Pong-v5", 1), None)
    text, elements = report(tmp_path)
    assert "<title>random on 1 game</title>" in text
    assert '<th scope="row" data-value="Pong-v5">Pong-v5</th>' in text
    assert "no agent finished an episode" in text
    assert "Every game has normalised scores." not in text
    assert "Left out: Pong-v5 (no return of any rule)." in text
    assert len(elements.named("img")) == 1


def test_uninformative_games_are_listed(tmp_path):
    store_all(
        tmp_path,
        {
            ("actor_critic", "Pong-v5"): [1.0, 2.0],
            ("actor_critic", "Boxing-v5"): [-1.0, 2.0],
        },
    )
    text, _ = report(tmp_path)
    assert "<b>Uninformative</b>: Boxing-v5 (no compared rule" in text
    assert "Left out: Boxing-v5 (uninformative" in text


def test_a_game_with_a_seed_that_finished_no_episode_is_not_aggregated(tmp_path):
    store_all(
        tmp_path,
        {
            ("actor_critic", "Pong-v5"): [1.0, 2.0],
            ("actor_critic", "Boxing-v5"): [90.0, 91.0],
        },
    )
    store(tmp_path, make_cell("actor_critic", "Boxing-v5", 3), None)
    text, _ = report(tmp_path)
    assert "Aggregated over 1 game: Pong-v5." in text
    why = "in some seeds no episode finished: actor_critic"
    assert f"Left out: Boxing-v5 ({why})." in text


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_game_with_a_return_that_is_not_finite_is_not_aggregated(tmp_path, bad):
    store_all(
        tmp_path,
        {
            ("actor_critic", "Pong-v5"): [1.0, 2.0],
            ("actor_critic", "Boxing-v5"): [90.0, 91.0],
            ("actor_critic", "Breakout-v5"): [20.0, 21.0],
            ("actor_critic", "Qbert-v5"): [5.0],
        },
    )
    for game, seed in (("Boxing-v5", 2), ("Qbert-v5", 1)):
        spoil(tmp_path, make_cell("actor_critic", game, seed), bad)
    text, _ = report(tmp_path)
    cautions = text[text.index("Before you read") : text.index("</aside>")]
    assert (
        "The return is not finite in 2 cells, whose game is in no aggregate: "
        "actor_critic on Boxing-v5, seed 2, actor_critic on Qbert-v5, seed 1."
    ) in cautions
    assert "Aggregated over 2 games: Breakout-v5, Pong-v5." in text
    why = "in some seeds the return is not finite: actor_critic"
    assert f"Left out: Boxing-v5 ({why})." in text
    assert "no agent has a finite return" in text
    assert "finished an episode" not in text
    card = (tmp_path / figures.FOLDER / "game_Qbert-v5.csv").read_text()
    assert card.count("actor_critic,1,") == 2


def test_a_rule_with_less_than_half_of_the_games_is_told(tmp_path):
    games = ("Boxing-v5", "Breakout-v5", "Pong-v5")
    store_all(tmp_path, {("mine", game): [90.0, 91.0] for game in games})
    for game in games[:2]:
        store(tmp_path, make_cell("mine", game, 3), None)
    text, _ = report(tmp_path)
    assert "Left out: Pong-v5 (no rule has scores on half of these games)." in text


def test_a_rule_with_few_of_the_games_takes_none_from_the_others(tmp_path):
    store_all(
        tmp_path,
        {("actor_critic", game): [90.0, 91.0] for game in ("Boxing-v5", "Catch-v0")}
        | {("actor_critic", game): [20.0, 21.0] for game in ("Pong-v5",)}
        | {("actor_critic", "Breakout-v5"): [20.0, 21.0]}
        | {("mine", "Pong-v5"): [20.0, 21.0]},
    )
    text, _ = report(tmp_path)
    assert "Aggregated over 3 games: Boxing-v5, Breakout-v5, Pong-v5." in text
    assert "Not compared here: mine, which lacks scores on some of them." in text


def test_figures_of_an_earlier_report_go_and_other_files_stay(tmp_path):
    old = tmp_path / figures.FOLDER
    old.mkdir()
    (old / "iqm_old.png").write_bytes(b"x")
    (old / "notes.txt").write_text("mine")
    store_all(tmp_path, {("actor_critic", "Pong-v5"): [1.0, 2.0]})
    report(tmp_path)
    assert not (old / "iqm_old.png").exists()
    assert (old / "notes.txt").read_text() == "mine"


def test_equal_results_give_equal_figures(tmp_path):
    store_all(tmp_path / "a", {("actor_critic", "Pong-v5"): [1.0, 2.0]})
    _, first = write_report([tmp_path / "a"])
    _, second = write_report([tmp_path / "a"], tmp_path / "b")
    assert [f.png for f in first.figures] == [f.png for f in second.figures]
    assert [f.rows for f in first.figures] == [f.rows for f in second.figures]


# --- Videos -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("videos/a.mp4", None),
        ("videos/gone.mp4", "the file is gone"),
        ("../secret.mp4", "not a video in results"),
        ("videos/link.mp4", "not a video in results"),
        ("cells/actor_critic__Pong-v5__seed1.json", "not a video in results"),
    ],
)
def test_videos_are_read_from_their_results_alone(tmp_path, file, problem):
    folder = tmp_path / "results"
    (folder / "videos").mkdir(parents=True)
    shutil.copy(SQUARE, folder / "videos" / "a.mp4")
    shutil.copy(SQUARE, tmp_path / "secret.mp4")
    (folder / "videos" / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    videos = [Video("final", file, 3.0, 1000)]
    store(folder, make_cell("actor_critic", "Pong-v5", 1), 1.0, videos=videos)
    text, elements = report(folder)
    shown = elements.named("video")
    if problem is None:
        assert shown[0]["src"].startswith("data:video/mp4;base64,")
        assert "final: return 3 after 1,000 steps (seed 1)" in text
    else:
        assert shown == []
        assert f"{file}: {problem}" in text


def test_a_video_has_a_picture_of_its_middle(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    with Mp4Writer(path, fps=30) as writer:
        for i in range(20):
            writer.add(np.full((64, 64, 3), 255 if i >= 9 else 0, np.uint8))
    shown = poster(path)
    kind, _, data = shown.partition(",")
    assert kind == "data:image/jpeg;base64"
    with av.open(io.BytesIO(base64.b64decode(data))) as picture:
        pixels = next(picture.decode(video=0)).to_ndarray(format="rgb24")
    assert pixels.shape == (64, 64, 3)
    assert pixels.mean() > 200
    path.write_bytes(b"no video")
    assert poster(path) is None


def test_a_random_agent_is_shown_once_and_every_game_has_its_part(
    tmp_path, monkeypatch
):
    (tmp_path / "videos").mkdir()
    for game in ("Boxing-v5", "Pong-v5"):
        for rule in ("actor_critic", "mine"):
            videos = []
            for stage in ("random", "final"):
                file = f"videos/{game}__{rule}__{stage}.mp4"
                # As encoders do, which give equal frames other bytes.
                (tmp_path / file).write_bytes(f"{game}{stage}{rule}".encode().ljust(64))
                steps = 0 if stage == "random" else 1000
                videos.append(Video(stage, file, 1.0, steps))
            store(tmp_path, make_cell(rule, game, 1), 1.0, videos=videos)
    evaluation = gather(read_inputs([tmp_path]).records, None)
    clips, _ = find_clips(evaluation)
    colors = evaluation_tables.colors(evaluation)
    shown, left_out = show_clips(clips, colors)
    assert len(clips) == 8
    assert shown.count("<video") == 6
    assert shown.count(">random agent<") == 2
    assert left_out == []
    monkeypatch.setattr("metarl.report.videos.MAX_BYTES", 4 * 64)
    shown, left_out = show_clips(clips, colors)
    assert shown.count("<video") == 4
    assert [text.partition("__")[0] for text in left_out] == [
        "videos/Boxing-v5",
        "videos/Pong-v5",
    ]


# --- Small parts ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("-inf"), "–"),
        (0.0, "0"),
        (1e-17, "0"),
        (3.0, "3"),
        (-1234567.0, "−1,234,567"),
        (0.12345, "0.123"),
        (0.0012345, "0.001"),
        (-0.00032, "−0.00032"),
        (12.345, "12.3"),
        (1234.56, "1,235"),
        (2.5e-7, "2.5e−07"),
        (1e9, "1,000,000,000"),
        (2_345_678_901, "2.35e9"),
        (-1e308, "−1.00e308"),
    ],
)
def test_numbers_for_people(value, expected):
    assert number(value) == expected


def test_names_of_files():
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("<>") == "x"
    assert slug("Pong-v5") == "Pong-v5"
