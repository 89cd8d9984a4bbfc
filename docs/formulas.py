"""Formulas of the pages as MathML, which browsers draw themselves: a hook of mkdocs, so that no page loads a script.

``pymdownx.arithmatex`` (``generic: true``) marks formulas on a page; here each mark becomes its MathML.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

MARKED = re.compile(r'<(?P<tag>div|span) class="arithmatex">\\[\[(](?P<latex>.*?)\\[\])]</(?P=tag)>', re.DOTALL)


def on_page_content(page_html: str, **_: Any) -> str:
    """The page's HTML with every formula in MathML; called by mkdocs."""
    return MARKED.sub(_drawn, page_html)


def _drawn(found: re.Match[str]) -> str:
    tag, latex = found["tag"], html.unescape(found["latex"])
    mathml = convert(latex, display="block" if tag == "div" else "inline")
    return f'<{tag} class="formula">{mathml}</{tag}>'
