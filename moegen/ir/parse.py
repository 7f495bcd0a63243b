"""The parser: text as `format_program` prints it, back to a program."""

from __future__ import annotations

import ast
import re
from typing import Any

from moegen.errors import Location, MoegenError, ParseError
from moegen.ir.placement import Axes, placement
from moegen.ir.program import Literal, Op, Operand, Program, Value, make_attrs
from moegen.ir.types import DTYPES, Key, Route, Tensor, Type

_TOKEN = re.compile(
    r"""(?P<skip>[ \t\r]+)
      | (?P<newline>\n)
      | (?P<comment>//[^\n]*)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<number>[-+]?(?:\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)(?!\w)
                  |[-+](?:inf|nan)(?!\w))
      | (?P<value>%[^\W\d]\w*)
      | (?P<symbol>@[^\W\d][\w.]*)
      | (?P<word>[^\W\d]\w*)
      | (?P<punct>[()\[\]{}=,:])
    """,
    re.VERBOSE,
)
_LOCATION = re.compile(r"//\s*(?P<file>\S+):(?P<line>\d+)\s*$")
_CONSTANTS = {
    "True": True,
    "False": False,
    "None": None,
    "inf": float("inf"),
    "nan": float("nan"),
}


def parse(text: str, filename: str = "<text>") -> Program:
    """Parses one program.

    Raises:
      ParseError: with the file and line, what was expected and what stood there.
    """
    return _Parser(text, filename).program()


class _Parser:
    def __init__(self, text: str, filename: str):
        self.filename = filename
        self.tokens = _tokens(text, filename)
        self.at = 0
        self.values: dict[str, Value] = {}

    # --- the grammar, top down ---------------------------------------------------------

    def program(self) -> Program:
        self.expect("word", "moe")
        name = self.expect("symbol")[1:]
        self.expect("word", "dims")
        dims = self.listed("(", ")", self.dim)
        mesh = self.listed("(", ")", self.dim) if self.accept("word", "mesh") else []
        inputs = tuple(self.listed("(", ")", self.declared))
        cotangents: tuple[Value, ...] = ()
        if self.accept("word", "grad"):
            cotangents = tuple(self.listed("(", ")", self.declared))
        self.expect("punct", "{")
        ops = []
        while self.peek()[0] == "value":
            ops.append(self.op())
        self.expect("word", "return")
        outputs = self.returned()
        gradients = self.returned() if self.accept("word", "grad") else ()
        self.expect("punct", "}")
        if self.peek()[0] != "end":
            raise self.wrong("the end of the text")
        return Program(
            name, tuple(dims), inputs, tuple(ops), outputs, cotangents, gradients, tuple(mesh)
        )

    def dim(self) -> tuple[str, int]:
        name = self.expect("word")
        self.expect("punct", "=")
        size = self.literal()
        if not isinstance(size, int):
            raise self.wrong(f"a whole number as the size of {name}")
        return name, size

    def declared(self) -> Value:
        name = self.expect("value")[1:]
        self.expect("punct", ":")
        value = Value(name, self.type())
        if name in self.values:
            raise self.wrong(f"a new name: %{name} is defined already", back=1)
        self.values[name] = value
        return value

    def op(self) -> Op:
        line = self.peek()[2]
        pending = [self.pending_result()]
        while self.accept("punct", ","):
            pending.append(self.pending_result())
        self.expect("punct", "=")
        name = self.expect("word")
        operands: list[Operand] = []
        attrs: dict[str, Any] = {}
        self.listed("(", ")", lambda: self.argument(operands, attrs))
        location = self.location(line)
        for value in pending:
            if value.name in self.values:
                raise self.wrong(f"a new name: %{value.name} is defined already", back=1)
            self.values[value.name] = value
        return Op(name, tuple(operands), make_attrs(attrs), tuple(pending), location)

    def pending_result(self) -> Value:
        name = self.expect("value")[1:]
        self.expect("punct", ":")
        return Value(name, self.type())

    def argument(self, operands: list[Operand], attrs: dict[str, Any]) -> None:
        kind, text, _ = self.peek()
        if kind == "value":
            operands.append(self.use())
        elif kind == "word" and text not in _CONSTANTS:
            self.at += 1
            self.expect("punct", "=")
            attrs[text] = self.literal()
        else:
            operands.append(Literal(self.literal()))

    def use(self) -> Value:
        name = self.expect("value")[1:]
        if name not in self.values:
            raise self.wrong(f"a defined value: %{name} is not defined above", back=1)
        return self.values[name]

    def returned(self) -> tuple[tuple[str, Value], ...]:
        if self.peek()[1] == "}" or self.at_gradients():
            return ()  # a backward has gradients only
        pairs = [self.named()]
        while self.accept("punct", ","):
            pairs.append(self.named())
        return tuple(pairs)

    def at_gradients(self) -> bool:
        """Whether the line of gradients follows: `grad x=...`, not an output `grad=...`."""
        return self.peek()[:2] == ("word", "grad") and self.tokens[self.at + 1][0] == "word"

    def named(self) -> tuple[str, Value]:
        name = self.expect("word")
        self.expect("punct", "=")
        return name, self.use()

    def type(self) -> Type:
        name = self.expect("word")
        if name == "key":
            return Key()
        listed = self.listed("[", "]", lambda: (self.expect("word"), self.axes()))
        dims, splits = tuple(dim for dim, _ in listed), dict(listed)
        if name == "route":
            self.expect("word", "of")
            weight = self.type()
            if len(dims) == 4 and isinstance(weight, Tensor):
                return self.route(Route((dims[0], dims[1], dims[2], dims[3]), weight), splits)
            raise self.wrong("route[group, token, expert, capacity] of a tensor type", back=1)
        if name not in DTYPES:
            raise self.wrong(f"a type: one of {', '.join(DTYPES)}, route, key", back=1)
        partial = self.axes() if self.accept("word", "partial") else ()
        try:
            return Tensor(name, dims, placement(splits, partial))
        except MoegenError as error:
            raise error.located(None, self.here(1)) from None

    def route(self, route: Route, splits: dict[str, Axes]) -> Route:
        """A route is where its weights are: what is written must say the same."""
        if any(route.placement.axes(dim) != axes for dim, axes in splits.items()):
            raise self.wrong(f"{route}: a route is where its weights are", back=1)
        return route

    def axes(self) -> Axes:
        """Mesh axes after a dim, or after `partial`: `@data@expert`."""
        found: list[str] = []
        while self.peek()[0] == "symbol":
            found.append(self.expect("symbol")[1:])
        return tuple(found)

    def literal(self) -> Any:
        kind, text, _ = self.peek()
        if kind == "punct" and text == "(":
            return tuple(self.listed("(", ")", self.literal))
        self.at += 1
        if kind == "string":
            return ast.literal_eval(text)
        if kind == "number":
            return float(text) if re.search(r"[.en]", text.lower()) else int(text)
        if kind == "word" and text in _CONSTANTS:
            return _CONSTANTS[text]
        raise self.wrong("a number, a string, True, False, None or a tuple", back=1)

    # --- tokens ------------------------------------------------------------------------

    def peek(self) -> tuple[str, str, int]:
        while self.tokens[self.at][0] == "comment":
            self.at += 1
        return self.tokens[self.at]

    def accept(self, kind: str, text: str) -> bool:
        if self.peek()[:2] == (kind, text):
            self.at += 1
            return True
        return False

    def expect(self, kind: str, text: str | None = None) -> str:
        found, got, _ = self.peek()
        if found != kind or (text is not None and got != text):
            raise self.wrong(f'"{text}"' if text else f"a {kind}")
        self.at += 1
        return got

    def listed(self, opening: str, closing: str, item: Any) -> list[Any]:
        self.expect("punct", opening)
        items: list[Any] = []
        while not self.accept("punct", closing):
            if items:
                self.expect("punct", ",")
                if self.accept("punct", closing):
                    break
            items.append(item())
        return items

    def location(self, line: int) -> Location | None:
        """Reads a trailing `// file.py:9`; otherwise the line of the text itself."""
        kind, text, _ = self.tokens[self.at]
        match = _LOCATION.match(text) if kind == "comment" else None
        if match:
            return Location(match["file"], int(match["line"]))
        return Location(self.filename, line)

    def here(self, back: int = 0) -> Location:
        return Location(self.filename, self.tokens[max(self.at - back, 0)][2])

    def wrong(self, wanted: str, back: int = 0) -> ParseError:
        kind, text, _ = self.tokens[max(self.at - back, 0)]
        found = "the end of the text" if kind == "end" else f'"{text}"'
        return ParseError(f"expected {wanted}, found {found}", location=self.here(back))


def _tokens(text: str, filename: str) -> list[tuple[str, str, int]]:
    """Splits text into (kind, text, line), comments included, and a closing "end"."""
    tokens: list[tuple[str, str, int]] = []
    position, line = 0, 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match:
            shown = text[position : position + 12].split("\n")[0]
            raise ParseError(f'cannot read "{shown}"', location=Location(filename, line))
        kind = match.lastgroup or ""
        if kind == "newline":
            line += 1
        elif kind != "skip":
            tokens.append((kind, match.group(), line))
        position = match.end()
    return [*tokens, ("end", "", line)]
