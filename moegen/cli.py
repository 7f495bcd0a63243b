"""The `moegen` command: print a layer after each pass, emit its source, check a program."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from moegen import catalogue, experts, routers
from moegen.dsl.declare import Expert, Router
from moegen.dsl.find import find
from moegen.errors import MoegenError, TraceError, TuneError
from moegen.ir.parse import parse
from moegen.ir.text import format_program
from moegen.ir.verify import verify
from moegen.passes.pipeline import STAGES
from moegen.runtime.layer import ALIASES
from moegen.runtime.schedule import Schedule
from moegen.runtime.stages import INFERENCE, Lowered
from moegen.tune import aot, gpu_aot
from moegen.tune.gpu_compiler import DEVICES
from moegen.tune.product import JNP, Product, grouped_products
from moegen.tune.search import products_of, tune
from moegen.tune.tpu_compiler import TOPOLOGIES
from moegen.tune.whole import write_text

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
"""As a shell gives it; what was done is kept."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; bad input is one line on stderr and exit code 2."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except MoegenError as error:
        print(f"moegen: {_message(error)}", file=sys.stderr)
    except OSError as error:
        print(f"moegen: {error.filename or ''}: {error.strerror}", file=sys.stderr)
    except BrokenPipeError:
        return 0
    return EXIT_BAD_INPUT


def _message(error: MoegenError) -> str:
    """One line for a bad command; the op and the author's line too for a bad program."""
    if error.op or error.location:
        return f"{type(error).__name__}: {error}"
    return error.what + (f"; {error.fix}" if error.fix else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moegen", description="Look at what moegen makes of a router and an expert."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    show = commands.add_parser("print", help="print the program after one pass or after all")
    _add_layer(show)
    show.add_argument("--stage", choices=(*STAGES, INFERENCE, "all"), default="all")
    show.set_defaults(run=_print)

    emit = commands.add_parser("emit", help="write the Python that runs, for jax alone")
    _add_layer(emit)
    emit.add_argument("-o", "--output", type=Path, help="file to write; default: print")
    emit.set_defaults(run=_emit)

    routers = commands.add_parser("routers", help="list the routers that come with the package")
    routers.add_argument("--markdown", action="store_true", help="as a page, with programs")
    routers.set_defaults(run=_routers)

    compiled = commands.add_parser("aot", help="compile every kernel for chips that are not here")
    compiled.add_argument("--targets", default=",".join(TOPOLOGIES), metavar="NAME,...")
    compiled.add_argument("-o", "--output", type=Path, help="file to write; default: print")
    compiled.set_defaults(run=_aot)

    tuned = commands.add_parser(
        "tune", help="find the best tiles of a layer's or a shape's products"
    )
    _add_layer(tuned, optional=True)
    tuned.add_argument(
        "--shapes", default="", metavar="8192x1024x4096x8,...",
        help="instead of a router: rows, width, hidden width, experts",
    )  # fmt: skip
    tuned.add_argument("--dtype", choices=tuple(JNP), default="bf16", help="of --shapes")
    tuned.add_argument("--store", type=Path, required=True, help="the table to add to")
    tuned.set_defaults(run=_tune)

    check = commands.add_parser("check", help="parse and verify a .moe file")
    check.add_argument("file", type=Path)
    check.set_defaults(run=_check)
    return parser


def _add_layer(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    parser.add_argument(
        "router",
        nargs="?" if optional else None,
        help="a router of moegen.routers, or FILE.py:NAME",
    )
    parser.add_argument(
        "--expert", default="mlp", help="an expert of moegen.experts, or FILE.py:NAME"
    )
    parser.add_argument("--format", default="auto", help="auto, onehot, slots or sorted")
    parser.add_argument("--save", default="all", help="all or least, kept for the backward")
    parser.add_argument(
        "--exchange", default="auto", help="auto, blocks or ragged: sorted rows between devices"
    )
    parser.add_argument(
        "--overlap",
        default="1",
        help="chunks of an exchange, ring, inside or auto: slots on a mesh",
    )
    parser.add_argument("--target", help="cpu, tpu_v5e, h100, ...; default: this machine")
    parser.add_argument(
        "--mesh",
        default="",
        metavar="data=2,expert=4",
        help="mesh axes; the devices need not exist",
    )
    parser.add_argument(
        "--dims", default="", metavar="S=16,E=4", help="sizes of dims; F is the hidden width"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="k=2", help="a setting of the router"
    )
    parser.add_argument("--deterministic", action="store_true", help="trace without a random key")


def _print(args: argparse.Namespace) -> int:
    lowered = _lower(args)
    print(lowered.explain() if args.stage == "all" else lowered.as_text(args.stage), end="")
    return 0


def _emit(args: argparse.Namespace) -> int:
    args.target = args.target or jax.default_backend()  # the module may run on another machine
    source = _lower(args).source()
    if args.output is None:
        print(source, end="")
    else:
        write_text(args.output, source)
        print(f"wrote {args.output}", file=sys.stderr)
    return 0


def _check(args: argparse.Namespace) -> int:
    text = args.file.read_text(encoding="utf-8")
    program = verify(parse(text, str(args.file)))
    same = parse(format_program(program)) == program
    assert same, "the printer and the parser disagree"
    kind = "joint" if program.cotangents else "forward"
    print(f"{args.file}: @{program.name}, {kind}, {len(program.ops)} ops: ok")
    return 0


def _aot(args: argparse.Namespace) -> int:
    targets = tuple(args.targets.split(","))
    for target in targets:
        if target not in (*TOPOLOGIES, *DEVICES):
            known = ", ".join((*TOPOLOGIES, *DEVICES))
            raise TuneError(f'"{target}" is no target to compile for', fix=f"use some of {known}")
    pages = [
        page.table(chosen, lambda line: print(line, file=sys.stderr))
        for page, known in ((aot, TOPOLOGIES), (gpu_aot, DEVICES))
        if (chosen := tuple(t for t in targets if t in known))
    ]
    page = "\n".join(pages)
    if args.output is None:
        print(page, end="")
    else:
        write_text(args.output, page)
        print(f"wrote {args.output}", file=sys.stderr)
    return 0


def _tune(args: argparse.Namespace) -> int:
    """Adds to the table product by product, so that what is done stays done."""
    if bool(args.router) == bool(args.shapes):
        raise TuneError("tune takes a router or --shapes", fix="name one of the two")
    if args.target:
        args.target = args.target.replace("-", "_")
    target = Schedule(target=args.target).resolve_target()
    if args.shapes:
        products = [p for text in args.shapes.split(",") for p in _shape(text, args.dtype)]
    else:
        lowered = _lower(args)
        products = grouped_products(lowered.program)
        if not products:
            raise TuneError(
                f"@{lowered.program.name}, format {lowered.choice.format}, has no product with "
                "tiles", fix="use --format=sorted",
            )  # fmt: skip
    try:
        for found, new in tune(products, target, args.store, lambda s: print(s, file=sys.stderr)):
            print(found if new else f"{found}; known", flush=True)
    except KeyboardInterrupt:
        print(f"moegen: interrupted; {args.store} has what is done", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _shape(text: str, dtype: str) -> list[Product]:
    sizes = text.split("x")
    if len(sizes) != 4 or not all(size.isdigit() and int(size) for size in sizes):
        raise TuneError(
            f'--shapes: "{text}" is not ROWSxWIDTHxHIDDENxEXPERTS',
            fix="for example 8192x1024x4096x8",
        )
    return products_of([int(size) for size in sizes], JNP[dtype])


def _routers(args: argparse.Namespace) -> int:
    found = catalogue.entries()
    print(catalogue.markdown(found) if args.markdown else catalogue.table(found), end="")
    return 0


def _lower(args: argparse.Namespace) -> Lowered:
    router = find(args.router, Router, routers).bind(**_settings(args.set))
    expert = find(args.expert, Expert, experts)
    mesh = _mesh(args.mesh)
    schedule = Schedule(
        format=args.format,
        save=args.save,
        exchange=args.exchange,
        overlap=int(args.overlap) if args.overlap.isdigit() else args.overlap,
        target=args.target,
        mesh=mesh,
    )
    sizes, key = _dims(args.dims), not args.deterministic
    return catalogue.lower_example(router, expert, schedule, sizes, key=key)


def _dims(text: str) -> dict[str, int]:
    found = _sizes("--dims", text, example="S=16,E=4")
    return {ALIASES.get(name, name): size for name, size in found.items()}


def _mesh(text: str) -> jax.sharding.AbstractMesh | None:
    """A mesh of devices that need not be there."""
    axes = _sizes("--mesh", text, example="data=2,expert=4")
    if not axes:
        return None
    auto = (jax.sharding.AxisType.Auto,) * len(axes)
    return jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=auto)


def _sizes(option: str, text: str, example: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in filter(None, text.replace(" ", ",").split(",")):
        name, _, size = part.partition("=")
        if not size.isdigit() or not name.isidentifier():
            raise TraceError(f'{option}: "{part}" is not NAME=SIZE', fix=f"for example {example}")
        sizes[name] = int(size)
    return sizes


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise TraceError(f'--set: "{pair}" is not NAME=VALUE', fix="for example k=2")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


if __name__ == "__main__":
    sys.exit(main())
