"""Tables of HTML read again."""

from html.parser import HTMLParser


class Cells(HTMLParser):
    """The cells of a table, row by row, and its caption."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.caption, self._open = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, _):
        self._open = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_data(self, data):
        if self._open == "caption":
            self.caption += data
        elif self._open in {"td", "th"}:
            self.rows[-1][-1] += data
