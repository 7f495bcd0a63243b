"""Writes the results: Markdown into the part of a page that is marked for them, and charts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.papers.chart import Curve, curves, differences
from bench.papers.protocol import FAMILY, LEVEL
from bench.papers.scores import Comparison
from bench.papers.statistics import equivalence, holm, interval, sign_flip
from moegen.tune.whole import write_text

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


@dataclass(frozen=True)
class Section:
    """What is to be said of a claim.

    Attributes:
      title: the claim in a sentence.
      table: lines of cells, the head first.
      comparisons: the paired differences.
      missing: jobs that have not been run.
      curves: by name, to be drawn together; {} for none.
    """

    title: str
    table: list[list[str]]
    comparisons: list[Comparison]
    missing: int
    curves: Mapping[str, Curve] = field(default_factory=dict)


def corrected(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Holm's p-values of the whole family; a hypothesis without a result counts as p = 1."""
    p_values = dict.fromkeys(FAMILY, 1.0)
    p_values |= {c.primary: sign_flip(c.differences) for c in comparisons if c.primary}
    return holm(p_values)


def text(sections: Mapping[str, Section]) -> str:
    """The results in Markdown; charts are linked as papers/NAME.svg."""
    family = corrected([c for s in sections.values() for c in s.comparisons])
    return "\n".join(_section(name, section, family) for name, section in sections.items())


def check(page: Path) -> tuple[str, str]:
    """What stands before and after the results.

    Raises:
      ValueError: if the page has no marks for them.
    """
    content = page.read_text(encoding="utf-8")
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"--page: {page} has no {BEGIN} and {END}; fix: put them in")
    return before, after


def write(page: Path, sections: Mapping[str, Section]) -> None:
    """Puts the results between the page's marks, and the charts into the folder papers beside it.

    Raises:
      ValueError: if the page has no marks.
    """
    before, after = check(page)
    folder = page.parent / "papers"
    folder.mkdir(exist_ok=True)
    for name, section in sections.items():
        for score, chosen in _by_score(section.comparisons).items():
            drawing = differences(chosen, f"{score}, paired differences by seed")
            write_text(folder / _file(name, score), drawing)
        if section.curves:
            drawing = curves(
                section.curves, "accuracy in percent by capacity factor, mean of seeds"
            )
            write_text(folder / _file(name, "curves"), drawing)
    write_text(page, f"{before}{BEGIN}\n\n{text(sections)}\n{END}{after}")


def _section(name: str, section: Section, family: Mapping[str, float]) -> str:
    lines = [f"### {name}: {section.title}", ""]
    if section.missing:
        lines += [f"**Not finished: {section.missing} jobs have not been run.**", ""]
    if len(section.table) > 1:
        lines += [*_table(section.table), ""]
    if not section.comparisons:
        return "\n".join(lines)
    head = ["difference", "in", "mean", "interval", "p", "p (Holm)", "seeds"]
    rows = [head, *(_row(c, family) for c in section.comparisons)]
    lines += [*_table(rows), ""]
    lines += [_verdict(c, family) for c in section.comparisons if c.primary]
    lines += [_equivalence(c) for c in section.comparisons if c.name.endswith("C = 2")]
    drawn = [s for s in _by_score(section.comparisons) if s in ("accuracy", "NLL")]
    lines += ["", *(f"![{s} by seed](papers/{_file(name, s)})" for s in drawn), ""]
    if section.curves:
        lines += [f"![accuracy by capacity](papers/{_file(name, 'curves')})", ""]
    return "\n".join(lines)


def _row(one: Comparison, family: Mapping[str, float]) -> list[str]:
    bounds = interval(one.differences)
    precise = ".2f" if one.unit else ".4f"
    return [
        one.name,
        f"{one.score} {one.unit}".strip(),
        f"{one.mean:+{precise}}",
        f"{bounds.low:+{precise}} to {bounds.high:+{precise}} ({bounds.level:.1%})",
        f"{sign_flip(one.differences):.4f}",
        f"{family[one.primary]:.4f}" if one.primary else "",
        " ".join(f"{d:+{precise}}" for d in one.differences),
    ]


def _verdict(one: Comparison, family: Mapping[str, float]) -> str:
    assert one.primary is not None
    p = family[one.primary]
    shown = "a difference is shown" if p < LEVEL else "no difference is shown"
    size = f"{one.mean:+.2f} points" if one.unit else f"{one.mean:+.4f}"
    return f"Primary, {one.primary}: {size}, p = {p:.4f} after Holm: **{shown}**.\n"


def _equivalence(one: Comparison, margin: float = 0.1) -> str:
    p = equivalence(one.differences, margin)
    shown = "equivalent" if p < LEVEL else "equivalence is not shown"
    return f"{one.name}, within {margin} points: p = {p:.4f} (two one-sided tests): {shown}.\n"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *others = ("| " + " | ".join(row) + " |" for row in rows)
    return [head, "|" + "---|" * len(rows[0]), *others]


def _by_score(comparisons: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    found: dict[str, list[Comparison]] = {}
    for one in comparisons:
        found.setdefault(one.score, []).append(one)
    return found


def _file(name: str, score: str) -> str:
    return f"{name}-{score.lower().replace(' ', '-')}.svg"
