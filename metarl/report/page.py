"""The page around the sections: head, navigation, style and script.

A page loads nothing: pictures and videos are in it, and its own policy
(Content-Security-Policy) forbids everything else, scripts but its own included.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources

import metarl
from metarl.report.contents import Section
from metarl.report.figures import FOLDER, Figure
from metarl.report.markup import Markup, join, tag

_METHODS = (
    "Interquartile mean (IQM): the mean of the middle half of all runs of all games. A "
    "plain mean would be ruled by the few games with the largest scores. Every game "
    "counts alike, whatever its number of seeds.",
    "Intervals: 95 % percentile intervals of a stratified bootstrap, which draws the "
    "seeds of each game anew, 2,000 times (1,000 for each point of a curve). With few "
    "seeds they are too narrow: in a simulation of normally distributed runs on 5 "
    "games, intervals of 2, 3, 5 and 10 seeds held the true mean in 76, 85, 90 and "
    "93 % of the cases. A rule that has a single seed on some game has no interval.",
    "Scores: (return − random) / (reference − random). The reference is the published "
    "human score; where there is none, the best possible return; where that is not "
    "known either, the mean return of the baseline rule here. Random is the published "
    "score where there is one (of ProcGen the lower end of its range), else the mean "
    "return of the rule “random” here. Intervals treat both as exact, also where they "
    "were measured here; with few seeds of them, intervals of such scores are too "
    "narrow.",
    "Seen, validation, held out: what the manifest of a rule says of a game: that the "
    "rule was meta-trained on it, that it was used to tune or choose the rule, or "
    "neither. Games of different status, and scores of different kinds, are never "
    "averaged together. A rule without meta-parameters has seen no game and is shown "
    "beside the others.",
    "Uninformative: a game on which no compared rule ends above random with intervals "
    "apart. It is no evidence for or against a rule, and is left out of the "
    "aggregates. Undecided: one on which no rule has an interval, or of which no "
    "random score is known. It is in the aggregates.",
    "Probability of improvement: that a run of the rule beats a run of the baseline on "
    "the same game (Mann-Whitney; a tie is half), mean over games.",
    "Frames: environment steps times the frame skip. The measures are those of Agarwal "
    "et al., “Deep reinforcement learning at the edge of the statistical precipice”, "
    "2021.",
)


@dataclasses.dataclass(frozen=True)
class Front:
    """What the page begins with.

    Attributes:
      title: of the page.
      subtitle: what it is of.
      facts: a few numbers, by what they are.
      legend: colours of the rules; empty without any.
      cautions: what to know before the numbers.
    """

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]]
    legend: Markup
    cautions: Sequence[str]


def write_page(front: Front, sections: Sequence[Section], *, has_scores: bool) -> str:
    """Return the whole page as HTML.

    Args:
      front: its beginning.
      sections: in their order.
      has_scores: whether to explain how scores are computed.
    """
    style, script = _resource("page.css"), _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; media-src data:; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content=f"metarl {metarl.__version__}"),
        tag("title", front.title),
        tag("style", Markup(style)),
    )
    methods = Section(
        "methods",
        "How the numbers are made",
        tag("ul", join(tag("li", text) for text in _METHODS)),
    )
    shown = [*sections, methods] if has_scores else list(sections)
    body = tag(
        "body",
        _header(front, shown),
        tag("main", join(_section(section) for section in shown)),
        tag("script", Markup(script)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def show_figures(
    figures: Iterable[Figure], *, class_: str = "figures", has_caption: bool = True
) -> Markup:
    """Return figures side by side where there is room."""
    shown = join(show_figure(figure, has_caption=has_caption) for figure in figures)
    return tag("div", shown, class_=class_)


def show_figure(figure: Figure, *, has_caption: bool = True) -> Markup:
    """Return a figure with the picture in it."""
    data = base64.b64encode(figure.png).decode()
    image = tag(
        "img",
        src=f"data:image/png;base64,{data}",
        alt=f"{figure.title}. {figure.alt}",
        width=round(96 * figure.width),
        height=round(96 * figure.height),
    )
    caption = tag(
        "figcaption",
        tag("p", figure.caption) if has_caption else None,
        tag("p", f"{FOLDER}/{figure.name}.png, .csv", class_="files"),
    )
    return tag("figure", tag("h4", figure.title), image, caption)


def _header(front: Front, sections: Sequence[Section]) -> Markup:
    links = join(
        tag("a", section.title, href=f"#{section.name}") for section in sections
    )
    facts = join(
        tag("div", tag("dt", name), tag("dd", value)) for name, value in front.facts
    )
    notes = join(tag("li", text) for text in front.cautions)
    return tag(
        "header",
        tag("h1", front.title),
        tag("p", front.subtitle, class_="subtitle"),
        tag("dl", facts, class_="facts") if front.facts else None,
        front.legend or None,
        tag("nav", links, aria_label="sections") if len(sections) > 1 else None,
        tag("aside", tag("h2", "Before you read"), tag("ul", notes))
        if front.cautions
        else None,
    )


def _section(section: Section) -> Markup:
    return tag("section", tag("h2", section.title), section.content, id=section.name)


def _resource(name: str) -> str:
    return (resources.files("metarl.report") / name).read_text("utf-8")
