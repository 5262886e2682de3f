# SPDX-License-Identifier: MIT
"""Finds wording that this project does not use, in the documentation and in what vftrace prints.

    python -m tests.words                 every place, as FILE:LINE: what is wrong: the sentence
    python -m tests.words --docstrings    also the first lines of docstrings

It reads the documentation, the texts of alerts and of boards, and what vftrace prints. docs/contributing/README.md has
the rules ("Words"). It ignores code, in fences and between backticks.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    *sorted(ROOT.glob("docs/**/*.md")),
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "tests/lab/README.md")
    ),
)
CODE = sorted(ROOT.glob("vftrace/**/*.py"))
BOARDS = sorted(ROOT.glob("dashboards/boards/*.py"))
RULES = ROOT / "dashboards/prometheus/vftrace.rules.yml"

_BEGIN = r"(?:^|(?<=[.!?:;|] )|(?<=\*\* ))"
"""Where a sentence or a cell of a table begins."""

AVOID = {
    rf"{_BEGIN}Of (?!course)": "begins with 'Of': name the subject first",
    rf"{_BEGIN}That (?:is|was|the|it|they|an?|one|no|these|all|where|what|fits|makes)\b": (
        "begins with 'That': name the subject first"
    ),
    r"(?<![Tt]here )\bis no (?!longer|more)\w+": "'is no X': say what it is not, or has not",
    r"\bare none\b": "'are none'",
    r"\b[Tt](?:old|ells?)\b": "'told' for reported: report, print, show",
    r"\b[Ss]a(?:ys?|id|ying)\b": "'says': report, print, name, state",
    r"\b[Hh]ear(?:s|d)?\b": "'heard' for received",
    r"\baway\b(?! from)": "'away': absent, removed, unplugged",
    r"\bat rest\b": "'at rest': quiesced, idle",
    r"\b(?:come|comes|came) to nothing\b": "'come to nothing': fails",
    r"\bask(?:s|ed|ing)? for\b": "'asked for': request, with who requests",
    r"\bheld? against\b": "'hold against': compare with",
    r"\bforetold?\b": "'foretold': forecast",
    r"\blets? go\b": "'let go': detach, release",
    r"\bgets? on\b": "'get on': continue, initialise",
    r"\bin vain\b": "'in vain': without success",
}
"""Pattern: what to write instead."""

AVOID_IN_PROSE = AVOID | {
    r"\b(?:goes?|went|going) on\b": "'goes on': continue, run",
    r"\bli(?:ves?|ved) on\b": "'lives on': continue",
    r"\bran on after\b": "'ran on': run again",
    r"\bby turns\b": "'by turns': in turn",
    r"\bmend(?:s|ed)?\b": "'mend': correct, fix",
    r"\b[Ss]ome (?=\d)": "'some' before a number: about",
    r"\bg[ai]ve(?:s|n)?\b[^.|]{0,20}\bback\b": "'give back': release, return",
    r"\b(?:not|is|are|was|were) whole\b": "'whole': complete, incomplete",
    r"\bin the median\b": "'in the median': the median is",
    r"\bfor good\b(?! reason)": "'for good': permanently, or until when",
    r"\bhold(?:s|ing)? (?:them|it|this|these|all) to\b": "'hold to': compare with, check",
    r"\bc[ao]mes? back\b": "'come back': return, start again",
    r"\bagain and again\b|\banew\b": "'again and again', 'anew': repeatedly, again",
    r"\bst(?:ands?|ood) still\b": "'stand still': stopped, paused",
    r"\bc[ao]mes? in between\b": "'come in between': delay, interrupt",
    r"\b(?:not|is|was) looked at\b": "'looked at': read, examine",
    rf"{_BEGIN}W(?:hat|here) (?=[^.?|\n]*\.)": "a clause as the subject: name the thing",
    rf"{_BEGIN}(?:One|Ones|The ones?|Those) (?:that|which|who|whose)\b": "'One that': name the thing",
    r"\b[Ww]hoever\b": "'whoever': name the person, the team or the process",
    r"\bof which\b": "'of which': a sentence of its own",
    r"\b(?:nobody|anybody|everybody) else\b": "'nobody else': name who",
    r"\bleads? out of\b": "'lead out of': end",
    r"\bcosts? nobody\b": "'cost nobody': does not delay, does not affect",
}
"""Also for pages, alerts, boards and messages. Older docstrings still have some of these."""

NOT_PROSE = r"^ *```.*?^ *```|^(?: {4,}\S.*\n)+|`[^`\n]*`|<!--.*?-->|\]\([^)]*\)"
"""Code, comments and the targets of links."""

ALLOWED = ("guest not heard yet",)
"""Names of the public contract that break a rule."""


@dataclass(frozen=True)
class Find:
    """A place with wording to change."""

    path: Path
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.rule}: {self.text}"


def broken(text: str, rules: Mapping[str, str] = AVOID) -> Iterator[tuple[int, str]]:
    """Where in a text a rule is broken, and which."""
    for name in ALLOWED:
        text = text.replace(name, " " * len(name))
    for pattern, rule in rules.items():
        for found in re.finditer(pattern, text, re.MULTILINE):
            yield found.start(), rule


def in_page(path: Path) -> Iterator[Find]:
    """Those of a page of Markdown."""
    text = path.read_text()
    plain = re.sub(
        r"^ *```.*?^ *```|^(?: {4,}\S.*\n)+|`[^`\n]*`|<!--.*?-->|\]\([^)]*\)",
        _blank,
        text,
        flags=re.M | re.S,
    )
    # Lines of a paragraph are one text: a sentence may begin at the beginning of the next line only after a stop.
    joined = re.sub(r"(?<=[^\n.!?:|])\n(?=[a-zA-Z])", " ", plain)
    for at, rule in broken(joined, AVOID_IN_PROSE):
        yield Find(path, text.count("\n", 0, at) + 1, rule, _around(text, at))


def in_alerts(path: Path) -> Iterator[Find]:
    """Those of the summaries and descriptions of alerts, without their templates."""
    text = path.read_text()
    for group in yaml.safe_load(text)["groups"]:
        for rule in group["rules"]:
            for name in ("summary", "description"):
                note = rule.get("annotations", {}).get(name, "")
                plain = re.sub(r"\{\{.*?\}\}|`[^`\n]*`", _blank, note)
                for at, why in broken(plain, AVOID_IN_PROSE):
                    line = text.count("\n", 0, text.index(f"alert: {rule['alert']}\n")) + 1
                    yield Find(path, line, why, _around(note, at))


def in_messages(path: Path, rules: Mapping[str, str] = AVOID_IN_PROSE) -> Iterator[Find]:
    """Those of the texts in a module: messages, helps, titles; docstrings are not texts."""
    tree = ast.parse(path.read_text())
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in documented
            and node.value.count(" ") >= 2
        ):
            for at, rule in broken(re.sub(r"`[^`\n]*`", _blank, node.value), rules):
                yield Find(path, node.lineno, rule, _around(node.value, at))


def in_docstrings(path: Path) -> Iterator[Find]:
    """Those of the first lines of a module's docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            first = node.value.value.strip().split("\n")[0]
            for at, rule in broken(re.sub(r"`[^`\n]*`", _blank, first)):
                yield Find(path, node.lineno, rule, _around(first, at))


def _blank(found: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", found[0])


def _around(text: str, at: int) -> str:
    begin = max(text.rfind("\n", 0, at) + 1, at - 60)
    end = text.find("\n", at)
    return text[begin : end if end != -1 else None][:120].strip()


def main() -> int:
    """Print every find; 1 if there is one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--docstrings", action="store_true")
    wanted = parser.parse_args().docstrings
    finds = [find for path in PAGES for find in in_page(path)]
    finds += in_alerts(RULES)
    finds += [find for path in BOARDS for find in in_messages(path, AVOID_IN_PROSE)]
    finds += [find for path in CODE for find in in_messages(path)]
    if wanted:
        finds += [find for path in CODE for find in in_docstrings(path)]
    print(*finds, sep="\n")
    return bool(finds)


if __name__ == "__main__":
    sys.exit(main())
