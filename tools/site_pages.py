# SPDX-License-Identifier: MIT
"""Orders the pages of the documentation's site, and completes their HTML. MkDocs runs it as a hook (mkdocs.yml).

A section's named pages come first, in the order in which a newcomer reads them. All others follow by name, so that a
new page needs no entry here.
"""

import re
from pathlib import Path
from typing import Any

_HOW_TO = (
    *("packages", "trace-a-migration", "run-as-a-service", "prometheus-and-grafana", "kubernetes"),
    *("two-hosts", "service-downtime", "compare-and-what-if", "virtual-functions"),
    *("vendor-profile", "traces", "python", "troubleshooting"),
)
_REFERENCE = (
    *("command-line", "json", "metrics", "phases", "blackout", "brownout", "advice", "gaps"),
    *("devices", "mailbox", "probes", "recordings", "limits", "glossary"),
)
SECTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "how-to": ("How to", _HOW_TO),
    "reference": ("Reference", _REFERENCE),
    "explanation": (
        "Explanation",
        ("architecture", "dirty-pages", "two-hosts", "forecast", "security"),
    ),
    "runbooks": ("Alerts", ("README",)),
    "results": ("Results", ("README",)),
    "contributing": ("Contributing", ("README",)),
}
"""Directory: title, and the pages that come first."""


def on_config(config: Any) -> Any:
    """Give MkDocs the navigation: the entry pages, then each section."""
    docs = Path(config["docs_dir"])
    config["nav"] = [
        {"Documentation": "index.md"},
        {"Getting started": "getting-started.md"},
        *({title: _pages(docs, name, first)} for name, (title, first) in SECTIONS.items()),
    ]
    return config


def on_page_content(html: str, **_: Any) -> str:
    """Remove the backslash of `\\|` from code in tables. Python-Markdown needs it in the source, but shows it too."""
    return re.sub(r"<td>.*?</td>", lambda cell: cell[0].replace("\\|", "|"), html, flags=re.DOTALL)


def _pages(docs: Path, section: str, first: tuple[str, ...]) -> list[str]:
    order = {name: place for place, name in enumerate(first)}
    pages = sorted(
        (docs / section).glob("*.md"),
        key=lambda page: (order.get(page.stem, len(order)), page.stem),
    )
    return [str(page.relative_to(docs)) for page in pages]
