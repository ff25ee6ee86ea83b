"""The sections of the page that show an evaluation.

Puts together what `compare.py`, the figures and the tables give; `page.py` frames it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from metarl.console import format_duration
from metarl.report import (
    agreement,
    compare,
    evaluation_figures,
    evaluation_tables,
    game_cards,
    groups,
    robustness,
)
from metarl.report.cautions import finding
from metarl.report.compare import Group
from metarl.report.contents import Contents, Section
from metarl.report.figures import Figure
from metarl.report.markup import Markup, count_of, details, join, number, tag
from metarl.report.page import show_figure, show_figures
from metarl.report.scores import Evaluation, Task
from metarl.report.tables import DataTable, render, swatch
from metarl.report.videos import find_clips, show_clips

FEW = 3
"""Discovery seeds of which a bootstrap's interval holds the truth far too rarely."""
LONG_LIST = 10
"""Games from which on their names are folded away."""


@dataclasses.dataclass
class _Page:
    """What is collected while sections are made."""

    evaluation: Evaluation
    figures: list[Figure] = dataclasses.field(default_factory=list)
    tables: list[DataTable] = dataclasses.field(default_factory=list)

    def keep(self, figure: Figure) -> Figure:
        """Return the figure, under a name that no other has, and keep it."""
        names = {other.name for other in self.figures}
        name, count = figure.name, 1
        while name in names:
            count += 1
            name = f"{figure.name}-{count}"
        figure = dataclasses.replace(figure, name=name)
        self.figures.append(figure)
        return figure

    def table(self, table: DataTable) -> Markup:
        """Return a table as HTML, and keep its rows."""
        self.tables.append(table)
        return render(table)


def evaluation_sections(
    evaluation: Evaluation, *, without_run: Sequence[str] = ()
) -> Contents:
    """Return the sections of an evaluation, and all that is in them.

    Args:
      evaluation: all cells.
      without_run: names of its rules whose own run is not on the page.
    """
    page = _Page(evaluation)
    compared = compare.make_groups(evaluation)
    sections = [
        Section("headline", "Headline", _headline(page, compared)),
        Section("games", "Game by game", _games(page)),
        Section("scores", "All scores", _scores(page)),
    ]
    peers = _peers(page)
    sections += [Section("peers", "Peers of each group", peers)] if peers else []
    tested = _robustness(page)
    sections += [Section("robustness", "Among distractors", tested)] if tested else []
    videos = _videos(page)
    sections += [Section("videos", "Videos", videos)] if videos else []
    sections += [
        Section("not-run", "What was not run", _not_run(page, without_run)),
        Section("settings", "Settings", _settings(page)),
        Section("origin", "Commit, versions, hardware, hours", _origin(page)),
    ]
    clips, _ = find_clips(evaluation)
    return Contents(sections, page.figures, page.tables, clips)


def legend(evaluation: Evaluation) -> Markup:
    """Return the colour of every rule."""
    colors = evaluation_tables.colors(evaluation)
    return tag(
        "ul",
        join(
            tag(
                "li",
                swatch(colors[rule.name]),
                rule.name,
                " (baseline)" if rule.name == evaluation.baseline else None,
                f": {', '.join(rule.members)}" if rule.members else None,
            )
            for rule in (*evaluation.recipes, *evaluation.rules)
        ),
        class_="legend",
    )


def facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return the size of an evaluation in a few numbers."""
    cells = list(evaluation.records())
    spent = evaluation_tables.hours(cells)
    seeds = {cell.result.seed for cell in cells}
    return [
        ("rules", str(len(evaluation.rules))),
        ("games", str(len(evaluation.tasks))),
        ("seeds", str(len(seeds))),
        ("cells", str(len(cells))),
        ("frames", number(sum(cell.result.frames for cell in cells))),
        ("machine time", "–" if spent is None else format_duration(3600 * spent)),
    ]


def _headline(page: _Page, groups: Sequence[Group]) -> Markup:
    return join(_group(page, group) for group in groups)


def _group(page: _Page, group: Group) -> Markup:
    """Return the aggregates of one status and kind of score."""
    evaluation = page.evaluation
    parts = [tag("h3", group.title), _which_games(evaluation, group)]
    if not group.common or not group.rules:
        parts.append(tag("p", "No game can be aggregated here.", class_="note"))
        return tag("div", *parts, class_="group")
    improvements = compare.improvements(evaluation, group)
    figures = []
    if group.kind != "raw":
        found = compare.aggregates(evaluation, group)
        parts.append(tag("p", finding(found), class_="finding"))
        figures.append(evaluation_figures.iqm_bars(evaluation, group, found))
    if improvements:
        figures.append(
            evaluation_figures.improvement_bars(evaluation, group, improvements)
        )
    if group.kind != "raw":
        figures.append(
            evaluation_figures.efficiency_lines(
                evaluation, group, compare.curves(evaluation, group)
            )
        )
        figures.append(
            evaluation_figures.profile_lines(
                evaluation, group, compare.profiles(evaluation, group)
            )
        )
        table = evaluation_tables.aggregate_table(
            evaluation, group, found, improvements
        )
        parts += [show_figures(map(page.keep, figures)), page.table(table)]
    else:
        parts.append(show_figures(map(page.keep, figures)))
    return tag("div", *parts, class_="group")


def _which_games(evaluation: Evaluation, group: Group) -> Markup:
    """Return which games are aggregated, which are not, and why."""
    lines = []
    if group.common:
        names = ", ".join(task.name for task in group.common)
        text = f"Aggregated over {count_of(len(group.common), 'game')}"
        is_long = len(group.common) > LONG_LIST
        lines.append(
            details(text, tag("p", names)) if is_long else tag("p", f"{text}: {names}.")
        )
    said = [
        f"Left out: {_why_left_out(evaluation, task)}."
        for task in group.tasks
        if task not in group.common
    ]
    if group.common:
        said += [
            f"{recipe.name}: {', '.join(recipe.members)} as one. Its intervals are "
            "over discovery seeds, which are drawn again too, and the agents of each."
            + (" Of so few they are too narrow." if len(recipe.members) <= FEW else "")
            for recipe in evaluation.recipes
            if set(recipe.members) <= set(group.rules)
        ]
        said += [
            f"Not compared here: {rule.name}, which lacks scores on some of them."
            for rule in evaluation.rules
            if rule.name not in group.rules
        ]
    return join(lines + [tag("p", sentence, class_="note") for sentence in said])


def _why_left_out(evaluation: Evaluation, task: Task) -> str:
    if compare.evidence(evaluation, task) == "uninformative":
        return f"{task.name} (uninformative: no rule's interval lies above random's)"
    lacking = [
        rule.name
        for rule in evaluation.rules
        if not rule.is_random and not compare.is_scored(evaluation, rule.name, task)
    ]
    if not lacking and not all(rule.is_random for rule in evaluation.rules):
        return f"{task.name} (no rule has scores on half of these games)"
    if any(evaluation.returns(rule, task) for rule in lacking):
        why = "in some seeds no episode finished"
        if any(evaluation.has_infinite(rule, task) for rule in lacking):
            why = "in some seeds the return is not finite"
        return f"{task.name} ({why}: {', '.join(lacking)})"
    return f"{task.name} (no return of {', '.join(lacking) or 'any rule'})"


def _games(page: _Page) -> Markup:
    evaluation = page.evaluation
    kinds = {task: compare.evidence(evaluation, task) for task in evaluation.tasks}
    cards = [
        page.keep(
            game_cards.game_card(
                evaluation, task, "" if word == "informative" else f" ({word})"
            )
        )
        for task, word in kinds.items()
    ]
    notes = []
    for word, why in (
        ("uninformative", "no compared rule's interval lies above random's"),
        ("undecided", "no random score is known, or no rule has more than a seed"),
    ):
        names = [task.name for task, found in kinds.items() if found == word]
        if names:
            notes.append(
                tag("p", tag("b", f"{word.title()}"), f": {', '.join(names)} ({why}).")
            )
    caption = "Dotted grey: a random policy. Dashed: a score of 1, where near. "
    first = tag("p", caption, cards[0].caption, class_="caption")
    return join(
        [
            *notes,
            first,
            tag(
                "div",
                join(show_figure(card, has_caption=False) for card in cards),
                class_="cards",
            ),
        ]
    )


def _scores(page: _Page) -> Markup:
    table = evaluation_tables.score_table(page.evaluation)
    text = (
        "Returns are raw. In brackets: 95 % bootstrap intervals over seeds. Where a "
        "seed has no return (1 of 3), there is no score, and the return is of the "
        "others. Press a heading to sort by it."
    )
    return join([tag("p", text, class_="caption"), page.table(table)])


def _peers(page: _Page) -> Markup | None:
    table = groups.peer_table(page.evaluation)
    if not table.rows:
        return None
    text = (
        "A group's return is the mean over its peers, and its frames are those of all. "
        "Ahead is who has the highest return of the newest episodes, at a row of the "
        "learning curve; times are parts of the rows at which all peers have one. "
        "Peers differ by their seeds alone: the number of one says nothing. How far "
        "they agree is measured in the states that the group has just learned from. "
        "Numbers with brackets are interquartile means over groups with their 95 % "
        "bootstrap intervals."
    )
    agreed = agreement.agreement_figures(page.evaluation)
    curves = groups.peer_figures(page.evaluation)
    return join(
        [
            tag("p", text, class_="caption"),
            page.table(agreement.lead_table(page.evaluation)),
            show_figures(map(page.keep, agreed)),
            tag("h3", "Group by group"),
            page.table(table),
            show_figures(map(page.keep, curves)),
        ]
    )


def _robustness(page: _Page) -> Markup | None:
    table = robustness.robustness_table(page.evaluation)
    if not table.rows:
        return None
    text = (
        "Agents that have learned play once more, without learning. Numbers are "
        "interquartile means over seeds, in brackets their 95 % bootstrap intervals; "
        "of a group each seed is the mean over its peers. KL is that from the policy "
        "on a clean frame to the policy on the same frame with a distractor, in nats, "
        "mean over the states of the play on clean frames."
    )
    return join([tag("p", text, class_="caption"), page.table(table)])


def _videos(page: _Page) -> Markup | None:
    clips, problems = find_clips(page.evaluation)
    if not clips and not problems:
        return None
    shown, left_out = show_clips(clips, evaluation_tables.colors(page.evaluation))
    notes = join(tag("li", text) for text in [*problems, *left_out])
    return join([shown, tag("ul", notes) if notes else None])


def _not_run(page: _Page, without_run: Sequence[str]) -> Markup:
    evaluation = page.evaluation
    parts = [
        tag("p", f"Of the suite {suite}, no rule was run on: {', '.join(games)}.")
        for suite, games in evaluation_tables.games_not_run(evaluation).items()
    ]
    if without_run:
        text = (
            f"How {', '.join(without_run)} came about is not shown: no run was found "
            "(metarl report RESULTS RUN shows the run in the folder RUN too)."
        )
        parts.append(tag("p", text))
    if not any(cell.videos for cell in evaluation.records()):
        parts.append(tag("p", "No videos were recorded (videos=true records them)."))
    for table, words, nothing in (
        (
            evaluation_tables.missing_table(evaluation),
            "Cells of the grid of all rules, games and seeds that are in these "
            "results, which were not run:",
            "Of the rules, games and seeds that are in these results, no combination "
            "is missing. Rules, games and seeds that an evaluation had not begun when "
            "it stopped are in no results, and are not known here.",
        ),
        (
            evaluation_tables.thin_table(evaluation),
            "Cells whose score is of fewer than 100 episodes:",
            "Every score is of 100 episodes or more.",
        ),
        (
            evaluation_tables.raw_table(evaluation),
            "Games without any normalised score:",
            "Every game has normalised scores.",
        ),
    ):
        if not table.rows:
            parts.append(tag("p", nothing))
            continue
        shown = join([tag("p", words), page.table(table)])
        if len(table.rows) > 12:
            shown = details(f"{words} {len(table.rows)} rows", shown)
        parts.append(shown)
    return join(parts)


def _settings(page: _Page) -> Markup:
    same, different = evaluation_tables.settings_tables(page.evaluation)
    tuning = evaluation_tables.tuning_table(page.evaluation)
    return join(
        [
            join([tag("p", "Learning rates that were tried:"), page.table(tuning)])
            if tuning.rows
            else tag("p", "No learning rate was tuned."),
            details(
                "What differs between rules and games",
                page.table(different),
                is_long=True,
            ),
            details("What all cells share", page.table(same), is_long=True),
        ]
    )


def _origin(page: _Page) -> Markup:
    folders = sorted({str(path) for path in page.evaluation.folders.values()})
    return join(
        [
            page.table(evaluation_tables.origin_table(page.evaluation)),
            tag(
                "p",
                "Cells that ran side by side share the machine's time. Results are "
                f"from {', '.join(folders)}.",
                class_="caption",
            ),
            details(
                "Versions",
                page.table(evaluation_tables.versions_table(page.evaluation)),
            ),
        ]
    )
