"""What stands in front of everything until a key answers it: a question, and the help."""

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

KEYS = (
    ("↑ ↓ j k", "choose a row; also page up and down, home, end"),
    ("p", "pause the row's tag, once it is out of use"),
    ("r", "resume it, once there is room"),
    ("esc", "take a message away"),
    ("?", "this help"),
    ("q", "quit"),
)
GLYPHS_TOLD = "█ resident  ▓ idle or partial  ▒ on the way  ░ held; in the arena: files without contents  · free"

_CSS = """
{name} {{ align: center middle; background: $background 60%; }}
{name} > VerticalScroll {{
    width: 68; max-width: 95%; height: auto; max-height: 90%; padding: 0 1;
    border: round $primary; background: $surface;
}}
{name} Static {{ height: auto; background: $surface; }}
"""


class Question(ModalScreen[bool]):
    """Asks before something is done. Only `y` is a yes."""

    DEFAULT_CSS = _CSS.format(name="Question")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,enter,q", "answer(False)", "no"),
    ]

    def __init__(self, question: str, details: str) -> None:
        super().__init__()
        self._question, self._details = question, details

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            text = Text.assemble((self._question, "bold"), "\n", self._details, "\n\n")
            yield Static(text.append_text(Text.assemble(("y", "bold"), " yes   ", ("n", "bold"), " no")))

    def action_answer(self, yes: bool) -> None:
        """Give the answer."""
        self.dismiss(yes)


class Help(ModalScreen[None]):
    """Tells the keys and what bars are made of."""

    DEFAULT_CSS = _CSS.format(name="Help")
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter,question_mark,h", "dismiss", "close")]

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            text = Text()
            for keys, words in KEYS:
                text.append(f"{keys:<9}", style="bold").append(f"{words}\n")
            yield Static(text.append(f"\n{GLYPHS_TOLD}", style="dim"))
